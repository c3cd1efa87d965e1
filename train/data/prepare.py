"""`python -m train prepare`: looks at every video of a data set once, so that training need not be surprised by any.

Each entry is decoded in a process of its own that is killed when it takes too long. What was found goes into an index
(`train.data.index`), a line as soon as it is known: the command may be stopped or killed at any moment and, given
again, goes on.
"""

import functools
import os
import shlex
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, NamedTuple, get_args

import tyro
from tqdm import tqdm

from train.data.check import check
from train.data.entries import Entry, Split
from train.data.index import Checked, Index, IndexWriter, read_index
from train.data.killable import CRASHED, call_each, took_too_long
from train.data.reader import Decoder, VideoError, open_frames
from train.data.sources import Source, read_split, split_folders
from train.data.sources.tree import TRAIN
from train.data.transcode import crf_of, scaled_size, transcode
from train.errors import InputError
from train.lock import Lock

LISTS = tuple(form for form in get_args(Source) if form != "tree")


@dataclass(frozen=True)
class PrepareConfig:
    """Check all videos of a data set, count their frames and write an index, which training reads."""

    dataset: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DATASET")]
    """The list, table or JSON file of the data set; for a tree its root."""
    source: Source | None = None
    """Form of the list: `list` has lines `path label`, `frames_list` lines `folder num_frames label`, `kinetics` is
    Kinetics' CSV, `something` Something-Something's JSON or CSV, `tree` means folders `class/clip.mp4`, or
    `train/class/clip.mp4` and `val/class/clip.mp4`, which get an index each. A folder is a tree by default."""
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
    def form(self) -> Source:
        """Of the data set. Raises InputError where it has to be named."""
        if self.source is None and not self.dataset.is_dir():
            if not self.dataset.exists():
                raise InputError(f"{self.dataset}: no such file or directory")
            raise InputError(f"source: is needed for a file such as {self.dataset}, one of {', '.join(LISTS)}")
        return self.source or "tree"

    @property
    def index(self) -> Path:
        """Where the index is written."""
        return self.out or self.dataset.with_name(f"{self.dataset.name}.index.jsonl")


class Job(NamedTuple):
    """An entry to look at and, if it is to be transcoded, where to."""

    number: int
    entry: Entry
    target: Path | None


def run_prepare(config: PrepareConfig) -> list[Index]:
    """Do what the command line asks for: `prepare`, also for a folder of splits, which get an index each.

    These have the classes of all splits. Raises InputError as `prepare`, and where nothing can be used.
    """
    indices = _prepare_all(config)
    for index in indices:
        if len(index.split) == 0:
            raise InputError(f"{config.dataset}: nothing in {index.split.name} can be used; the reasons stand above")
        if len(index.split.class_names) == 1:
            print(f"note: {index.split.name} has one class alone, {index.split.class_names[0]!r}", file=sys.stderr)
    return indices


def _prepare_all(config: PrepareConfig) -> list[Index]:
    folders = split_folders(config.dataset) if config.form == "tree" else []
    if not folders:
        return [prepare(config)]
    if config.out is not None:
        raise InputError(f"out: got {config.out}, but {config.dataset} holds {len(folders)} splits, an index for each")
    splits = [read_split("tree", folder, classes=config.classes) for folder in folders]
    if config.classes is None:
        class_names = sorted({name for split in splits for name in split.class_names})
        for folder, split in zip(folders, splits, strict=True):
            if absent := [name for name in class_names if name not in split.class_names]:
                print(f"note: {folder}: has no clip of {', '.join(absent)}", file=sys.stderr)
        splits = [_with_classes(split, class_names) for split in splits]
    parts = []
    for folder in folders:
        target = config.transcode and config.transcode / folder.name  # clips of two splits may have one name
        parts.append(replace(config, dataset=folder, transcode=target))
    indices = [prepare(part, split) for part, split in zip(parts, splits, strict=True)]
    train = [shlex.quote(str(part.index)) for part in parts if part.dataset.name.lower() in TRAIN]
    others = [shlex.quote(str(part.index)) for part in parts if part.dataset.name.lower() not in TRAIN]
    if train and others:
        print(f"next: python -m train fit own --data.train {train[0]} --data.val {others[-1]}")
    return indices


def _with_classes(split: Split, class_names: Sequence[str]) -> Split:
    """`split` with its labels counted in `class_names`, which hold its own."""
    labels = [class_names.index(name) for name in split.class_names]
    entries = tuple(replace(entry, label=labels[entry.label]) for entry in split.entries)
    return Split(split.name, entries, tuple(class_names))


def prepare(config: PrepareConfig, split: Split | None = None) -> Index:
    """Look at every entry of the data set that has not been looked at, write the index, print what was found.

    `split` is what the data set lists, where that has been read. Returns the finished index. Raises InputError where
    the data set or the index cannot be used.
    """
    split = split or read_split(config.form, config.dataset, config.root, config.classes, config.frames)
    root = config.root or (config.dataset if config.form == "tree" else config.dataset.parent)
    settings = {"min_frames": config.min_frames}
    if config.transcode is not None:
        settings |= {"short_side": config.short_side, "crf": config.crf}
    jobs = _jobs(split, root, config.transcode)
    become = [job.entry if job.target is None else Entry(job.target, job.entry.label) for job in jobs]
    with (
        Lock(config.index, is_file=True),
        IndexWriter(config.index, split, config.transcode or root, settings, become) as writer,
    ):
        if writer.problems:
            print(f"{config.index}: knows {len(writer.problems)} of {len(split)} already", file=sys.stderr)
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
    if crf_of(target.path) != config.crf:
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
