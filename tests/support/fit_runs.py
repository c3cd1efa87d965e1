"""Tiny training runs for tests, in processes that can be killed: a process that has imported torch forks one for each.

`python -m tests.support.fit_runs sweep FOLDER PROCESSES KILLS SEED` trains without a break, then again and again with a
SIGKILL at a random moment, each time resumed, and prints as JSON what came of it. `pair FOLDER` stops two processes.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from train.checkpoint import RunCheckpoints, read_checkpoint
from train.data.batches import TrainingBatches
from train.data.entries import Entry, Split
from train.data.index import Checked, IndexWriter
from train.data.loader import Loading
from train.errors import InputError
from train.fit.config import FitConfig
from train.fit.fit import fit
from train.fit.stopping import stop_on_signals
from train.recipe import Data
from train.recipes import RECIPES
from train.team import join_team

CLASSES = ("falls", "rises", "stays")
FRAMES = 6


def make_split(folder: Path, name: str, count: int) -> Split:
    """`count` folders of noisy 36 × 40 pictures, in which a bar falls, rises or stays."""
    entries = []
    for number in range(count):
        rng, label = np.random.default_rng((number, len(name))), number % len(CLASSES)
        place = folder / name / f"{number:03d}"
        place.mkdir(parents=True, exist_ok=True)
        start = int(rng.integers(36))
        for frame in range(FRAMES):
            picture = rng.integers(0, 120, (36, 40, 3), dtype=np.uint8)
            picture[(start + (4, -4, 0)[label] * frame) % 36] = 250
            Image.fromarray(picture).save(place / f"img_{frame + 1:05d}.png")
        entries.append(Entry(place, label, "frames", FRAMES, "img_{:05d}.png"))
    return Split(name, tuple(entries), CLASSES)


def tiny_config(out: Path, **changes) -> FitConfig:
    """A recipe of 15 steps in 3 epochs, with dropout, so that a lost random state would be seen."""
    demo = RECIPES["demo"]
    recipe = replace(
        demo,
        data=Data(num_classes=3),
        model=replace(demo.model, dropout=0.3),
        sampling=replace(demo.sampling, num_segments=4),
        augmentation=replace(demo.augmentation, crop_size=32),
        optimization=replace(demo.optimization, batch_size=4, lr_batch_size=4, lr=0.005, epochs=3, groups=True),
        validation=replace(demo.validation, short_side=36, crop_size=32),
        seed=3,
    )
    config = FitConfig(
        recipe=recipe, out=out, loading=Loading(workers=0), checkpoint_every=2, log_every=2, threads=1, device="cpu"
    )
    return replace(config, **changes)


@dataclass(frozen=True)
class Videos:
    train: Split
    val: Split

    @classmethod
    def make(cls, folder: Path) -> "Videos":
        return cls(make_split(folder, "train", 22), make_split(folder, "val", 7))

    def written(self, folder: Path) -> list[str]:
        """Their indices in `folder`, as options of `fit`."""
        for split in (self.train, self.val):
            with IndexWriter(folder / f"{split.name}.jsonl", split, folder, {}) as writer:
                for number, entry in enumerate(split.entries):
                    writer.write(Checked(number, entry, None))
        return ["--data.train", str(folder / "train.jsonl"), "--data.val", str(folder / "val.jsonl")]


def run_one(config: FitConfig, videos: Videos, environment=None) -> int:
    """What `python -m train fit` does, in this process; its exit status."""
    try:
        with stop_on_signals() as stop, join_team("cpu", 150, environment or {}) as team:
            outcome = fit(config, videos.train, videos.val, team, stop)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0 if outcome.signal is None else 128 + outcome.signal


def start(config: FitConfig, videos: Videos, processes: int, errors: Path) -> list[int]:
    """Fork the processes of a run; their numbers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(processes):
        if child := os.fork():
            children.append(child)
            continue
        status = 1
        try:
            with errors.open("a") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            # Pytest's go elsewhere.
            sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
            environment = {"RANK": str(rank), "WORLD_SIZE": str(processes)}
            os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
            status = run_one(config, videos, environment if processes > 1 else {})
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            sys.stderr.flush()
            os._exit(status)
    return children


def finish(children: list[int], timeout: float = 60) -> list[int]:
    """Wait for all; their exit statuses, −9 for one that was killed."""
    statuses: dict[int, int] = {}
    deadline = time.monotonic() + timeout
    while len(statuses) < len(children):
        for child in children:
            if child not in statuses:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    statuses[child] = os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            for child in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            raise TimeoutError(f"only {statuses} of {children} ended")
        time.sleep(0.005)
    return [statuses[child] for child in children]


