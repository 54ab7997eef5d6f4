"""How JAX is set up, once, before its first computation.

Contract: `set_up()` may be called any number of times; what the caller has set in the environment stays.
"""

import logging
import os
import tempfile
from pathlib import Path

# With XLA's YNNPACK fusions more results depend on the batch size: measured, the VQGAN's pixels at batch 4 and the
# logits at mini's width from 8 rows on, which agree to the bit without them. (The engine's ROWS do the rest.) The
# text-to-code training step was about 1.5 times faster without, too, on two busy cores. An unknown flag ends the
# process, so this one is for the pinned JAX only.
JAX_VERSION, XLA_FLAG = "0.10.2", "--xla_cpu_experimental_ynn_fusion_type="


def name() -> str:
    """What draws in this process, in words."""
    import jax

    first = jax.devices()[0]
    return "CPU" if first.platform == "cpu" else f"{first.platform.upper()} ({first.device_kind})"


def set_up() -> None:
    """Set XLA's flags and keep compiled programs on disk, which makes the next start quicker."""
    import jax

    flags = os.environ.get("XLA_FLAGS", "")
    if jax.__version__ == JAX_VERSION and XLA_FLAG.rstrip("=") not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {XLA_FLAG}".strip()
    folder = cache()
    jax.config.update("jax_compilation_cache_dir", None if folder is None else str(folder))
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def cache() -> Path | None:
    """Where compiled programs are kept: JAX_COMPILATION_CACHE_DIR or a folder of ours; None where nothing can be."""
    ours = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "dalle_mini", "compiled")
    try:
        folder = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or ours).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError) as error:  # RuntimeError: nobody knows where ~ is
        logging.getLogger(__name__).warning("compiled programs are not kept for the next start: %s", error)
        return None


def check_platforms() -> None:
    """Raises ValueError where JAX_PLATFORMS names what this machine does not have."""
    import jax

    wanted = os.environ.get("JAX_PLATFORMS")
    try:
        jax.devices()
    except Exception as error:  # every platform fails in its own way, one with an AssertionError without a word
        if not wanted:
            raise
        rule = "JAX_PLATFORMS must name what this machine has, such as cpu, or be left out"
        raise ValueError(f"{rule}, got {wanted!r}") from error
