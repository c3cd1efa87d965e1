"""List files of the authors' code and of mmaction2: a line for each video.

- videos: `path label`
- frame folders: `folder num_frames label`

Paths are relative to a root, labels are integers from 0. The numbers are what follows the last blanks, so paths may
hold blanks. Empty lines and Windows line ends are let pass.
"""

from collections.abc import Sequence
from pathlib import Path

from train.data.entries import Entry, Split
from train.data.sources.text import label_number, numbered_lines, unique
from train.errors import InputError


def read_list(path: Path, class_names: Sequence[str], root: Path | None = None, name: str | None = None) -> Split:
    """The videos of the list file at `path`, in its order.

    Args:
        path: the list file, UTF-8.
        class_names: the names of the classes, in the order of the labels.
        root: the folder that the paths in the list start from; by default the list's own.
        name: of the split; by default the list's own, without its suffix.

    Raises:
        InputError: no such file, no entry in it, one twice, or a line that is not `path label`; names file and line.
    """
    root = path.parent if root is None else root
    numbered = []
    for line, text in numbered_lines(path):
        where = f"{path}, line {line}"
        video, label = _fields(where, text, "path label", 1)
        numbered.append((line, Entry(root / video, label_number(where, label, class_names))))
    return Split(name or path.stem, unique(path, numbered), tuple(class_names))


def read_frames_list(
    path: Path,
    class_names: Sequence[str],
    root: Path | None = None,
    name: str | None = None,
    pattern: str | None = None,
    first: int = 1,
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
        entry = Entry(root / folder, label_number(where, label, class_names), "frames", int(count), pattern, first)
        numbered.append((line, entry))
    return Split(name or path.stem, unique(path, numbered), tuple(class_names))


def _fields(where: str, text: str, form: str, numbers: int) -> list[str]:
    fields = text.rsplit(maxsplit=numbers)
    if len(fields) != numbers + 1:
        raise InputError(f"{where}: expected `{form}`, got {text!r}")
    return fields
