"""How JAX is set up, once, before its first computation.

Contract: `set_up()` may be called any number of times; what the caller has set in the environment stays.
"""

import os
from pathlib import Path

# With XLA's YNNPACK fusions more results depend on the batch size: measured, the VQGAN's pixels at batch 4 and the
# logits at mini's width from 8 rows on, which agree to the bit without them. (The engine's ROWS do the rest.) The
# text-to-code training step was about 1.5 times faster without, too, on two busy cores. An unknown flag ends the
# process, so this one is for the pinned JAX only.
JAX_VERSION, XLA_FLAG = "0.10.2", "--xla_cpu_experimental_ynn_fusion_type="
COMPILED = Path.home() / ".cache" / "dalle_mini" / "compiled"


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
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(COMPILED))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
