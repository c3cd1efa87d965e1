"""Where videos are: files, folders, patterns and streams, told by how they are written; nothing is opened."""

import glob
import hashlib
import os
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from train.data.entries import Entry
from train.data.sources.files import CAMERA, CAMERAS, STDIN, VIDEO_SUFFIXES
from train.errors import InputError

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_stream(place: str) -> bool:
    """Whether `place` is read as it comes: `-`, `camera`, an address with `://`, a device or a named pipe.

    A file or folder of such a name is meant by `./camera`.
    """
    if place in (STDIN, CAMERA) or _ADDRESS.match(place):
        return True
    try:
        mode = os.stat(place).st_mode  # noqa: PTH116 (a device that is not there is one all the same)
    except (OSError, ValueError):
        return place.startswith(CAMERAS)
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)


def shown_name(place: str) -> str:
    """`place` as it may be printed and stored: without the user and password of an address."""
    return "standard input" if place == STDIN else re.sub(r"^([A-Za-z][A-Za-z0-9+.-]*://)[^/@]*@", r"\1", place)


def find_videos(places: Sequence[str]) -> tuple[Entry, ...]:
    """The videos at `places`: files, folders of such, at any depth, folders of the frames of one video, and patterns.

    A pattern is what has `*`, `?` or `[` in it and is no file's name; `**` stands for folders at any depth. Raises
    InputError for one that matches nothing and a folder that holds neither; what is no folder is taken for a video.
    What is named twice comes once.
    """
    found = (entry for place in places for path in _matches(place) for entry in _videos_at(path))
    return tuple({entry.path: entry for entry in found}.values())  # patterns match folders and what is in them


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the numbers below `count`, at even distances."""
    return list(range(count)) if count <= most else [(2 * i + 1) * count // (2 * most) for i in range(most)]


def output_paths(entries: Sequence[Entry], folder: Path, suffix: str) -> dict[Path, Entry]:
    """A file below `folder` for each video: its path below the current folder, or from the root, and `suffix`.

    So videos of one name in two folders have files of their own, the same ones whatever else is asked for. Raises
    InputError where two of other paths would share one all the same.
    """
    here, owners = Path.cwd(), dict[Path, Entry]()
    for entry in entries:
        path = absolute(entry.path)
        place = path.relative_to(here) if path.is_relative_to(here) else path.relative_to(path.anchor)
        output = folder / place.with_name(place.name + suffix)
        if absolute(owners.setdefault(output, entry).path) != path:
            raise InputError(f"{output}: would be of two videos, {owners[output].path} and {entry.path}")
    return owners


def absolute(path: Path) -> Path:
    """`path` from the root on, without `..`; links stay as they are."""
    return Path(os.path.abspath(path))  # noqa: PTH100 (links stay as they are)


def fingerprint(path: Path) -> str:
    """The SHA-256 of a file. Raises OSError."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _matches(place: str) -> list[Path]:
    if not glob.has_magic(place) or os.path.lexists(place):
        return [Path(place)]
    found = sorted(glob.glob(place, recursive=True))  # noqa: PTH207 (absolute patterns too)
    if not found:
        raise InputError(f"{place}: matches nothing, expected a pattern of video files or folders of them")
    return [Path(path) for path in found]


def _videos_at(place: Path) -> list[Entry]:
    if not place.is_dir():
        return [Entry(place, 0)]
    files = sorted(file for file in _below(place) if not file.name.startswith("."))
    videos = [Entry(file, 0) for file in files if file.suffix.lower() in VIDEO_SUFFIXES]
    if not videos and not any(file.suffix.lower() in (".jpg", ".jpeg", ".png") for file in files):
        raise InputError(f"{place}: holds no videos ({', '.join(VIDEO_SUFFIXES)}) and no frames (.jpg, .png)")
    return videos or [Entry(place, 0, "frames")]


def _below(place: Path) -> Iterator[Path]:
    """All that is below a folder, also by links, where these lead to no folder that is below it anyway.

    `Path.rglob` follows none: it would pass over a class that lies on another disk.
    """
    folders, links, seen = [place], list[Path](), set[tuple[int, int]]()
    while folders or links:
        folder = folders.pop() if folders else links.pop()
        status = folder.stat()
        if (inode := (status.st_dev, status.st_ino)) in seen:
            continue
        seen.add(inode)
        try:
            items = sorted(folder.iterdir(), reverse=True)
        except PermissionError:  # such as a disk's lost+found
            print(f"note: {folder}: may not be looked into, what is in it is left out", file=sys.stderr)
            continue
        for item in items:
            yield item
            if item.is_dir():
                (links if item.is_symlink() else folders).append(item)
