"""Writes the synthetic tasks of `render` as data sets of encoded video files, as real ones come: files, lists, names.

- `spec.json`: what was written; there only when all of it was
- `classes.txt`: the names of the classes, a line each, in the order of their labels
- `train.txt`, `val.txt`: the lists, `path label` lines with paths relative to the folder
- `train/00000.mp4`, …: the videos; H.264 in mp4 and VP9 in webm take turns within each class
"""

import json
import multiprocessing
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal, cast

import av
import numpy as np
from tqdm import tqdm

from train.atomic import write_text
from train.data.reader.files import name_for_ffmpeg
from train.demo.render import CLASS_NAMES, Frames, Task, render
from train.errors import InputError

Split = Literal["train", "val"]

FORMAT = 1  # goes up whenever the same spec gives other files, so that no stale data set is taken for it
FRAME_RATE = 12

# One group of pictures a file: a sparse read of so short a clip is faster straight through than with seeks.
# The bytes may depend on the frames alone: one thread, no random identifiers in the container ("bitexact"), and none of
# x264's macroblock tree, whose decisions change with what uninitialised memory holds.
CODECS = {
    "mp4": ("libx264", {"crf": "20", "g": "32", "bf": "2", "preset": "superfast", "x264-params": "mbtree=0"}),
    "webm": ("libvpx-vp9", {"crf": "30", "b": "0", "g": "32", "deadline": "realtime", "cpu-used": "8"}),
}


@dataclass(frozen=True)
class DatasetSpec:
    """Which data set: two equal specs give the same files."""

    task: Task
    train: int
    """Number of training videos."""
    val: int
    """Number of validation videos."""
    seed: int

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of every class, in the order of their labels."""
        return CLASS_NAMES[self.task]

    @property
    def folder(self) -> str:
        """A folder name of its own for every spec."""
        return f"{self.task}-{self.train}-{self.val}-seed{self.seed}"


def prepare_dataset(parent: Path, spec: DatasetSpec, processes: int = 2) -> Path:
    """Write the data set `spec` below the folder `parent`, or find it there; returns its own folder.

    It is written beside its place and moved there when it is complete, so an interrupted writer leaves nothing that
    could be mistaken for a data set. Raises InputError where the place is taken by something else.
    """
    root = parent / spec.folder
    manifest = json.dumps({"format": FORMAT, **asdict(spec)}, indent=1)
    if root.exists():
        if not (root / "spec.json").is_file():
            raise InputError(f"{root}: is something else than a data set (it has no spec.json); move it away")
        if (root / "spec.json").read_text() == manifest:
            return root
        shutil.rmtree(root)

    unfinished = parent / f"{spec.folder}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    write_text(unfinished / "classes.txt", "".join(f"{name}\n" for name in spec.class_names))
    for split in ("train", "val"):
        (unfinished / split).mkdir()
        lines = [f"{_file_name(spec, split, i)} {i % len(spec.class_names)}\n" for i in range(getattr(spec, split))]
        write_text(unfinished / f"{split}.txt", "".join(lines))
    _write_videos(unfinished, spec, processes)
    write_text(unfinished / "spec.json", manifest)
    unfinished.rename(root)
    return root


def _write_videos(root: Path, spec: DatasetSpec, processes: int) -> None:
    jobs: list[tuple[Split, int]] = [("train", i) for i in range(spec.train)] + [("val", i) for i in range(spec.val)]
    write = partial(_write_one, root, spec)
    with tqdm(total=len(jobs), desc=f"writing {spec.task}", unit="video") as progress:
        if processes <= 1:
            for job in jobs:
                write(job)
                progress.update()
            return
        # Spawned and not forked: torch's threads may be running in this process by now.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, mp_context=context) as pool:
            for _ in pool.map(write, jobs, chunksize=8):
                progress.update()


def _write_one(root: Path, spec: DatasetSpec, job: tuple[Split, int]) -> None:
    split, index = job
    rng = video_generator(spec, split, index)
    frames = render(spec.task, index % len(spec.class_names), rng)
    write_video(root / _file_name(spec, split, index), frames)


def video_generator(spec: DatasetSpec, split: Split, index: int) -> np.random.Generator:
    """The random numbers that a video is drawn from: of its own for every video."""
    return np.random.default_rng((spec.seed, tuple(CLASS_NAMES).index(spec.task), split == "val", index))


def _file_name(spec: DatasetSpec, split: Split, index: int) -> str:
    container = tuple(CODECS)[index // len(spec.class_names) % len(CODECS)]
    return f"{split}/{index:05d}.{container}"


def write_video(path: Path, frames: Frames, frame_rate: int = FRAME_RATE) -> None:
    """Encode RGB `frames` (T, H, W, 3), H and W even, with the codec that the suffix of `path` stands for."""
    codec, options = CODECS[path.suffix.removeprefix(".")]
    with av.open(name_for_ffmpeg(path), "w", options={"fflags": "bitexact"}) as container:
        stream = cast(av.VideoStream, container.add_stream(codec, rate=frame_rate, options=options))
        stream.codec_context.thread_count = 1
        stream.pix_fmt = "yuv420p"
        stream.height, stream.width = frames.shape[1:3]
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
