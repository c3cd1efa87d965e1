"""Files that are there complete or not at all, and errors that name them."""

import csv
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to instead of `path`; moved there when all went well, removed otherwise.

    An OSError that says no file, as one of a full disk does, then says `path`.
    """
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    try:
        with naming(path):
            yield unfinished
            unfinished.replace(path)
            _sync_folder(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError of the system that says no file say `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def write_text(path: Path, text: str) -> None:
    """Let `path` hold `text`. Names of files that are no text are written with their bytes as escapes."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")


# What spreadsheets run, at the beginning of a cell or, where they divide at semicolons, after one. A quote itself is
# guarded too, so that no two texts become one.
_RUN = re.compile(r"(^|[;\t\r\n])(?=\s*['=+@＝＋－＠-])")


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Let `path` hold `rows` as CSV. In texts a quote stands before what a spreadsheet would take for a formula."""
    cells = ([_RUN.sub(r"\1'", cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    text = io.StringIO()
    csv.writer(text).writerows(cells)
    write_text(path, text.getvalue())


def _sync_folder(folder: Path) -> None:
    """Let a file's new name reach the disk too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
