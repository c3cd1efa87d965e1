"""Something-Something's own files (Goyal et al., 2017).

- V2: `labels.json` gives every template its label (`{"Holding something": "0"}`); `train.json` and `validation.json`
  list the videos, each with an `id` and a `template` that has brackets: `Holding [something]`. Videos are `<id>.webm`.
- V1: a file of labels, a template a line, and tables `id;template`. A video is the folder `<id>` of frames `00001.jpg`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from train.data.entries import Entry, Split
from train.data.sources.files import VideoFolder, visible
from train.data.sources.text import numbered_rows, read_class_names, read_json, unicode_form, unique
from train.errors import InputError


def read_something(path: Path, labels: Path, root: Path | None = None, frames: bool | None = None) -> Split:
    """The videos of the list at `path`, in its order; one that is nowhere stays in the split, to be counted as missing.

    Args:
        path: `train.json`, `validation.json` (V2) or a table `id;template` (V1; told by the suffix not being .json).
        labels: `labels.json`, or a text file with a template a line.
        root: the folder of the videos; by default the one that the list is in.
        frames: whether a video is a folder of frames; by default it is for V1 and is not for V2.

    Raises:
        InputError: a file that is not as described, a template without a label, a video twice; names file and line (of
            JSON: the number in the list).
    """
    class_names = read_labels(labels)
    numbers = {class_name: i for i, class_name in enumerate(class_names)}
    is_json = path.suffix.lower() == ".json"
    frames = not is_json if frames is None else frames
    root = path.parent if root is None else root
    videos = VideoFolder(root, deep=False) if not frames else None
    if frames:
        visible(root)  # raises where there is no such folder
    numbered = []
    for line, video, template in _json_rows(path) if is_json else _table_rows(path):
        class_name = unicode_form(template.replace("[", "").replace("]", ""))
        if class_name not in numbers:
            raise InputError(f"{path}, line {line}: {template!r} is none of the {len(numbers)} templates of {labels}")
        if videos is None:
            entry = Entry(root / video, numbers[class_name], "frames")
        else:
            entry = Entry(videos.find(("",), (video,)) or root / f"{video}.webm", numbers[class_name])
        numbered.append((line, entry))
    return Split(path.stem, unique(path, numbered), class_names)


def read_labels(path: Path) -> tuple[str, ...]:
    """The templates in the order of their labels. Raises InputError where the labels do not count up from 0."""
    if path.suffix.lower() != ".json":
        return read_class_names(path)
    content = read_json(path)
    if not (isinstance(content, Mapping) and content and all(str(label).isdecimal() for label in content.values())):
        raise InputError(f'{path}: expected labels in the form {{"template": "0", …}}')
    by_label = {int(label): unicode_form(template) for template, label in content.items()}
    if sorted(by_label) != list(range(len(content))):
        raise InputError(f"{path}: the labels of {len(content)} templates must be 0 to {len(content) - 1}, each once")
    names = tuple(by_label[label] for label in range(len(content)))
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{path}: templates must differ in more than their Unicode form, {twice[0]!r} is there twice")
    return names


def _json_rows(path: Path) -> Iterator[tuple[int, str, str]]:
    content: Any = read_json(path)
    if not isinstance(content, list):
        raise InputError(f"{path}: expected a list of videos, got {type(content).__name__}")
    for number, video in enumerate(content, start=1):
        if not (isinstance(video, Mapping) and "id" in video):
            raise InputError(f"{path}, video {number}: expected an id and a template, got {video!r}")
        if not isinstance(video.get("template"), str):
            raise InputError(f"{path}, video {number}: has no template; the labels of the test set are not public")
        yield number, str(video["id"]), video["template"]


def _table_rows(path: Path) -> Iterator[tuple[int, str, str]]:
    for line, row in numbered_rows(path, ";"):
        if len(row) != 2 or not all(row):
            raise InputError(f"{path}, line {line}: expected `id;template`, got {';'.join(row)!r}")
        yield line, row[0], row[1]
