"""List files: which videos there are and what is in them.

The format is mmaction2's for videos: a line is `path label`, the path relative to a root, the label an integer from 0.
The label is what follows the last blank, so paths may hold blanks. Empty lines and Windows line ends are let pass.
"""

from pathlib import Path
from typing import NamedTuple

from train.errors import InputError


class VideoEntry(NamedTuple):
    """A video file and the number of its class."""

    path: Path
    label: int


def read_list(path: Path, num_classes: int, root: Path | None = None) -> list[VideoEntry]:
    """The entries of the list file at `path`, in its order.

    Args:
        path: the list file, UTF-8.
        num_classes: labels must be below it.
        root: the folder that the paths in it start from; by default the list's own.

    Raises:
        InputError: no such file, no entry in it, or a line that is not `path label`; names the file and the line.
    """
    root = path.parent if root is None else root
    entries = []
    for number, line in _numbered_lines(path):
        video, _, label = line.replace("\t", " ").rpartition(" ")
        if not video.strip():
            raise InputError(f"{path}, line {number}: expected `path label`, got {line!r}")
        if not (label.isascii() and label.isdigit()):
            raise InputError(f"{path}, line {number}: the label must be an integer from 0, got {label!r}")
        if int(label) >= num_classes:
            raise InputError(f"{path}, line {number}: label {label} is out of range, there are {num_classes} classes")
        entries.append(VideoEntry(root / video.strip(), int(label)))
    if not entries:
        raise InputError(f"{path}: the list holds no videos")
    return entries


def read_class_names(path: Path) -> tuple[str, ...]:
    """The names of the classes, a line each, in the order of the labels. InputError if there are none, or one twice."""
    names = tuple(line for _, line in _numbered_lines(path))
    if not names:
        raise InputError(f"{path}: the file holds no class names")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{path}: class names must differ, {twice[0]!r} is there twice")
    return names


def _numbered_lines(path: Path) -> list[tuple[int, str]]:
    """(number, text) of the lines that are not blank."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not a text file in UTF-8") from error
    return [(i, line.strip()) for i, line in enumerate(text.split("\n"), start=1) if line.strip()]
