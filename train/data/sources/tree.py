"""A plain folder tree: `class/clip.mp4`, or `class/clip/` for a folder of frames; of one split, or below its name."""

import sys
from collections.abc import Sequence
from pathlib import Path

from train.data.entries import Entry, Split
from train.data.sources.files import visible
from train.data.sources.text import merged_names, unicode_form
from train.errors import InputError

TRAIN, OTHERS = ("train", "training"), ("val", "valid", "validation", "test", "testing")
"""What folders of splits are called."""


def split_folders(root: Path) -> list[Path]:
    """The folders of splits below `root`, as `train/class/clip.mp4` and `val/class/clip.mp4`; none where it is one.

    Raises InputError where there is no such folder, or where some of its folders are splits and others are not.
    """
    folders = [folder for folder in visible(root) if folder.is_dir()]
    train, others = ([f for f in folders if f.name.lower() in names] for names in (TRAIN, OTHERS))
    splits = sorted(train + others)
    if train and others and len(splits) < len(folders):
        rest = next(folder for folder in folders if folder not in splits)
        raise InputError(
            f"{root}: holds {splits[0].name} and {splits[1].name} beside other folders, such as {rest.name}; "
            "prepare the folder of each split by itself"
        )
    return splits if splits == folders else []


def read_tree(root: Path, class_names: Sequence[str] | None = None) -> Split:
    """The clips below `root`: each folder in it is a class, each file or folder in that a clip, in sorted order.

    Every file that is not hidden counts as a clip, so that none is left out unseen: checking the data set reports those
    that are no videos.

    Args:
        root: the folder of class folders.
        class_names: names of the classes, in the order of the labels; by default those of the folders that are not
            empty, sorted.

    Raises:
        InputError: no such folder, no clip in it, or a class folder that is none of `class_names`.
    """
    clips = {folder: visible(folder) for folder in visible(root) if folder.is_dir()}
    folders = [folder for folder in clips if clips[folder]]
    if class_names is None and (empty := [folder.name for folder in clips if not clips[folder]]):
        print(f"note: {root}: folders without a clip are no classes: {', '.join(empty)}", file=sys.stderr)
    class_names = merged_names(root, (folder.name for folder in folders)) if class_names is None else class_names
    labels = {unicode_form(class_name): i for i, class_name in enumerate(class_names)}
    entries: list[Entry] = []
    for folder in folders:
        label = labels.get(unicode_form(folder.name))
        if label is None:
            raise InputError(f"{folder}: is none of the {len(labels)} classes")
        entries.extend(Entry(clip, label, "frames" if clip.is_dir() else "video") for clip in clips[folder])
    if not entries:
        raise InputError(f"{root}: expected videos as class/clip.mp4, found none")
    return Split(root.resolve().name, tuple(entries), tuple(class_names))
