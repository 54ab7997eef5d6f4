"""`pip install .`: the wheel, in an environment of its own; and the Dockerfile, as far as it runs without Docker.

The environment has the packages of this one by a .pth file, so that nothing is downloaded, and nothing of the checkout.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from dalle_mini.gallery import read_metadata

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from what a container gets of the checkout (.dockerignore)."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        for found in ROOT.glob(line.removeprefix("!")) if line.startswith("!") else ():
            if found.is_dir():
                shutil.copytree(found, source / found.name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(found, source)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(built)]
    subprocess.run([*build, str(source)], check=True, capture_output=True)
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def commands(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands of the environment are."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "packages.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    install = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--no-deps", "-q"]
    subprocess.run([*install, "--no-index", "--ignore-installed", str(wheel)], check=True, capture_output=True)
    return folder / "bin"


def environment(home: Path) -> dict[str, str]:
    """Of a container whose only place to write is a folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "XDG", "HOME"))}
    return kept | {"HOME": str(home), "TMPDIR": str(home), "GRADIO_TEMP_DIR": str(home), "PYTHONUNBUFFERED": "1"}


def test_wheel_has_the_page_the_model_the_recipes_and_the_pins(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        about = file.read(next(name for name in names if name.endswith(".dist-info/METADATA"))).decode()
    for name in ("app.py", "assets/style.css", "assets/MODEL_CARD.md", "training/recipes/mini.toml"):
        assert f"dalle_mini/{name}" in names
    data = {path for path in (ROOT / "dalle_mini").rglob("*.*") if path.suffix not in (".py", ".pyc", ".pyi")}
    assert {str(path.relative_to(ROOT)) for path in data} <= names
    shipped = {path.relative_to(ROOT) for path in (ROOT / "assets").rglob("*") if path.is_file()}
    assert {str(Path("dalle_mini") / path) for path in shipped} <= names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"dalle_mini", "vqgan", "clip_rerank"}
    pins = re.findall(r"^[\w-]+(?:\[\w+\])?==[\w.]+", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    needed = re.findall(r"^Requires-Dist: ([^;\n]+)$", about, re.MULTILINE)
    assert sorted(map(plain, needed)) == sorted(map(plain, pins))


def plain(pin: str) -> str:
    return pin.lower().replace("_", "-")


@pytest.mark.slow
def test_the_command_draws_in_an_empty_folder_as_python_does(commands: Path, tmp_path: Path) -> None:
    for number, command in enumerate((["dalle-mini"], ["python", "-m", "dalle_mini"])):
        drawing = [*command[1:], "generate", "a tiny dog", "--seed=7", "--no-rerank", "--candidates=1"]
        command = [str(commands / command[0]), *drawing, f"--out=~/{number}"]
        subprocess.run(command, check=True, env=environment(tmp_path), cwd=tmp_path)
    first, second = ((tmp_path / str(number) / "01.png").read_bytes() for number in range(2))
    assert first == second
    assert read_metadata(tmp_path / "0" / "01.png")["seed"] == "7"


@pytest.mark.slow
def test_the_container_serves_is_found_healthy_and_writes_only_where_it_may(commands: Path, tmp_path: Path) -> None:
    """The entry point, the command and the health check of the Dockerfile."""
    entry, command = (json.loads(found) for found in re.findall(r"^(?:ENTRYPOINT|CMD) (\[.*\])$", DOCKERFILE, re.M))
    health = json.loads(re.findall(r"^    CMD (\[.*\])$", DOCKERFILE, re.M)[0])
    variables = environment(tmp_path) | {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": "0"}
    start = [str(commands / entry[0]), *entry[1:], *command]
    with subprocess.Popen(start, stdout=subprocess.PIPE, text=True, env=variables, cwd="/") as server:
        try:
            assert server.stdout
            found = re.search(r"http://127\.0\.0\.1:(\d+)/", server.stdout.readline())
            assert found
            check = [str(commands / "python"), *health[1:]]
            subprocess.run(check, check=True, env=variables | {"GRADIO_SERVER_PORT": found[1]})
            assert subprocess.run(check, env=variables | {"GRADIO_SERVER_PORT": "9"}, stderr=-3).returncode != 0
        finally:
            server.terminate()
            server.wait(60)


def test_the_container_installs_the_same_pins() -> None:
    (pattern,) = re.findall(r"grep -E \"(.*?)\" requirements.txt", DOCKERFILE)
    found = subprocess.run(
        ["grep", "-E", pattern, ROOT / "requirements.txt"], capture_output=True, text=True, check=True
    ).stdout
    assert re.fullmatch(r"torch==.*\ntorchvision==.*\n", found)
    assert re.search(r"^USER (?!root)", DOCKERFILE, re.MULTILINE)
    assert not re.search(r"==\d", DOCKERFILE), "a pin has one home"
