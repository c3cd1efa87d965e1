"""Clips a second from video files to batches: this project's reading beside the usual pipeline.

The usual pipeline has the same frames and the same crops: it asks decord, with one thread, for the frames, resizes and
crops each with Pillow, makes it float32, normalizes it and collates that. This project leaves out frames that no wanted
one needs, crops out of what was decoded, resizes all frames of a clip at once, and hands over bytes, which are
normalized on the network's device.
"""

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench import report
from bench.machine import Machine, describe
from bench.memory import Growth, growth
from bench.options import check_least
from bench.timing import Time, interleaved, summary
from bench.videos import KINDS, make_files
from tam_triton.clips import IMAGENET_MEAN, IMAGENET_STD, normalize
from train.data.batches import collate
from train.data.dataset import ClipKey, TrainingClips
from train.data.entries import Entry, Split
from train.data.loader import GuardedLoader, Loading
from train.data.reader.with_decord import import_decord
from train.data.sampling import Indices
from train.data.transforms import Augmentation, random_flip

Files = Literal["k400", "k400-transcoded", "ssv2", "ssv2-transcoded"]

NAMES = ("left", "right")  # of two classes, so that flips swap labels as they do in Something-Something
AGREEMENT = 0.25  # of the distance to the mirrored clip: one pipeline resizes once, the other may twice


@dataclass(frozen=True)
class Data:
    """What to read, and how often."""

    files: tuple[Files, ...] = ("k400", "k400-transcoded", "ssv2", "ssv2-transcoded")
    """k400: 340 × 256, H.264, 300 frames, dense sampling; ssv2: 427 × 240, VP9, 48 frames, segments; transcoded: the
    same after `python -m train prepare --transcode`."""
    videos: int = 2
    """Files of each."""
    clips: int = 8
    """Clips of 8 frames that are read in a round."""
    rounds: int = 5
    """Rounds, in each of which every candidate is timed once."""
    workers: tuple[int, ...] = (1, 2)
    """Numbers of worker processes; without any, the process itself is always measured."""
    opens: int = 2000
    """How often files are opened to see whether memory grows; 0 leaves it out."""
    out: Path | None = None
    """A JSON file for the results."""

    def __post_init__(self) -> None:
        check_least(self, videos=1, clips=1, rounds=1, opens=0)
        if not self.files:
            raise ValueError("files: got none, expected at least one kind")
        for count in self.workers:
            if count < 1 or self.clips % count:
                raise ValueError(f"workers: got {count}, expected at least 1 and a divisor of {self.clips} clips")


@dataclass(frozen=True)
class Row:
    """One kind of files, read in one way.

    Attributes:
        pipeline: "decoding" (frames alone), "ours" or "usual".
        workers: processes that read; 0: the process that measures, and nothing beside it.
        time: of a clip, in ms: that of a round over its clips. CPU time without workers, by the clock with them.
        over_usual: clips a second over those of the usual pipeline in the same rounds; None for decoding alone.
        clip_bytes: that a worker hands over for a clip.
        file_kib: mean size of the files.
    """

    files: str
    pipeline: str
    workers: int
    time: Time
    clips_per_second: float
    over_usual: float | None
    clip_bytes: int
    file_kib: float


class Decoding(TrainingClips):
    """The frames of a clip as they are decoded, and nothing done to them."""

    def __getitem__(self, key: ClipKey) -> Any:
        rng = np.random.default_rng((self.seed, key.epoch, key.index, 0))
        return self.read(self.split.entries[key.index], lambda num_frames: self.sampling.train(num_frames, rng))


