"""How a process's memory grows over thousands of opened videos."""

import os
from collections.abc import Sequence
from pathlib import Path

from train.entries import Entry
from train.reader import Decoder, open_frames


def memory_after_opens(
    paths: Sequence[Path], opens: int = 2000, every: int = 200, decoder: Decoder = "decord"
) -> list[tuple[int, float]]:
    """Open the videos at `paths` in turn, read 8 frames of each; (opens so far, resident MiB) after each `every` opens.

    Linux only. To be called in a process of its own: what ran before counts.
    """
    measured = []
    for i in range(1, opens + 1):
        frames = open_frames(Entry(paths[i % len(paths)], 0), decoder)
        frames.read([len(frames) * k // 8 for k in range(8)])
        if i % every == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            measured.append((i, pages * os.sysconf("SC_PAGE_SIZE") / 2**20))
    return measured
