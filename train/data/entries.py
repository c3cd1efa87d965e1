"""What a data set consists of: entries (one clip's file or folder and its class) in a split (train, val or test)."""

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from train.errors import InputError

Kind = Literal["video", "frames"]

_TEXT = r"(?:[^{}]|\{\{|\}\})*"
_PATTERN = re.compile(rf"{_TEXT}\{{0?(?::0?\d{{0,2}}d?)?\}}{_TEXT}", re.DOTALL)


@dataclass(frozen=True)
class Entry:
    """A video and the number of its class: a video file, or a folder that holds its frames as pictures.

    Raises InputError for a pattern that does not make one name of one number.
    """

    path: Path
    label: int
    kind: Kind = "video"
    num_frames: int | None = None
    """Its length in frames where a list or an index says so; a frame folder whose length is not given is counted."""
    pattern: str | None = None
    """How the pictures of a frame folder are named, as `str.format` takes it, such as `img_{:05d}.jpg`; None finds the
    pattern by looking into the folder."""
    first: int = 1
    """The number in the name of a frame folder's first picture."""
    packets: str = field(default="", compare=False, repr=False)
    """What an index keeps of a video file's packets (`train.data.reader.known`); the file is looked into without it."""

    def __post_init__(self) -> None:
        if self.pattern is not None and ("\0" in self.pattern or not _PATTERN.fullmatch(self.pattern)):
            raise InputError(
                f"{self.path}: got pattern {self.pattern[:80]!r}, expected one with one number, of less than 100 "
                "digits, such as 'img_{:05d}.jpg'"
            )


@dataclass(frozen=True)
class Split:
    """The entries of one part of a data set, in a fixed order, and the names of its classes in the order of labels.

    Raises InputError for an entry whose label has no name.
    """

    name: str
    entries: tuple[Entry, ...]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        for entry in self.entries:
            if not 0 <= entry.label < len(self.class_names):
                raise InputError(
                    f"{self.name}: {entry.path} has label {entry.label}, out of range: "
                    f"there are {len(self.class_names)} classes"
                )

    def __len__(self) -> int:
        return len(self.entries)


def fingerprint(split: Split) -> str:
    """A text that differs for other videos, other labels or another order, but not for another folder above them."""
    rows = [(entry.path.parent.name, entry.path.name, entry.label) for entry in split.entries]
    digest = hashlib.sha256(json.dumps([split.class_names, rows]).encode()).hexdigest()
    return f"{len(split)} entries, digest {digest[:16]}"
