"""The pages of the documentation as tests see them: their blocks of code, their commands, and which test runs what.

A block of Python is run, a line of a block without a language is a command. What can be neither, as it needs a GPU or
goes into another program, has a line above it that says so: `<!-- not run: REASON -->`.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BESIDE = ("README.md", "CONTRIBUTING.md", "bench/README.md")
"""Pages that are not in `docs`."""

RUN_BY = {
    "docs/adding-a-kernel.md": "tests/library/test_docs.py",
    "docs/export.md": "tests/train/export/test_files.py",
    "docs/kinetics-400.md": "tests/train/test_own_data_set.py",
    "docs/own-data-set.md": "tests/train/test_own_data_set.py",
    "docs/neighbors.md": "tests/library/test_neighbors.py",
    "docs/predicting.md": "tests/train/evaluation/test_extract.py",
    "docs/streaming.md": "tests/library/test_streaming.py",
    "docs/using-a-network.md": "tests/library/test_classifier.py",
    "docs/visualizing.md": "tests/train/visualize/test_visualize.py",
}
"""Which test runs the Python of a page; that of all others is run by tests/library/test_pages.py."""

LANGUAGES = ("", "python", "pycon", "bash", "text")
"""Commands, what is run, what tests/library/test_errors.py runs, a shell's own language, and what commands print."""

_FENCE = re.compile(r"^```(\w*)$")
_NOT_RUN = re.compile(r"^<!-- not run: (.+) -->$")


class Block(NamedTuple):
    """A block of code."""

    page: str
    line: int
    """The number of its first line of code, from 1 on."""
    language: str
    code: str
    reason: str | None
    """Why it is not run."""


def pages() -> list[str]:
    """All, by their paths in the repository."""
    return [path.relative_to(ROOT).as_posix() for path in sorted(DOCS.rglob("*.md"))] + list(BESIDE)


def text(page: str) -> str:
    """What a page says."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, *languages: str) -> list[Block]:
    """Those of a page in its order, of some languages or of all."""
    found: list[Block] = []
    language, start, lines = None, 0, text(page).splitlines()
    for number, line in enumerate(lines):
        if language is None and (fence := _FENCE.match(line)):
            language, start = fence[1], number + 1
        elif language is not None and line == "```":
            above = _NOT_RUN.match(lines[start - 2]) if start > 1 else None
            code = "".join(f"{line}\n" for line in lines[start:number])
            found.append(Block(page, start + 1, language, code, above and above[1]))
            language = None
    assert language is None, f"{page}: the block of line {start} has no end"
    return [block for block in found if not languages or block.language in languages]


def python_blocks(page: str) -> list[Block]:
    """Those to be run."""
    return [block for block in blocks(page, "python") if block.reason is None]


def run_block(block: Block, names: dict[str, Any]) -> None:
    """Run a block in the names of those before it; a traceback shows the page's own lines."""
    code = compile("\n" * (block.line - 1) + block.code, ROOT / block.page, "exec")
    exec(code, names)


def run_page(page: str, names: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run all of a page's Python, one block after the other; the names that it leaves."""
    names = {} if names is None else names
    found = python_blocks(page)
    assert found, f"{page} has no Python"
    for block in found:
        run_block(block, names)
    return names


def command_lines(page: str) -> Iterator[tuple[int, str]]:
    """(number of the line, command) of the blocks without a language, and of running text where it has options."""
    for block in blocks(page, ""):
        if block.reason is None:
            for number, line in enumerate(block.code.splitlines(), block.line):
                if shlex.split(line, comments=True):
                    yield number, line
    for number, line in enumerate(text(page).splitlines(), 1):
        for command in re.findall(r"`(python -m (?:train|bench) [^`]* --[^`]*)`", line):
            yield number, command