class PerFrame(Augmentation):
    """The augmentation that is usual: Pillow resizes, crops and resizes each frame, which then becomes float32."""

    def __call__(
        self, frames: Tensor, label: int, mirrored: Sequence[int | None], rng: np.random.Generator
    ) -> tuple[Tensor, int]:
        """`frames` (T, H, W, 3) uint8 as a normalized clip (T, 3, S, S), with the draws of `Augmentation`."""
        pictures = [Image.fromarray(frame) for frame in frames.numpy()]
        width, height = pictures[0].size
        scale = 256 / min(width, height)
        size = round(width * scale), round(height * scale)
        top, left, crop_height, crop_width = self.draw_crop(size[1], size[0], rng)
        clip = []
        for picture in pictures:
            crop = picture.resize(size, Image.Resampling.BILINEAR) if scale != 1 else picture
            crop = crop.crop((left, top, left + crop_width, top + crop_height))
            crop = crop.resize((self.crop_size, self.crop_size), Image.Resampling.BILINEAR)
            clip.append(torch.from_numpy(np.asarray(crop).copy()))
        flipped, label = random_flip(torch.stack(clip), label, mirrored, rng, self.flip)
        mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        pixels = flipped.permute(0, 3, 1, 2).contiguous().float().div_(255)
        return pixels.sub_(mean).div_(deviation), label


class Usual(TrainingClips):
    """decord as it is usually called: opened, asked for its length and for the frames, without a guard."""

    def read(self, entry: Entry, choose: Callable[[int], Indices]) -> Tensor:
        """The frames (T, H, W, 3)."""
        reader = import_decord().VideoReader(str(entry.path), num_threads=1)
        return torch.from_numpy(reader.get_batch(choose(len(reader))).asnumpy())


def run(options: Data) -> list[Row]:
    """Prints a table and what memory did; writes the JSON file if one is asked for."""
    torch.set_num_threads(1)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
    machine = describe("cpu", 1)
    print(heading(machine, options))
    rows: list[Row] = []
    grown: list[Growth] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        entries = files_made(options, Path(folder))
        candidates = {name: Candidates(name, entries[name], options) for name in options.files}
        for candidate in candidates.values():
            stack.callback(candidate.close)
            # First of all: processes that are forked from one in which H.264 was decoded may hang or crash.
            candidate.start_workers()
        for name in options.files:
            rows += candidates[name].measure()
            print("\n".join(line(row) for row in rows if row.files == name), flush=True)
        if options.opens:
            every = [entry.path for name in options.files for entry in entries[name]]
            grown.append(growth(every, options.opens))
            print(f"\n{grown[0]}")
    if options.out is not None:
        report.write_json(options.out, machine, options, rows=rows, memory=grown)
    return rows


def files_made(options: Data, folder: Path) -> dict[str, list[Entry]]:
    """The files of each kind, made in processes of their own, of which nothing stays behind."""
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn"), max_workers=2) as executor:
        made = {name: executor.submit(make_files, name, folder, options.videos) for name in options.files}
        return {name: entries.result() for name, entries in made.items()}


