"""Text files that users hand in, whatever system they were written on; and what may not stand in a list twice."""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from train.data.entries import Entry
from train.errors import InputError


def read_text(path: Path) -> str:
    """The file's text, UTF-8 with or without a byte order mark. Raises InputError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not a text file in UTF-8") from error


def numbered_lines(path: Path) -> list[tuple[int, str]]:
    """(number, text) of the lines that are not blank, without the blanks around them."""
    return [(i, line.strip()) for i, line in enumerate(read_text(path).split("\n"), start=1) if line.strip()]


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises InputError."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: is not JSON ({error.msg})") from error


def numbered_rows(path: Path, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """(number of the line, fields without the blanks around them) of the lines of a CSV file that are not blank."""
    reader = csv.reader(read_text(path).replace("\r\n", "\n").split("\n"), delimiter=delimiter)
    try:
        for row in reader:
            if any(field.strip() for field in row):
                yield reader.line_num, [field.strip() for field in row]
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: is not a table ({error})") from error


def read_class_names(path: Path) -> tuple[str, ...]:
    """The names of the classes, a line each, in the order of the labels. InputError if there are none, or one twice."""
    names = tuple(line for _, line in numbered_lines(path))
    if not names:
        raise InputError(f"{path}: the file holds no class names")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{path}: class names must differ, {twice[0]!r} is there twice")
    return names


def label_number(where: str, text: str, class_names: Sequence[str]) -> int:
    """The label that `text` says. InputError, which begins with `where`, if it is none of the classes'."""
    if not (text.isascii() and text.isdigit()):
        raise InputError(f"{where}: the label must be an integer from 0, got {text!r}")
    if int(text) >= len(class_names):
        raise InputError(f"{where}: label {text} is out of range, there are {len(class_names)} classes")
    return int(text)


def unique(path: Path, numbered: Iterable[tuple[int, Entry]]) -> tuple[Entry, ...]:
    """The entries of the list at `path`, which come with their lines' numbers.

    Raises InputError if there are none or one is there twice: it would count twice in a score.
    """
    lines: dict[Path, int] = {}
    entries = []
    for line, entry in numbered:
        if (before := lines.setdefault(entry.path, line)) != line:
            raise InputError(f"{path}, line {line}: {entry.path} is there twice, first in line {before}")
        entries.append(entry)
    if not entries:
        raise InputError(f"{path}: the list holds no videos")
    return tuple(entries)
