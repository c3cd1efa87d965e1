"""Kinetics' own tables (Kay et al., 2017): `label,youtube_id,time_start,time_end,split`, and sometimes `is_cc`.

The videos are in one folder or in a folder for each class, which may have underscores for blanks. They are named
`<youtube_id>_<start>_<end>` with six digits for each time, as the usual downloads are, or `<youtube_id>` alone.
"""

from collections.abc import Sequence
from pathlib import Path

from train.data.entries import Entry, Split
from train.data.sources.files import VideoFolder
from train.data.sources.text import merged_names, numbered_rows, unicode_form, unique
from train.errors import InputError

_COLUMNS = ("label", "youtube_id", "time_start", "time_end")


def read_kinetics(path: Path, root: Path | None = None, class_names: Sequence[str] | None = None) -> Split:
    """The clips of the table at `path`, in its order.

    A clip that is nowhere stays in the split, under the name that it should have: what is missing is to be counted.

    Args:
        path: the table.
        root: the folder of the videos; by default the one that the table is in.
        class_names: names of the classes, in the order of the labels; by default the table's own, sorted.

    Raises:
        InputError: no such file, no clip in it, one twice, a column that is missing, a label that is empty or is none
            of `class_names`, a time that is no number; names file and line.
    """
    rows = numbered_rows(path)
    _, header = next(rows, (1, []))
    lacking = [column for column in _COLUMNS if column not in header]
    if lacking:
        raise InputError(f"{path}, line 1: expected the columns {', '.join(_COLUMNS)}; there is no {lacking[0]}")
    clips = []
    for line, row in rows:
        if len(row) != len(header):
            raise InputError(f"{path}, line {line}: expected {len(header)} fields, got {len(row)}")
        clips.append((line, dict(zip(header, row, strict=True))))
    if class_names is None:
        class_names = merged_names(path, {clip["label"] for _, clip in clips} - {""})
    labels = {unicode_form(class_name): i for i, class_name in enumerate(class_names)}

    videos = VideoFolder(path.parent if root is None else root)
    numbered = []
    for line, clip in clips:
        where, label = f"{path}, line {line}", unicode_form(clip["label"])
        if label not in labels:
            raise InputError(f"{where}: {label!r} is none of the {len(labels)} classes")
        start, end = (_seconds(where, column, clip[column]) for column in ("time_start", "time_end"))
        stem = f"{clip['youtube_id']}_{start:06d}_{end:06d}"
        folders = (label, label.replace(" ", "_"), "")
        found = videos.find(folders, (stem, clip["youtube_id"]))
        numbered.append((line, Entry(found or videos.root / label / f"{stem}.mp4", labels[label])))
    return Split(path.stem, unique(path, numbered), tuple(class_names))


def _seconds(where: str, column: str, text: str) -> int:
    try:
        seconds = round(float(text))
    except (ValueError, OverflowError):
        seconds = -1
    if seconds < 0:
        raise InputError(f"{where}: {column} must be a number of seconds from 0, got {text!r}")
    return seconds
