"""How the code is built: imports point one way and in no circle, torch stays where it belongs, nothing grows long."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("dalle_mini", "vqgan", "clip_rerank")
FILES = [ROOT / "app.py", *(path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))]
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 350, 40  # the longest is model.py: the transformer in one file
MOST_LINES_OF_A_SCRIPT = 70  # of the page: a screen
TORCH = ("torch", "open_clip")
HAS_TORCH = ("clip_rerank", "dalle_mini.training.clip")  # a package and what is in it


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def statements(tree: ast.AST, *, late: bool) -> Iterator[ast.AST]:
    """All of a module; without `late`, only what runs when it is imported."""
    for node in ast.iter_child_nodes(tree):
        if not late and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from statements(node, late=late)


def imported(tree: ast.AST, *, late: bool) -> set[str]:
    """Modules by their full names; of ours `from package import module` is the module."""
    found = set()
    for node in statements(tree, late=late):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return found


def test_every_import_of_ours_names_its_package():
    relative = [
        name
        for name, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("vqgan", ("app", "dalle_mini", "clip_rerank")),
        ("clip_rerank", ("app", "dalle_mini", "vqgan")),
        ("dalle_mini", ("app",)),
        ("dalle_mini.serving", ("dalle_mini.web",)),
    ],
)
def test_imports_point_one_way(package: str, forbidden: tuple[str, ...]):
    wrong = [
        f"{name} imports {other}"
        for name, tree in MODULES.items()
        if inside(name, package)
        for other in imported(tree, late=True)
        if any(inside(other, each) for each in forbidden)
    ]
    assert wrong == []


def test_torch_is_imported_with_clip_and_with_nothing_else():
    wrong = [
        f"{name} imports {other}"
        for name, tree in MODULES.items()
        if not any(inside(name, package) for package in HAS_TORCH)
        for other in imported(tree, late=False)
        if any(inside(other, each) for each in TORCH)
    ]
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle():
    graph = {name: imported(tree, late=True) & set(MODULES) - {name} for name, tree in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' <- '.join(error.args[1])}")


def test_files_and_functions_are_short():
    long = []
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        if (lines := len(text.splitlines())) > MOST_LINES:
            long.append(f"{path.relative_to(ROOT)}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and (lines := lines_of(node)) > MOST_LINES_OF_A_FUNCTION:
                long.append(f"{path.relative_to(ROOT)}: {node.name} has {lines} lines")
    assert long == []


def test_no_script_is_longer_than_a_screen():
    scripts = {
        path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / "dalle_mini").rglob("*.js")
    }
    assert len(scripts) > 10
    assert {name: lines for name, lines in scripts.items() if lines > MOST_LINES_OF_A_SCRIPT} == {}


def lines_of(function: ast.FunctionDef) -> int:
    """Of its own: without its signature, which may be all options of a command, its docstring and inner functions."""
    first = function.body[1 if ast.get_docstring(function) and len(function.body) > 1 else 0]
    inner = [node for node in function.body if isinstance(node, ast.FunctionDef)]
    assert function.end_lineno
    own = function.end_lineno - first.lineno + 1
    return own - sum((node.end_lineno or 0) - node.lineno + 1 for node in inner)