def log_of(config: FitConfig, event: str | None = None) -> list[dict[str, Any]]:
    """The lines of a run's log, or those of one kind of event."""
    lines = [json.loads(line) for line in (config.out / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if event in (None, line["event"])]


def final_bits(out: Path) -> dict[str, torch.Tensor]:
    """All tensors of the last checkpoint by name: weights, momentum, the epoch's score."""
    *_, newest = sorted((out / "checkpoints").glob("step-*.pt"))
    tensors = {}

    def collect(name, value):
        if isinstance(value, torch.Tensor):
            tensors[name] = value
        elif isinstance(value, dict | list | tuple):
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                collect(f"{name}.{key}", item)

    collect("", read_checkpoint(newest))
    return tensors


def equal_bits(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def sweep(folder: Path, processes: int, kills: int, seed: int) -> dict:
    """Kill runs `kills` times; whether each one that came to its end did so with the unbroken run's bits."""
    rng = random.Random(seed)
    videos = Videos.make(folder / "data")
    whole = tiny_config(folder / "whole")
    began = time.monotonic()
    assert finish(start(whole, videos, processes, folder / "whole.txt")) == [0] * processes
    duration = time.monotonic() - began
    expected = final_bits(whole.out)
    report: dict[str, Any] = {"seconds": round(duration, 2), "killed": [], "ended": [], "survivors": []}
    number = 0
    while len(report["killed"]) < kills or (folder / f"run{number}").exists():
        config = tiny_config(folder / f"run{number}", resume=True)
        children = start(config, videos, processes, folder / f"run{number}.txt")
        if len(report["killed"]) < kills:
            time.sleep(rng.uniform(0, 0.4 * duration))
            victim = rng.randrange(processes)
            if os.waitpid(children[victim], os.WNOHANG)[0] == 0:
                os.kill(children[victim], signal.SIGKILL)
                statuses = finish(children)
                if statuses[victim] == -signal.SIGKILL:
                    saved = sorted(path.stem for path in (config.out / "checkpoints").glob("step-*.pt"))
                    report["killed"].append(saved[-1] if saved else "none")
                    if report["killed"][-2:-1] == report["killed"][-1:]:
                        duration *= 1.1  # the machine has become slower since it was measured
                    report["survivors"] += [status for rank, status in enumerate(statuses) if rank != victim]
                    continue
            else:
                children.pop(victim)
                finish(children)
        else:
            assert finish(children) == [0] * processes, (folder / f"run{number}.txt").read_text()
        report["ended"].append(equal_bits(final_bits(config.out), expected))
        number += 1
    return report


def pair(folder: Path) -> dict:
    """Two processes that mix and distort clips: one of them is told to stop; the run is resumed; another is resumed by
    one process alone."""
    videos = Videos.make(folder / "data")
    whole = beyond(tiny_config(folder / "whole"))
    assert finish(start(whole, videos, 2, folder / "whole.txt")) == [0, 0]
    stopped = beyond(tiny_config(folder / "stopped", resume=True))
    children = start(stopped, videos, 2, folder / "stopped.txt")
    while not list((stopped.out / "checkpoints").glob("step-*.pt")):
        time.sleep(0.01)
    os.kill(children[1], signal.SIGTERM)
    report: dict = {"told to stop": finish(children)}
    shutil.copytree(stopped.out, folder / "alone")
    report["resumed"] = finish(start(stopped, videos, 2, folder / "resumed.txt"))
    report["equal"] = equal_bits(final_bits(stopped.out), final_bits(whole.out))
    report["equal scores"] = log_of(stopped, "epoch") == log_of(whole, "epoch")
    alone = replace(stopped, out=folder / "alone")
    report["alone"] = finish(start(alone, videos, 1, folder / "alone.txt"))
    report["bad"] = meet_bad_files(folder, videos)
    other = replace(stopped, recipe=replace(stopped.recipe, seed=4))
    report["other recipe"] = finish(start(other, videos, 2, folder / "other.txt"))
    return report


def beyond(config: FitConfig) -> FitConfig:
    """`config` with all that a recipe may have beyond the published ones."""
    recipe = config.recipe
    augmentation = replace(recipe.augmentation, color_jitter=(0.4,), randaugment="2,9", mixup=0.4, cutmix=1.0)
    optimization = replace(recipe.optimization, label_smoothing=0.1, class_weights="balanced")
    recipe = replace(recipe, augmentation=augmentation, optimization=optimization)
    return replace(config, recipe=recipe, compute=replace(config.compute, ema=0.9))


def without(split: Split, *numbers: int) -> Split:
    """`split`, but the files of some entries are not there."""
    entries = [replace(e, path=e.path / "missing") if i in numbers else e for i, e in enumerate(split.entries)]
    return replace(split, entries=tuple(entries))


def meet_bad_files(folder: Path, videos: Videos) -> list[list[int]]:
    """Two processes of which each meets one bad file, where one is allowed: unbroken, and stopped after the first."""
    order = [TrainingBatches(22, 4, 3, 3, rank, 2) for rank in range(2)]
    first, second = order[0][0][0].index, order[1][2][0].index
    bad = replace(videos, train=without(videos.train, first, second))
    configs = [tiny_config(folder / name, resume=True, checkpoint_every=1, log_every=1) for name in ("bad", "later")]
    statuses = [finish(start(configs[0], bad, 2, folder / "bad.txt"))]
    shutil.copytree(configs[0].out, configs[1].out)
    for path in RunCheckpoints(configs[1].out / "checkpoints", 3).by_age()[1:]:
        path.unlink()
    return [*statuses, finish(start(configs[1], bad, 1, folder / "later.txt"))]


if __name__ == "__main__":
    torch.set_num_threads(1)
    scenario, folder, *numbers = sys.argv[1:]
    scenarios: dict[str, Any] = {"sweep": sweep, "pair": pair}
    print(json.dumps(scenarios[scenario](Path(folder), *map(int, numbers))))
