"""The structure that docs/architecture.md promises: imports run downward, no circles, no two classes of one name."""

import ast
from collections import Counter, defaultdict
from pathlib import Path

SRC = Path(__file__).parents[1] / "src"
DOCS = (SRC.parent / "docs" / "architecture.md").read_text()

# From the bottom up; packages on one line are on one floor and do not import each other.
FLOORS = [
    ("types", "errors", "files", "notices", "environment"),
    ("store",),
    ("config",),
    ("metrics",),
    ("objectives", "models"),
    ("optim", "data", "checkpoints"),
    ("retention", "strategies", "pretraining"),
    ("training",),
    ("recipe",),
    ("tracking",),
    ("finished",),
    ("analysis",),
    ("launch",),
    ("train", "predict"),
]
FLOOR = {package: number for number, packages in enumerate(FLOORS) for package in packages}


def imports(path: Path) -> set[Path]:
    """Return the files of src that a file imports, at its top, in functions and for type checking."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
        for target in (base, *(base / alias.name for alias in node.names)):
            found |= {
                f for f in (target.with_suffix(".py"), target / "__init__.py") if f.is_file() and SRC in f.parents
            }
    return found - {path, SRC / "__init__.py"}


GRAPH = {path: imports(path) for path in SRC.rglob("*.py")}


def package(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def circles() -> list[set[Path]]:
    """Return the strongly connected components of more than one file (Tarjan)."""
    index: dict[Path, int] = {}
    low: dict[Path, int] = {}
    stack: list[Path] = []
    found = []

    def visit(path: Path) -> None:
        index[path] = low[path] = len(index)
        stack.append(path)
        for other in GRAPH[path]:
            if other not in index:
                visit(other)
                low[path] = min(low[path], low[other])
            elif other in stack:
                low[path] = min(low[path], index[other])
        if low[path] == index[path]:
            component = set(stack[stack.index(path) :])
            del stack[stack.index(path) :]
            if len(component) > 1:
                found.append(component)

    for path in GRAPH:
        if path not in index:
            visit(path)
    return found


def test_every_package_has_a_floor():
    assert {package(path) for path in GRAPH} - {"__init__"} == set(FLOOR)


def test_no_import_circle():
    assert [sorted(str(path.relative_to(SRC)) for path in circle) for circle in circles()] == []


def test_imports_run_downward():
    """An arrow to a higher or equal floor must be named in docs/architecture.md; there are at most twelve."""
    upward = defaultdict(list)
    for path, others in GRAPH.items():
        for other in others:
            a, b = package(path), package(other)
            if "__init__" not in (a, b) and a != b and FLOOR[a] <= FLOOR[b]:
                upward[f"`{a} -> {b}`"].append(f"{path.relative_to(SRC)} imports {other.relative_to(SRC)}")
    assert {arrow: files for arrow, files in upward.items() if arrow not in DOCS} == {}
    assert len(upward) <= 12


def test_imports_inside_src_are_relative():
    for path in GRAPH:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not [name for name in names if name.split(".")[0] in ("src", "thaw")], path


def test_no_two_classes_share_a_name():
    trees = [ast.parse(path.read_text()) for path in GRAPH]
    names = Counter(node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef))
    assert {name: count for name, count in names.items() if count > 1} == {}
