"""Two files of results of one command: what became faster or slower by more than both files' noise.

Rows are the same where all their words are, such as shape, layout, candidate and network, and the number of workers or
of frames computed again.
Of each time the medians are compared, and differ where they are apart by more than both spreads, half of each
interquartile range, together. The rest is counted, as is what only one file has. A comparison says something where both
ran on one machine at one time of day; what machines and options differ in stands above the table.
"""

import json
import math
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

ABOUT = ("machine", "options")
UNCOMPARED = ("out", "profile", "plot", "memory", "proton")  # options: where results go
NUMBERS = ("workers", "recompute")  # that name a row, beside its words
Key = tuple[str, ...]


@dataclass(frozen=True)
class Compare:
    """Files that `--out` of ops, model, train, profile, stream or data wrote."""

    before: tyro.conf.Positional[Path]
    """The first file."""
    after: tyro.conf.Positional[Path]
    """The second."""
    limit: float | None = None
    """End with status 1 if a time is slower by more than this share, and by more than the noise; None: never."""
    everything: bool = False
    """Print rows without a difference, too."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 0:
            raise ValueError(f"limit: got {self.limit}, expected a share of 0 or more")


@dataclass(frozen=True)
class Change:
    """One time in both files: medians and spreads in milliseconds."""

    key: Key
    before: tuple[float, float]
    after: tuple[float, float]

    @property
    def share(self) -> float:
        """Of the time before that it is slower; below 0 faster. Of no time it is infinite: a kernel may be new."""
        return self.after[0] / self.before[0] - 1 if self.before[0] else math.inf if self.after[0] else 0.0

    @property
    def differs(self) -> bool:
        """By more than both spreads together."""
        return abs(self.after[0] - self.before[0]) > self.before[1] + self.after[1]

    def __str__(self) -> str:
        times = " → ".join(f"{median:.3f}±{spread:.3f}" for median, spread in (self.before, self.after))
        verdict = ("slower" if self.share > 0 else "faster") if self.differs else "within noise"
        return f"{' '.join(self.key):<60} {times:>29} ms {self.share:>+7.1%}  {verdict}"


def run(options: Compare) -> list[Change]:
    """Prints what differs, the largest share first.

    Raises:
        SystemExit: 1 if the limit is passed; 2 if a file is no file of results, or nothing is in both.
    """
    documents = [read(path) for path in (options.before, options.after)]
    first, second = (dict(times(document)) for document in documents)
    changes = [Change(key, first[key], second[key]) for key in first if key in second]
    if not changes:
        refuse(f"after: got {options.after}, of which no time is in {options.before}, expected results of one command")
    for part in ABOUT:
        for line in differences(part, *(document.get(part, {}) for document in documents)):
            print(line)
    shown = [change for change in changes if options.everything or change.differs]
    for change in sorted(shown, key=lambda one: -abs(one.share)):
        print(change)
    slower, faster = ([c for c in changes if c.differs and (c.share > 0) == more] for more in (True, False))
    print(
        f"{len(changes)} times in both: {len(slower)} slower, {len(faster)} faster, "
        f"{len(changes) - len(slower) - len(faster)} within noise; "
        f"{len(first) - len(changes)} only before, {len(second) - len(changes)} only after"
    )
    if options.limit is not None and (over := [change for change in slower if change.share > options.limit]):
        print(f"{len(over)} slower by more than {options.limit:.1%}")
        sys.exit(1)
    return changes


def refuse(message: str) -> None:
    """Ends the command as tyro does where an option is wrong."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def read(path: Path) -> dict[str, Any]:
    """A file that `report.write_json` wrote."""
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        document = str(error)
    if not isinstance(document, dict) or not dict(times(document)):
        refuse(f"got {path}{f' ({document})' if isinstance(document, str) else ''}, expected results with times")
    counts = Counter(key for key, _ in times(document))
    if twice := [key for key, count in counts.items() if count > 1]:
        refuse(f"got {path} with more than one time of {' '.join(twice[0])!r}, expected rows with words of their own")
    return dict(document)


def times(document: dict[str, Any]) -> Iterator[tuple[Key, tuple[float, float]]]:
    """Every time of every row by what names it."""
    for table, rows in document.items():
        for row in rows if isinstance(rows, list) else ():
            if not isinstance(row, dict):
                continue
            named = [str(value) for value in row.values() if isinstance(value, str)]
            named += [f"{number} {row[number]}" for number in NUMBERS if number in row]
            for name, value in row.items():
                if isinstance(value, dict) and {"median", "spread"} <= value.keys():
                    yield (table, *named, name), (float(value["median"]), float(value["spread"]))


def differences(part: str, before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """What the two say otherwise of the machine, or of the options."""
    for name in {**before, **after}:
        if name not in UNCOMPARED and before.get(name) != after.get(name):
            yield f"{part}, {name}: {before.get(name)} → {after.get(name)}"
