"""Text files that users hand in, whatever system they were written on; and what may not stand in a list twice."""

import csv
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from train.data.entries import Entry
from train.errors import InputError
from train.fields import parse_json


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


def read_json(path: Path, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value in a JSON file, as `parse_json` makes it. Raises InputError."""
    text = read_text(path)
    try:
        return parse_json(text, pairs)
    except InputError as error:
        raise InputError(f"{path}, {error}") from error


def numbered_rows(path: Path, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """(number of the line, fields without the blanks around them) of the lines of a CSV file that are not blank."""
    reader = csv.reader(read_text(path).replace("\r\n", "\n").split("\n"), delimiter=delimiter)
    try:
        for row in reader:
            if any(field.strip() for field in row):
                yield reader.line_num, [field.strip() for field in row]
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: is not a table ({error})") from error


FROM_ONE = "where labels count from 1, let the file of classes say so: `1 name` in its first line, and so on"


class Classes(NamedTuple):
    """The names of the classes in the order of their labels, and the label of the first."""

    names: tuple[str, ...]
    first: int = 0


def read_classes(path: Path) -> Classes:
    """The classes of a file, a name a line in the order of the labels, or `number name`, as in UCF101's `classInd.txt`.

    It is of the second form if its lines begin with 1, 2, 3, … or 0, 1, 2, …; labels count from where these do.
    Raises InputError if there is no name, or one twice: also as the same letters in two forms of Unicode.
    """
    lines = [unicode_form(line) for _, line in numbered_lines(path)]
    if not lines:
        raise InputError(f"{path}: the file holds no class names")
    numbered = [re.fullmatch(r"(\d+)\s+(\S.*)", line, re.ASCII) for line in lines]
    matches = [match for match in numbered if match]
    first = int(matches[0][1]) if matches else -1
    if [int(match[1]) for match in matches] == list(range(first, first + len(lines))) and first in (0, 1):
        classes = Classes(tuple(match[2] for match in matches), first)
    else:
        classes = Classes(tuple(lines))
    if twice := sorted({name for name in classes.names if classes.names.count(name) > 1}):
        raise InputError(f"{path}: class names must differ, {twice[0]!r} is there twice")
    return classes


def read_class_names(path: Path) -> tuple[str, ...]:
    """The names of `read_classes`."""
    return read_classes(path).names


def unicode_form(name: str) -> str:
    """`name` in Unicode's composed form: `é` is one letter, whether a system writes it as one or as e and an accent."""
    return unicodedata.normalize("NFC", name)


def merged_names(path: Path, names: Iterable[str]) -> list[str]:
    """`names` in composed form, sorted, each once; says so where some differ in nothing but their form."""
    given = set(names)
    merged = sorted({unicode_form(name) for name in given})
    if len(merged) < len(given):
        forms = Counter(unicode_form(name) for name in given)
        same = ", ".join(repr(name) for name, count in sorted(forms.items()) if count > 1)
        print(f"note: {path}: names that differ in their Unicode form alone are one class: {same}", file=sys.stderr)
    return merged


def label_number(where: str, text: str, class_names: Sequence[str], first: int = 0) -> int:
    """The label from 0 that `text` says, which counts from `first`.

    Raises InputError, which begins with `where`, if it is none of the classes'.
    """
    if not (text.isascii() and text.isdigit()):
        raise InputError(f"{where}: the label must be an integer from {first}, got {text!r}")
    if not first <= int(text) < first + len(class_names):
        remedy = ""
        if first == 0 and int(text) == len(class_names):
            remedy = f"; {FROM_ONE}"
        counted = "" if first == 0 else f", counted from {first}"
        message = f"label {text} is out of range, there are {len(class_names)} classes{counted}{remedy}"
        raise InputError(f"{where}: {message}")
    return int(text) - first


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
