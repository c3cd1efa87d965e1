"""Two programs that fight for one folder, with a SIGKILL now and then: one run is to come of it, whole.

`python -m tests.support.rivals FOLDER SECONDS SEED` starts `fit --resume` into one folder from two rivals, each again
and again, as requeued jobs do, kills a process of theirs now and then, and begins another run when one is whole. Prints
as JSON what came of it; with `--without-lock` it shows what the lock is for.
"""

import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from tests.support.fit_runs import Videos, equal_bits, final_bits, finish, log_of, start, tiny_config
from train import lock
from train.checkpoint import RunCheckpoints, read_checkpoint
from train.errors import InputError
from train.fit.config import FitConfig
from train.lock import Lock


def faults(config: FitConfig, expected: dict[str, torch.Tensor]) -> list[str]:
    """What is wrong with a run that has come to its end."""
    wrong = []
    try:
        lines = log_of(config)
    except ValueError:
        return ["a line of the log is none"]
    for event, known in (("step", 15), ("epoch", 3)):
        numbers = [line["step"] for line in lines if line["event"] == event]
        if len(set(numbers)) < len(numbers) or numbers != sorted(numbers) or numbers[-1:] != [15]:
            wrong.append(f"{event}s of the log: {numbers}")
        elif event == "epoch" and len(numbers) != known:
            wrong.append(f"epochs of the log: {numbers}")
    for path in (*RunCheckpoints(config.out / "checkpoints", 3).by_age(), config.out / "checkpoints" / "best.pt"):
        try:
            read_checkpoint(path)
        except InputError as error:
            wrong.append(str(error))
    if not equal_bits(final_bits(config.out), expected):
        wrong.append("other bits than the unbroken run's")
    with Lock(config.out):  # which a killed rival may have left, but not locked
        pass
    names = {path.name for path in config.out.iterdir()}
    if names != {"log.jsonl", "recipe.json", "checkpoints"}:
        wrong.append(f"in the folder: {names}")
    return wrong


@dataclass
class Rival:
    """One who starts runs."""

    said: Path
    processes: list[int] = field(default_factory=list)
    since: float | None = None
    """When one of the processes was found to have ended, and another not."""

    def has_ended(self) -> bool:
        """Whether all processes have. Where one has, the others are given 10 s, as by torchrun."""
        left = [process for process in self.processes if not _has_ended(process)]
        if left and len(left) < len(self.processes):
            self.since = self.since or time.monotonic()
            if time.monotonic() > self.since + 10:
                for process in left:
                    os.kill(process, signal.SIGKILL)
        return not left


def fight(folder: Path, seconds: float, seed: int) -> dict[str, Any]:
    """Let two rivals fight for `seconds` at least, of one process each and of two, turn by turn.

    Every run that comes of it is compared with an unbroken one.
    """
    rng = random.Random(seed)
    videos = Videos.make(folder / "data")
    expected, began = [], time.monotonic()
    for processes in (1, 2):
        whole = tiny_config(folder / f"whole{processes}")
        assert finish(start(whole, videos, processes, folder / "whole.txt")) == [0] * processes
        expected.append(final_bits(whole.out))
    duration = (time.monotonic() - began) / 2
    counts: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    wrong: list[list[str]] = []
    began = time.monotonic()
    while time.monotonic() < began + seconds or counts["runs"] < 2 or not (counts["refused"] and counts["killed"]):
        out, processes = folder / f"run{counts['runs']}", 1 + counts["runs"] % 2
        config = tiny_config(out, resume=True, checkpoint_every=1, log_every=1)
        rivals = [Rival(folder / f"{out.name}-{number}.txt") for number in range(2)]
        done = False
        while not done:
            for rival in rivals:
                if not rival.processes:
                    lock.PATIENCE = rng.choice((0, 0.2, 3))
                    rival.processes, rival.since = start(config, videos, processes, rival.said), None
                    counts["started"] += 1
            time.sleep(rng.uniform(0, 0.3 * duration))
            victim = rng.choice(rng.choice(rivals).processes)
            if rng.random() < 0.3 and not _has_ended(victim):
                os.kill(victim, signal.SIGKILL)
                counts["killed"] += 1
            for rival in rivals:
                if rival.has_ended():
                    done = done or finish(rival.processes) == [0] * processes
                    rival.processes = []
        while not all(rival.has_ended() for rival in rivals):
            time.sleep(0.01)
        for rival in rivals:
            finish(rival.processes)
        wrong += [[out.name, *found]] if (found := faults(config, expected[processes - 1])) else []
        for rival in rivals:
            for line in rival.said.read_text().splitlines():
                if "is in use by process" in line:
                    counts["refused"] += 1
                elif re.match(r"error|Traceback|\w+Error", line):
                    errors[line[:80]] += 1
        shutil.rmtree(out)
        counts["runs"] += 1
    return {"seconds": round(time.monotonic() - began), **counts, "errors": errors, "wrong": wrong}


def _has_ended(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


if __name__ == "__main__":
    torch.set_num_threads(1)
    place, seconds, seed, *rest = sys.argv[1:]
    without = patch.multiple(Lock, take=Lock._make_folder, is_lost=False) if "--without-lock" in rest else nullcontext()
    with without:
        print(json.dumps(fight(Path(place), float(seconds), int(seed)), indent=1))
