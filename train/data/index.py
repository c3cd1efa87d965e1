"""The index of a data set: what `python -m train prepare` found out about every entry, and what training reads.

One file of JSON lines. The first says what is indexed, each other one what is known of one entry. A line is appended
in one piece as soon as its entry has been looked at, so a writer may be killed at any moment: another goes on where it
ended. Where an entry has several lines the last holds. What a data set has gained since is looked at alone.
"""

import errno
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, get_args

from train.atomic import naming, replacing
from train.data.entries import Entry, Kind, Split
from train.data.reader.known import unpack
from train.errors import InputError
from train.fields import ADDED, check_types, from_plain, parse_json, require

FORMAT = 1  # goes up when older readers would misread newer files

Problem = Literal["missing", "short", "corrupt", "hung"]
"""Why an entry cannot be used: there is no such file; it has fewer frames than it should; it cannot be read, or not
surely; reading it did not end in time."""

PROBLEMS: tuple[Problem, ...] = get_args(Problem)


@dataclass(frozen=True)
class Header:
    """The first line of an index. Raises InputError for a field of another type, and for an index of nothing."""

    format: int
    split: str
    entries: int
    root: Path
    settings: dict[str, Any]
    list: str
    class_names: tuple[str, ...]
    from_here: Path = field(default=Path(), metadata=ADDED)

    def __post_init__(self) -> None:
        check_types(self)
        require(self, "entries", self.entries > 0, "at least 1")


@dataclass(frozen=True)
class Line:
    """Any other line. Raises InputError for a field of another type."""

    number: int
    path: Path
    label: int
    kind: Kind
    num_frames: int | None
    pattern: str | None
    first: int
    problem: Problem | None
    reason: str
    packets: str = field(default="", metadata=ADDED)

    def __post_init__(self) -> None:
        check_types(self)

    def check(self, header: Header) -> None:
        """Raise InputError unless the line can be one below `header`."""
        require(self, "number", 0 <= self.number < header.entries, f"0 to {header.entries - 1}")
        classes = len(header.class_names)
        require(self, "label", 0 <= self.label < classes, f"0 to {classes - 1}, there are {classes} classes")
        Entry(self.path, self.label, pattern=self.pattern)
        if self.packets:
            unpack(self.packets)


@dataclass(frozen=True)
class Checked:
    """What is known of one entry."""

    number: int
    """Its place in the list."""
    entry: Entry
    """As it is to be read: with its number of frames, if it can be."""
    problem: Problem | None = None
    reason: str = ""


class Index(NamedTuple):
    """A data set that has been looked at: what can be used of it, and what cannot."""

    split: Split
    """The usable entries, in the list's order."""
    left_out: tuple[Checked, ...]
    """All others, in the list's order."""

    @property
    def counts(self) -> dict[Problem, int]:
        """How many entries each problem has taken."""
        found = Counter(checked.problem for checked in self.left_out)
        return {problem: found[problem] for problem in PROBLEMS}

    def summary(self) -> str:
        """One line, such as `val: 19404 of 19796 usable; left out: 392 (2.0%), 300 missing, 92 corrupt`."""
        count, total = len(self.left_out), len(self.left_out) + len(self.split)
        kinds = "".join(f", {number} {problem}" for problem, number in self.counts.items() if number)
        usable = f"{self.split.name}: {len(self.split)} of {total} usable"
        return f"{usable}; left out: {count} ({count / total:.1%}){kinds}"


def read_index(path: Path, root: Path | None = None) -> Index:
    """The index at `path`.

    Args:
        path: a file that `prepare` wrote.
        root: the folder that its relative paths start from; by default the one that it was written for or, where that
            is gone, the one that lies as it did as seen from the index: both may have been moved together.

    Raises:
        InputError: no such file, no index, one of a newer format, or one that is not finished.
    """
    header, known = _load(path)
    total = header["entries"]
    if len(known) < total:
        raise InputError(f"{path}: is not finished, {len(known)} of {total} entries are checked; run `prepare` again")
    base = root or Path(header["root"])
    moved = path.parent / header.get("from_here", "")
    if root is None and "from_here" in header and moved.is_dir() and not base.is_dir():
        base = moved.resolve()
    checked = [_from_line(known[number], base) for number in range(total)]
    usable = tuple(item.entry for item in checked if item.problem is None)
    left_out = tuple(item for item in checked if item.problem is not None)
    return Index(Split(header["split"], usable, tuple(header["class_names"])), left_out)


