"""The files of the library that a build for the Hub is made of, imports made relative, operators named anew."""

import ast
from collections.abc import Iterator
from pathlib import Path

import tam_triton

LIBRARY = "tam_triton"
FOLDER = Path(tam_triton.__file__).parent
LAYERS = Path(__file__).with_name("layers.py")
ROOTS = (f"{LIBRARY}.functional", f"{LIBRARY}.temporal")
ASSIGNED = f'NAMESPACE = "{LIBRARY}"'
"""In `ops`; the build has `_ops` instead."""


def sources() -> dict[str, str]:
    """The text of each file by its place in the build: layers, and all that these and the functions import."""
    found: dict[str, str] = {}
    waiting = [*ROOTS, *_imported(LAYERS.read_text(encoding="utf-8"))]
    while waiting:
        module = waiting.pop()
        path = _file(module)
        place = path.relative_to(FOLDER).as_posix()
        if module == LIBRARY or place in found:
            continue  # the package itself offers what needs networks and files
        found[place] = path.read_text(encoding="utf-8")
        waiting += [module.rpartition(".")[0], *_imported(found[place])]
    found["layers.py"] = LAYERS.read_text(encoding="utf-8")
    return {place: relative(text, place) for place, text in sorted(found.items())}


def relative(text: str, place: str) -> str:
    """A file with the imports from the library made relative, and the operators' name from `_ops`.

    Raises:
        ValueError: the library is imported in a way that cannot be made relative, or its operators' name is not found.
    """
    lines = text.splitlines(keepends=True)
    dots = "." * (place.count("/") + 1)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import) and any(_is_ours(alias.name) for alias in node.names):
            raise ValueError(f"{place}, line {node.lineno}: got `{ast.unparse(node)}`, expected `from … import …`")
        if isinstance(node, ast.ImportFrom) and node.level == 0 and _is_ours(str(node.module)):
            line = lines[node.lineno - 1].encode()  # offsets are of bytes
            before, statement = line[: node.col_offset].decode(), line[node.col_offset :].decode()
            absolute = f"from {node.module} import "
            if not statement.startswith(absolute):
                raise ValueError(f"{place}, line {node.lineno}: got {statement.strip()!r}, expected it on one line")
            module = str(node.module).removeprefix(LIBRARY).removeprefix(".")
            lines[node.lineno - 1] = f"{before}from {dots}{module} import {statement.removeprefix(absolute)}"
    text = "".join(lines)
    if place == "ops.py":
        if text.count(f"\n{ASSIGNED}\n") != 1:
            raise ValueError(f"{place}: got no line {ASSIGNED!r}, expected the operators' name there")
        text = text.replace(f"\n{ASSIGNED}\n", "\nfrom ._ops import _OPS_NAME as NAMESPACE\n")
    return text


def _imported(text: str) -> Iterator[str]:
    """The library's modules that a file imports anywhere, for type checkers too."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and _is_ours(str(node.module)):
            module = str(node.module)
            for alias in node.names:
                yield f"{module}.{alias.name}" if _exists(f"{module}.{alias.name}") else module


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == LIBRARY


def _exists(module: str) -> bool:
    path = FOLDER.joinpath(*module.split(".")[1:])
    return path.is_dir() or path.with_suffix(".py").is_file()


def _file(module: str) -> Path:
    path = FOLDER.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