class Candidates:
    """The pipelines over files of one kind: in this process, and in as many workers as asked for."""

    def __init__(self, name: str, entries: Sequence[Entry], options: Data) -> None:
        self.name, self.options = name, options
        split, sampling = Split(name, tuple(entries), NAMES), KINDS[name].sampling
        self.clips: dict[str, TrainingClips] = {
            "decoding": Decoding(split, sampling, Augmentation(), 0),
            "ours": TrainingClips(split, sampling, Augmentation(), 0),
            "usual": Usual(split, sampling, PerFrame(), 0),
        }
        self.keys = [ClipKey(epoch, epoch % len(entries)) for epoch in range(options.clips)]
        self.file_kib = sum(entry.path.stat().st_size for entry in entries) / len(entries) / 1024
        self.loaders = {(pipeline, 0): self.loader(pipeline, 0) for pipeline in self.clips}
        self.loaders |= {
            (p, workers): self.loader(p, workers) for workers in options.workers for p in ("ours", "usual")
        }

    def loader(self, pipeline: str, workers: int) -> GuardedLoader[Any]:
        """All clips of a round, in as many batches as keep the workers equally busy."""
        size = 1 if workers == 0 else min(4, self.options.clips // workers)
        batches = [self.keys[start : start + size] for start in range(0, len(self.keys), size)]
        together = list if pipeline == "decoding" else collate
        return GuardedLoader(self.clips[pipeline], batches, together, Loading(workers, pin_memory=False))

    def start_workers(self) -> None:
        """Let the workers read once."""
        for (_, workers), loader in self.loaders.items():
            if workers:
                exhaust(loader)()

    def measure(self) -> list[Row]:
        """Every candidate in turn. Raises RuntimeError where the pipelines' clips differ."""
        count = self.options.clips
        clip_bytes = agree(self.name, self.clips["ours"], self.clips["usual"], self.keys)
        clip_bytes["decoding"] = cast(Tensor, self.clips["decoding"][self.keys[0]]).nbytes
        names = {f"{pipeline} {workers}": (pipeline, workers) for pipeline, workers in self.loaders}
        calls = {text: exhaust(self.loaders[key]) for text, key in names.items()}
        alone = {text: calls[text] for text, (_, workers) in names.items() if workers == 0}
        beside = {text: call for text, call in calls.items() if text not in alone}
        times = cpu_times(alone, self.options.rounds) | interleaved(beside, "cpu", self.options.rounds)
        return [
            Row(
                files=self.name,
                pipeline=pipeline,
                workers=workers,
                time=Time(times[text].median / count, times[text].spread / count, times[text].rounds),
                clips_per_second=1e3 * count / times[text].median,
                over_usual=None if pipeline == "decoding" else times[f"usual {workers}"].median / times[text].median,
                clip_bytes=clip_bytes[pipeline],
                file_kib=self.file_kib,
            )
            for text, (pipeline, workers) in names.items()
        ]

    def close(self) -> None:
        """End the workers."""
        for loader in self.loaders.values():
            loader.close()


def cpu_times(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Time]:
    """CPU time of the calls in turn, ms, all threads of this process together: what a core would take, busy or not."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            samples[name].append(1e3 * (time.process_time() - start))
    return {name: summary(values[1:]) for name, values in samples.items()}


def exhaust(loader: GuardedLoader[Any]) -> Callable[[], None]:
    """A call that reads all batches and keeps none. It raises RuntimeError where a clip is not what was asked for."""

    def read() -> None:
        for batch in loader:
            if failures := getattr(batch, "failures", ()):
                raise RuntimeError(f"clips cannot be read: {failures}")

    return read


def agree(name: str, ours: TrainingClips, usual: TrainingClips, keys: Sequence[ClipKey]) -> dict[str, int]:
    """The bytes of a clip in each pipeline, after a look at whether their clips are the same.

    Raises RuntimeError where they are not: where one is not much nearer to the other than to the other's mirror image.
    """
    for key in keys[:4]:
        batch, other = collate([ours[key]]), collate([usual[key]])
        clips = normalize(batch.clips)
        apart, mirrored = ((clips - these).abs().mean() for these in (other.clips, other.clips.flip(-1)))
        if apart > AGREEMENT * mirrored or not torch.equal(batch.labels, other.labels):
            raise RuntimeError(f"{name}: the pipelines' clips differ by {apart:.2f} standard deviations on the mean")
    return {"ours": batch.clips.nbytes, "usual": other.clips.nbytes}


def heading(machine: Machine, options: Data) -> str:
    """What is measured, on what, and the names of the columns."""
    columns = (
        f"{'files':>16} {'KiB each':>9} {'pipeline':>9} {'workers':>8} {'ms a clip':>16} {'clips/s':>8} "
        f"{'over usual':>11} {'MB a clip':>10}"
    )
    return (
        f"{machine}\n{options.clips} clips × 8 frames a round, 1 thread in each process, normalizing of bytes left to "
        f"the GPU; ms of CPU time for 0 workers, else by the clock\n\n{columns}"
    )


def line(row: Row) -> str:
    """One row of the table."""
    ratio = report.MISSING if row.over_usual is None else f"{row.over_usual:.2f}×"
    return (
        f"{row.files:>16} {row.file_kib:>9.0f} {row.pipeline:>9} {row.workers:>8} {row.time!s:>16} "
        f"{row.clips_per_second:>8.1f} {ratio:>11} {row.clip_bytes / 1e6:>10.2f}"
    )
