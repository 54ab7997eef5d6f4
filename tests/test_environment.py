"""What processes find around them: proxies, a terminal of another encoding, `~`, containers, platforms, disks."""

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from dalle_mini import device, environment
from dalle_mini.__main__ import main

ROOT = Path(__file__).parents[1]
GIB = 2**30


def told(*command: str, **variables: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a command of ours with these variables; an empty one is taken away."""
    found = {name: value for name, value in {**os.environ, **variables}.items() if value}
    ended = subprocess.run([sys.executable, *command], env=found, cwd=ROOT, capture_output=True, text=True, timeout=300)
    return ended.returncode, ended.stdout, ended.stderr


@pytest.mark.parametrize("name", ["ALL_PROXY", "all_proxy", "HTTPS_PROXY", "http_proxy"])
@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "socks5h://127.0.0.1:9", "socks://127.0.0.1:9", "nonsense"])
def test_proxies_are_hidden_for_a_while_and_come_back(name: str, proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, proxy)
    with environment.without_proxies():
        assert name not in os.environ
    assert os.environ[name] == proxy


def test_gradio_is_imported_whatever_the_proxies_say() -> None:
    """In one process: what fails is the making of a client."""
    code, _, errors = told(
        "-c",
        "import dalle_mini.web.page",
        ALL_PROXY="socks://127.0.0.1:9",
        https_proxy="nonsense://x",
        NO_PROXY="::1,10.0.0.0/8",
    )
    assert (code, errors) == (0, "")


def test_the_proxy_as_gnome_writes_it_is_one_that_the_hubs_library_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx

    monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:9")
    environment.set_up([])
    assert os.environ["ALL_PROXY"] == "socks5://127.0.0.1:9"
    httpx.Client().close()


def test_without_a_folder_for_temporary_files_the_page_says_so_in_one_line(tmp_path: Path) -> None:
    nowhere = (
        "import os, tempfile; tempfile._candidate_tempdir_list = lambda: ['/proc/none']; import dalle_mini.web.page"
    )
    code, _, errors = told("-c", nowhere, TMPDIR="/proc/none")
    assert code == 1
    assert errors.startswith("TMPDIR must be a folder that can be written, got '/proc/none'")
    assert errors.count("\n") == 1


@pytest.mark.parametrize("encoding", ["ascii", "cp932", "latin-1"])
def test_an_output_that_is_not_utf_8_takes_every_sentence(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(written, encoding=encoding))
    environment.set_up([])
    sys.stdout.write("DALL·E mini 🐱\n")
    sys.stdout.flush()
    assert b"E mini" in written.getvalue()


def test_home_is_spelled_out_in_arguments_where_no_shell_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    given = ["generate", "~ a cat", "--out=~/out", "--model", "~/models/mine", "~", "a ~/b", "--no-rerank"]
    assert environment.set_up(given) == [
        "generate",
        "~ a cat",
        "--out=/home/ann/out",
        "--model",
        "/home/ann/models/mine",
        "/home/ann",
        "a ~/b",
        "--no-rerank",
    ]


def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, **limits: str) -> None:
    """`limits`: what files hold, by their paths below /sys/fs/cgroup with `__` for `/`."""
    (tmp_path / "own").write_text(own)
    for name, limit in limits.items():
        path = tmp_path / "cgroup" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name({"max": "memory.max", "v1": "memory.limit_in_bytes"}[path.name]).write_text(f"{limit}\n")
    monkeypatch.setattr(environment, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(environment, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PHYS_PAGES": 16 * GIB // 4096, "SC_PAGE_SIZE": 4096}[name])


V1 = "5:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n"


@pytest.mark.parametrize(
    ("own", "limits", "memory"),
    [
        ("0::/\n", {"max": str(3 * GIB)}, 3 * GIB),  # in a container
        ("0::/a.slice/b.scope\n", {"a.slice__b.scope__max": "max", "a.slice__max": str(2 * GIB)}, 2 * GIB),
        ("0::/a.slice/b.scope\n", {"a.slice__b.scope__max": str(GIB), "a.slice__max": str(2 * GIB)}, GIB),
        ("0::/\n", {"max": "max"}, 16 * GIB),
        ("0::/\n", {"max": str(64 * GIB)}, 16 * GIB),  # more than there is
        (V1, {"memory__v1": str(GIB)}, GIB),  # the path is the host's, and the top the container's
        (V1, {"memory__docker__abc__v1": str(GIB), "memory__v1": str(2**63 - 4096)}, GIB),
        (V1 + "0::/docker/abc\n", {"memory__v1": str(2 * GIB), "max": str(GIB)}, GIB),  # both, as some systems have
        ("nonsense", {}, 16 * GIB),
        ("0::/../..\n", {"max": str(GIB)}, GIB),
    ],
)
def test_memory_is_the_smaller_of_the_machines_and_the_containers(
    own: str, limits: dict[str, str], memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cgroups(tmp_path, monkeypatch, own, **limits)
    assert environment.memory() == memory


def test_slots_and_the_dry_run_follow_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import jax

    from dalle_mini.config import MINI
    from dalle_mini.serving.engine import _slots_for
    from dalle_mini.training.dalle.plan import memory_of

    cpu = jax.devices("cpu")[0]
    cgroups(tmp_path, monkeypatch, "0::/\n", max=str(3 * GIB))
    limited, memory = _slots_for(MINI, cpu), memory_of(cpu)
    (tmp_path / "cgroup" / "memory.max").write_text("max\n")
    assert limited < _slots_for(MINI, cpu)
    assert memory == 3 * GIB // jax.local_device_count()


@pytest.mark.parametrize("variable", ["JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"])
def test_where_nothing_can_be_kept_nothing_is_and_one_line_says_so(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("mine")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "file"))
    assert device.cache() is None
    assert len(caplog.records) == 1
    monkeypatch.setenv(variable, str(tmp_path / "new"))
    assert device.cache() in (tmp_path / "new", tmp_path / "new" / "dalle_mini" / "compiled")


def test_without_a_home_nothing_is_kept(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert device.cache() is None
    assert "not kept" in caplog.text


@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
def test_a_platform_that_is_not_there_is_named_in_one_line(platform: str, tmp_path: Path) -> None:
    command = ("-m", "dalle_mini", "generate", "a cat", "--no-rerank", "--out", str(tmp_path))
    code, _, errors = told(*command, JAX_PLATFORMS=platform)
    rule = "error: JAX_PLATFORMS must name what this machine has, such as cpu, or be left out"
    assert (code, errors.splitlines()[-1]) == (2, f"{rule}, got {platform!r}")
    assert "Traceback" not in errors


def test_gradios_own_variables_say_where_to_listen_and_a_bad_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import app
    from dalle_mini.web import server as web

    heard: list[tuple[str, int]] = []

    def listen(host: str, port: int) -> None:
        heard.append((host, port))
        raise ValueError("stop")

    page = typer.Typer(pretty_exceptions_enable=False)
    page.command()(app.main)
    command: Any = typer.main.get_command(page)
    monkeypatch.setattr(web, "listen", listen)
    for name, value in (("SERVER_NAME", "0.0.0.0"), ("SERVER_PORT", "8123"), ("ROOT_PATH", "/dalle")):
        monkeypatch.setenv(f"GRADIO_{name}", value)
    for arguments in ([], ["--port", "9000"]):
        with pytest.raises(SystemExit, match="stop"):
            command.main(arguments, standalone_mode=False)
    assert heard == [("0.0.0.0", 8123), ("0.0.0.0", 9000)]
    monkeypatch.setenv("GRADIO_ROOT_PATH", "dalle")
    with pytest.raises(SystemExit, match=r"^root_path must be a path such as /dalle"):
        command.main([], standalone_mode=False)
    monkeypatch.setenv("GRADIO_SERVER_PORT", "seven")
    with pytest.raises(typer.BadParameter) as refused:
        command.main([], standalone_mode=False)
    assert "GRADIO_SERVER_PORT" in refused.value.format_message()


def test_a_model_in_the_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vqgan.hub import resolve

    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    assert resolve("~/mine", []) == tmp_path / "mine"


def test_out_in_the_home_is_not_a_folder_called_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    assert main(["generate", "a cat", "--out=~/file"]) == 2
    assert not (tmp_path / "~").exists()
