"""`python -m train prepare`: looks at every video of a data set once, so that training need not be surprised by any.

Each entry is decoded in a process of its own that is killed when it takes too long. What was found goes into an index
(`train.data.index`), a line as soon as it is known: the command may be stopped or killed at any moment and, given
again, goes on.
"""

import functools
import os
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro
from tqdm import tqdm

from train.data.check import check
from train.data.entries import Entry, Split
from train.data.index import Checked, Index, IndexWriter, read_index
from train.data.killable import CRASHED, call_each, took_too_long
from train.data.reader import Decoder, VideoError, open_frames
from train.data.sources import Source, read_split
from train.data.transcode import scaled_size, transcode
from train.errors import InputError


@dataclass(frozen=True)
class PrepareConfig:
    """Check all videos of a data set, count their frames and write an index, which training reads."""

    dataset: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DATASET")]
    """The list, table or JSON file of the data set; for a tree its root."""
    source: Source
    """Form of the list: `list` has lines `path label`, `frames_list` lines `folder num_frames label`, `kinetics` is
    Kinetics' CSV, `something` Something-Something's JSON or CSV, `tree` means folders `class/clip.mp4`."""
    root: Path | None = None
    """Folder of the videos; by default the one that the list is in."""
    classes: Path | None = None
    """Names of the classes, a line each in the order of the labels, or `1 name`, `2 name`, … where labels count from 1;
    for `something` its file of labels. `kinetics` and `tree` do without: there the sorted names are numbered."""
    frames: bool | None = None
    """For `something`: whether videos are folders of frames. By default V1's are and V2's are not."""
    out: Path | None = None
    """The index; by default beside the data set, named as it is with `.index.jsonl` at the end. Only an unfinished
    index of this data set is written over."""
    processes: int = os.cpu_count() or 1
    """How many videos are looked at at a time."""
    timeout: float = 120.0
    """Seconds after which a video is taken for hung."""
    min_frames: int = 1
    """Videos with fewer frames are reported as short."""
    decoder: Decoder = "auto"
    """What training will decode with."""
    retry: bool = False
    """Look again at what an earlier run found missing, short, corrupt or hung."""
    transcode: Path | None = None
    """Folder in which to write every usable video anew, small and quick to read, as mp4; the index then names these."""
    short_side: int = 256
    """Of the transcoded videos, in pixels; smaller ones keep their size."""
    crf: int = 23
    """x264's constant quality of the transcoded videos: lower is better and larger."""

    def __post_init__(self) -> None:
        for name, least in {"processes": 1, "min_frames": 1, "short_side": 2, "crf": 0}.items():
            if getattr(self, name) < least:
                raise InputError(f"{name}: must be at least {least}, got {getattr(self, name)}")
        if not 0 < self.timeout < float("inf"):
            raise InputError(f"timeout: must be a positive number of seconds, got {self.timeout}")

    @property
    def index(self) -> Path:
        """Where the index is written."""
        return self.out or self.dataset.with_name(f"{self.dataset.name}.index.jsonl")


class Job(NamedTuple):
    """An entry to look at and, if it is to be transcoded, where to."""

    number: int
    entry: Entry
    target: Path | None


def prepare(config: PrepareConfig) -> Index:
    """Look at every entry of the data set that has not been looked at, write the index, print what was found.

    Returns the finished index. Raises InputError where the data set or the index cannot be used.
    """
    split = read_split(config.source, config.dataset, config.root, config.classes, config.frames)
    root = config.root or (config.dataset if config.source == "tree" else config.dataset.parent)
    settings = {"min_frames": config.min_frames}
    if config.transcode is not None:
        settings |= {"short_side": config.short_side, "crf": config.crf}
    jobs = _jobs(split, root, config.transcode)
    with IndexWriter(config.index, split, config.transcode or root, settings) as writer:
        done = {n for n, problem in writer.problems.items() if problem is None or not config.retry}
        todo = [job for job in jobs if job.number not in done]
        _work(config, todo, writer, finished=len(done))
    index = read_index(config.index)
    print(report(index, config.index))
    return index


def _jobs(split: Split, root: Path, target: Path | None) -> Sequence[Job]:
    if target is None:
        return [Job(number, entry, None) for number, entry in enumerate(split.entries)]
    jobs = []
    for number, entry in enumerate(split.entries):
        if not entry.path.is_relative_to(root):
            raise InputError(f"transcode: {entry.path} is not inside {root}, so it has no place in {target}")
        place = target / entry.path.relative_to(root)
        # The whole name stays, so that `a.webm` and `a.mp4` do not meet.
        job = Job(number, entry, place if place.suffix == ".mp4" else place.with_name(f"{place.name}.mp4"))
        if place.resolve() == entry.path.resolve():
            raise InputError(f"transcode: {target} is the folder of the videos themselves, which are not overwritten")
        jobs.append(job)
    return jobs


def _work(config: PrepareConfig, todo: Sequence[Job], writer: IndexWriter, finished: int) -> None:
    look = functools.partial(_look, config)
    left_out = sum(problem is not None for problem in writer.problems.values())
    with tqdm(total=finished + len(todo), initial=finished, desc=config.dataset.name, unit="video") as progress:
        for job, outcome in call_each(look, todo, config.processes, config.timeout):
            was_left_out = writer.problems.get(job.number) is not None
            if isinstance(outcome, TimeoutError):
                outcome = Checked(job.number, job.entry, "hung", took_too_long(config.timeout))
            elif isinstance(outcome, BrokenProcessPool):
                outcome = Checked(job.number, job.entry, "corrupt", CRASHED)
            elif isinstance(outcome, Exception):
                raise outcome
            writer.write(outcome)
            left_out += (outcome.problem is not None) - was_left_out
            progress.set_postfix(left_out=left_out, refresh=False)
            progress.update()


def _look(config: PrepareConfig, job: Job) -> Checked:
    """What is done for one entry, in a process of its own."""
    checked = check(job.number, job.entry, config.min_frames, config.decoder)
    if checked.problem is not None or job.target is None:
        return checked
    entry = Entry(job.target, job.entry.label, num_frames=checked.entry.num_frames)
    try:
        if not _is_transcoded(checked.entry, entry, config):
            transcode(checked.entry, job.target, config.short_side, config.crf)
    except VideoError as error:
        return Checked(job.number, job.entry, "corrupt", error.reason)
    return check(job.number, entry, config.min_frames, config.decoder)


def _is_transcoded(source: Entry, target: Entry, config: PrepareConfig) -> bool:
    """Whether an earlier run, killed before it could say so, left a file that is what this one would write."""
    try:
        height, width = open_frames(target).read([0]).shape[1:3]
    except VideoError:
        return False
    source_height, source_width = open_frames(source).read([0]).shape[1:3]
    return (width, height) == scaled_size((source_width, source_height), config.short_side)


def report(index: Index, path: Path, most: int = 20) -> str:
    """What `prepare` prints at its end: the counts, and the first `most` of the entries that cannot be used."""
    lines = [index.summary()]
    lines += [f"  {item.problem}: {item.entry.path}: {item.reason}" for item in index.left_out[:most]]
    if len(index.left_out) > most:
        lines.append(f"  … and {len(index.left_out) - most} more, all of them in the index")
    return "\n".join([*lines, f"index: {path}"])
