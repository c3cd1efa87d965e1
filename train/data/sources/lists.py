"""List files of the authors' code and of mmaction2: a line for each video.

- videos: `path label`
- frame folders: `folder num_frames label`

Paths are relative to a root, labels are integers from 0, or from 1 where the file of classes counts so (UCF101). The
numbers are what follows the last blanks, so paths may hold blanks. Empty lines and Windows line ends are let pass. A
list in which no line has a label, as UCF101's test lists, takes them from the folders, if these are named as classes.
"""

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from train.data.entries import Entry, Split
from train.data.sources.text import FROM_ONE, label_number, numbered_lines, unicode_form, unique
from train.errors import InputError


def read_list(path: Path, class_names: Sequence[str], root: Path | None = None, first_label: int = 0) -> Split:
    """The videos of the list file at `path`, in its order.

    Args:
        path: the list file, UTF-8.
        class_names: the names of the classes, in the order of the labels.
        root: the folder that the paths in the list start from; by default the list's own.
        first_label: the label of the first class.

    Raises:
        InputError: no such file, no entry in it, one twice, or a line that is not `path label`; names file and line.
    """
    root = path.parent if root is None else root
    lines, numbered, videos = numbered_lines(path), [], []
    # A last field, after a blank, that is a number, right or wrong.
    has_labels = any(re.search(r"\s[+-]*\d+$", text) for _, text in lines)
    by_folder = None if has_labels else _labels_of_folders(lines, class_names)
    for line, text in lines:
        where = f"{path}, line {line}"
        if by_folder is not None:
            video, number = text, by_folder[line]
        else:
            video, label = _fields(where, text, "path label", 1)
            number = label_number(where, label, class_names, first_label)
        numbered.append((line, Entry(root / video, number)))
        videos.append((line, video))
    folders = None if first_label else _labels_of_folders(videos, class_names)
    if folders and all(entry.label == folders[line] + 1 for line, entry in numbered):
        raise InputError(f"{path}: each label is that of its folder's class and 1 more; {FROM_ONE}")
    return Split(path.stem, unique(path, numbered), tuple(class_names))


def read_frames_list(
    path: Path,
    class_names: Sequence[str],
    root: Path | None = None,
    pattern: str | None = None,
    first: int = 1,
    first_label: int = 0,
) -> Split:
    """The frame folders of the list file at `path`, in its order; the arguments are those of `read_list`.

    `pattern` and `first` say how the frames are named, as in `Entry`. Raises InputError, also for a number of frames
    below 1.
    """
    root = path.parent if root is None else root
    numbered = []
    for line, text in numbered_lines(path):
        where = f"{path}, line {line}"
        folder, count, label = _fields(where, text, "folder num_frames label", 2)
        if not (count.isascii() and count.isdigit() and int(count) > 0):
            raise InputError(f"{where}: the number of frames must be an integer from 1, got {count!r}")
        number = label_number(where, label, class_names, first_label)
        numbered.append((line, Entry(root / folder, number, "frames", int(count), pattern, first)))
    return Split(path.stem, unique(path, numbered), tuple(class_names))


def _labels_of_folders(lines: Sequence[tuple[int, str]], class_names: Sequence[str]) -> dict[int, int] | None:
    """The labels by the numbers of lines without one; None where a folder is not named as a class."""
    labels = {unicode_form(name): label for label, name in enumerate(class_names)}
    folders = {line: unicode_form(PurePosixPath(text).parent.name) for line, text in lines}
    return {line: labels[name] for line, name in folders.items()} if labels.keys() >= set(folders.values()) else None


def _fields(where: str, text: str, form: str, numbers: int) -> list[str]:
    fields = text.rsplit(maxsplit=numbers)
    if len(fields) != numbers + 1:
        remedy = "; a list without labels is read where folders are named as classes" if numbers == 1 else ""
        raise InputError(f"{where}: expected `{form}`, got {text!r}{remedy}")
    return fields
