"""train/ is a house of storeys: a file imports what lies below it, and no room looks into the one beside it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# From the top down. What shares a line may not import one another.
STOREYS = (
    {"__main__"},
    {"demo", "compare", "visualize", "export"},
    {"fit", "evaluation", "convert"},
    {"weights", "exported"},
    {"checkpoint"},
    {"networks"},
    {"recipes", "metrics"},
    {"recipe"},
    {"precision"},
    {"data"},
    {"team", "log", "fields", "figures"},
    {"curves"},
    {"appended"},
    {"allocator"},
    {"atomic", "lock"},
    {"errors"},
)
LEVEL = {room: -storey for storey, rooms in enumerate(STOREYS) for room in rooms}
FILES = sorted((ROOT / "train").rglob("*.py"))


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported anywhere in a file, in functions and for type checkers too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            yield from (_module(str(node.module), alias.name) for alias in node.names)


def _module(package: str, name: str) -> str:
    """Which module `from package import name` is about: the one of that name in it, or itself."""
    inner = ROOT.joinpath(*package.split("."), name)
    return f"{package}.{name}" if inner.is_dir() or inner.with_suffix(".py").exists() else package


def violations(room: str, tree: ast.AST) -> list[str]:
    """The imports of a file in `room` that go up, or to the side."""
    rooms = {name: name.split(".")[1] for name in imported(tree) if name.startswith("train.")}
    unknown = [name for name, other in rooms.items() if other not in LEVEL]
    return unknown + [name for name, other in rooms.items() if other != room and LEVEL.get(other, 1) >= LEVEL[room]]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    room = path.relative_to(ROOT / "train").parts[0].removesuffix(".py")
    if room == "__init__":
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert violations(room, tree) == []
    tops = {name.split(".")[0] for name in imported(tree)}
    assert not tops & {"tests", "reference"}
    assert "bench" not in tops or room == "__main__"  # it offers what bench finds out


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("fit", "from train.evaluation.scores import VideoScores"),
        ("evaluation", "from train import fit"),
        ("data", "def late():\n    import train.precision"),
        ("errors", "from train.fields import require"),
        ("data", "from train.attic import chest"),
    ],
)
def test_imports_that_do_not_are_found(room: str, line: str) -> None:
    assert violations(room, ast.parse(line))
    assert not violations("__main__", ast.parse("from train.demo.demo import run_demo\nimport train.errors"))


def test_no_two_files_import_one_another() -> None:
    """Nor do more than two in a circle, within a room either."""
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
    below = {
        name: {other for other in imported(ast.parse(path.read_text(encoding="utf-8"))) if other in modules} - {name}
        for name, path in modules.items()
    }
    while leaves := {name for name, others in below.items() if not others & below.keys()}:
        below = {name: others for name, others in below.items() if name not in leaves}
    assert below == {}
