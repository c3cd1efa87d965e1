"""Data sets as they are given out: a file for each form of list, and `read_split`, which is told the form."""

from pathlib import Path
from typing import Literal

from train.data.entries import Split
from train.data.sources.kinetics import read_kinetics
from train.data.sources.lists import read_frames_list, read_list
from train.data.sources.something import read_something
from train.data.sources.text import read_class_names, read_classes
from train.data.sources.tree import read_tree, split_folders
from train.errors import InputError

__all__ = [
    "Source",
    "read_class_names",
    "read_frames_list",
    "read_kinetics",
    "read_list",
    "read_something",
    "read_split",
    "read_tree",
    "split_folders",
]

Source = Literal["list", "frames_list", "kinetics", "something", "tree"]


def read_split(
    source: Source, path: Path, root: Path | None = None, classes: Path | None = None, frames: bool | None = None
) -> Split:
    """The split that `path` lists in the form `source`; a tree is listed by itself.

    Args:
        source: the form; nothing is guessed.
        path: the list, table or JSON file, or the root of the tree.
        root: the folder that the videos are in; by default the one of the list.
        classes: the names of the classes, a line each in the order of the labels; for "something" the file of labels.
            The sorted names that occur, by default, for "kinetics" and "tree"; needed by the others.
        frames: whether the videos of "something" are folders of frames; by default V1's are and V2's are not.

    Raises InputError.
    """
    if source == "something":
        if classes is None:
            raise InputError("classes: the form 'something' needs its file of labels, such as labels.json")
        return read_something(path, classes, root, frames)
    names, first = (None, 0) if classes is None else read_classes(classes)
    if source == "kinetics":
        return read_kinetics(path, root, names)
    if source == "tree":
        return read_tree(path, names)
    if names is None:
        raise InputError(f"classes: the form {source!r} needs a file with the names of the classes, a line each")
    return (read_list if source == "list" else read_frames_list)(path, names, root, first_label=first)