def require_some(split: Split, remedy: str, most: int = 64) -> None:
    """Look whether the videos of `split` are where they should be, at some from all over it.

    Raises InputError, which ends with `remedy`, where none of them is there.
    """
    looked_at = split.entries[:: max(1, len(split) // most)]
    if not any(os.access(entry.path, os.R_OK) for entry in looked_at):
        raise InputError(
            f"{split.name}: {len(looked_at)} of its {len(split)} videos were looked for and none is there to be read, "
            f"such as {looked_at[0].path}; {remedy}"
        )


class IndexWriter:
    """Writes the index of `split` at `path`, or goes on with one that an earlier run left. A context manager.

    What that knows of the entries is kept, also where others have come or gone, classes have other numbers, or all of
    them have moved. Paths in it are relative to `root`; `settings` is what else decides what is written; `become` are
    the entries that those of `split` become, by default themselves.

    Raises InputError where the file there is none of this split and these settings: it is never overwritten.
    """

    def __init__(
        self,
        path: Path,
        split: Split,
        root: Path,
        settings: Mapping[str, Any],
        become: Sequence[Entry] | None = None,
    ) -> None:
        self.path, self.root = path, root.absolute()
        self.header = {
            "format": FORMAT,
            "split": split.name,
            "entries": len(split),
            "root": str(self.root),
            "settings": dict(settings),
            "list": _digest(_to_line(Checked(i, entry), self.root) for i, entry in enumerate(split.entries)),
            "class_names": list(split.class_names),
            "from_here": os.path.relpath(self.root, self.path.parent.absolute()),
        }
        self.split, self.become = split, become or split.entries
        self.problems: dict[int, Problem | None] = {}
        """The entries that are done with, by their numbers, and what is wrong with them."""
        if path.exists() and path.stat().st_size:
            self._take_up()

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        if os.fstat(self._file).st_size == 0:
            self._append(self.header)
        return self

    def __exit__(self, *_: object) -> None:
        with naming(self.path):
            os.fsync(self._file)
        os.close(self._file)

    def write(self, checked: Checked) -> None:
        """Append what is known of an entry."""
        packets = checked.entry.packets
        self._append(_to_line(checked, self.root) | ({"packets": packets} if packets else {}))
        self.problems[checked.number] = checked.problem

    def _append(self, line: Mapping[str, Any]) -> None:
        data = _line(line)
        with naming(self.path):
            if os.write(self._file, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _take_up(self) -> None:
        complete = _complete_length(self.path)
        if complete == 0 and _line(self.header).startswith(self.path.read_bytes()):  # killed while it wrote that
            os.truncate(self.path, 0)
            return
        if complete == 0:
            raise InputError(f"{self.path}: is no index, and is not overwritten; choose another place")
        header, known = _load(self.path)
        differing = [key for key in self.header if header.get(key) != self.header[key]]
        apart = [key for key in ("split", "settings", "root") if key in differing]
        if apart and (apart != ["root"] or "list" in differing):  # the same list elsewhere has moved
            key = apart[0]
            what = f"made with {header.get(key)}" if key == "settings" else f"of another {key} ({header.get(key)})"
            raise InputError(f"{self.path}: holds an index {what}; delete it or choose another place")
        if differing:
            known = self._renumbered(known)
            with replacing(self.path) as unfinished:
                unfinished.write_bytes(b"".join(map(_line, (self.header, *known.values()))))
        else:
            os.truncate(self.path, complete)
        self.problems = {number: line["problem"] for number, line in known.items()}

    def _renumbered(self, known: Mapping[int, Mapping[str, Any]]) -> dict[int, dict[str, Any]]:
        """What is `known` of the entries that are listed now, by the numbers and with the labels that they have now.

        What could not be used is left out: it may have been put right.
        """
        by_place = {_place(line): line for line in known.values() if line["problem"] is None}
        lines = {}
        for number, (entry, becomes) in enumerate(zip(self.split.entries, self.become, strict=True)):
            line = _to_line(Checked(number, becomes), self.root)
            former = by_place.get(_place(line))
            same_frames = former and entry.num_frames in (None, former["num_frames"])
            if former and same_frames and becomes.first in (1, former["first"]):  # 1 where nothing says it
                lines[number] = {**former, "number": number, "label": entry.label}
        return lines


def _line(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode(errors="surrogateescape") + b"\n"


def _load(path: Path) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    """The first line, and the last line of each entry. What a killed writer left of a line does not count."""
    try:
        lines = path.read_bytes()[: _complete_length(path)].split(b"\n")[:-1]
    except OSError as error:
        remedy = f"; `python -m train prepare {path}` makes the index of a folder" if path.is_dir() else ""
        raise InputError(f"{path}: {(error.strerror or str(error)).lower()}{remedy}") from error
    header: Any = None
    newer = ""
    known: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            content = parse_json(line.decode(errors="surrogateescape"))
            if header is None:
                written = content.get("format") if isinstance(content, dict) else None
                if isinstance(written, int) and written > FORMAT:
                    newer = f"{path}: is of format {written}, this version reads up to {FORMAT}"
                    break
                header, first = content, from_plain(Header, content, "header", newer=True)
            else:
                from_plain(Line, content, "line", newer=True).check(first)
                known[content["number"]] = content
        except InputError as error:
            raise InputError(f"{path}, line {number}: is no line of an index that `prepare` writes: {error}") from error
    if header is None:
        raise InputError(newer or f"{path}: is no index, it holds no complete line")
    return header, known


def _complete_length(path: Path) -> int:
    """Bytes up to the end of the last complete line."""
    return path.read_bytes().rfind(b"\n") + 1


def _place(line: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(line[key] for key in ("path", "kind", "pattern"))


def _to_line(checked: Checked, root: Path) -> dict[str, Any]:
    path = checked.entry.path.absolute()
    relative = path.relative_to(root) if path.is_relative_to(root) else path
    fields = {name: value for name, value in asdict(checked.entry).items() if name != "packets"}
    outcome = {"problem": checked.problem, "reason": checked.reason}
    return {"number": checked.number, **fields, "path": relative.as_posix(), **outcome}


def _from_line(line: Mapping[str, Any], root: Path) -> Checked:
    fields = {name: line[name] for name in ("label", "kind", "num_frames", "pattern", "first")}
    entry = Entry(root / line["path"], **fields, packets=line.get("packets", ""))
    return Checked(line["number"], entry, line["problem"], line["reason"])


def _digest(lines: Iterable[Mapping[str, Any]]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(json.dumps(line, sort_keys=True).encode())
    return digest.hexdigest()
