"""A plain folder tree: `class/clip.mp4`, or `class/clip/` for a folder of frames."""

from collections.abc import Sequence
from pathlib import Path

from train.data.entries import Entry, Split
from train.data.sources.files import visible
from train.data.sources.text import merged_names, unicode_form
from train.errors import InputError


def read_tree(root: Path, class_names: Sequence[str] | None = None) -> Split:
    """The clips below `root`: each folder in it is a class, each file or folder in that a clip, in sorted order.

    Every file that is not hidden counts as a clip, so that none is left out unseen: checking the data set reports those
    that are no videos.

    Args:
        root: the folder of class folders.
        class_names: names of the classes, in the order of the labels; by default the folders' own, sorted.

    Raises:
        InputError: no such folder, no clip in it, or a class folder that is none of `class_names`.
    """
    folders = [folder for folder in visible(root) if folder.is_dir()]
    class_names = merged_names(root, (folder.name for folder in folders)) if class_names is None else class_names
    labels = {unicode_form(class_name): i for i, class_name in enumerate(class_names)}
    entries: list[Entry] = []
    for folder in folders:
        label = labels.get(unicode_form(folder.name))
        if label is None:
            raise InputError(f"{folder}: is none of the {len(labels)} classes")
        entries.extend(Entry(clip, label, "frames" if clip.is_dir() else "video") for clip in visible(folder))
    if not entries:
        raise InputError(f"{root}: expected videos as class/clip.mp4, found none")
    return Split(root.resolve().name, tuple(entries), tuple(class_names))
