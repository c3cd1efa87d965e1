"""What opening thousands of videos does to a process's memory: measured in a fresh one, as what ran before counts."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from train.data.entries import Entry
from train.data.reader import open_frames

WARM_UP = 100  # opens, until libraries are loaded and the allocator's heap has its size


@dataclass(frozen=True)
class Growth:
    """Resident memory, in MiB, after the first `warm_up` opens and after `opens` more."""

    warm_up: int
    opens: int
    before: float
    after: float

    def __str__(self) -> str:
        return (
            f"resident after {self.warm_up} opens: {self.before:.1f} MiB, after {self.opens} more: {self.after:.1f} MiB"
        )


def growth(paths: Sequence[Path], opens: int, warm_up: int = WARM_UP) -> Growth:
    """Opens the videos in turn in a process of its own, reading the first 8 frames of each. Linux only."""
    command = [sys.executable, "-m", "bench.memory", str(warm_up), str(opens), *map(str, paths)]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent)
    before, after = json.loads(found.stdout)
    return Growth(warm_up, opens, before, after)


def resident() -> float:
    """Resident memory of this process, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main(warm_up: int, opens: int, paths: Sequence[Path]) -> None:
    """Prints resident memory after `warm_up` opens and after `opens` more."""
    before = 0.0
    for number in range(warm_up + opens):
        if number == warm_up:
            before = resident()
        frames = open_frames(Entry(paths[number % len(paths)], 0))
        frames.read(range(min(8, len(frames))))
    print(json.dumps([before, resident()]))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), [Path(argument) for argument in sys.argv[3:]])
