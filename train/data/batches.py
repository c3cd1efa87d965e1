"""From clips to batches: which clips in which order, worker processes that read them, and a guard over the workers.

The order is a function of the seed, the epoch and the step alone. A run that goes on at any step computes that step's
batch without looking at an earlier one; a global batch is the same whatever the number of processes that share it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train.data.dataset import ClipKey, EvaluationClips, Failure, Sample, TrainingClips, ViewKey, Views
from train.data.loader import GuardedLoader, Loading
from train.errors import InputError

# Samples after which the share of bad videos is taken seriously, where there are as many.
TRUSTED_SAMPLES = 1000

_NONE = torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True)
class Batch:
    """The clips that could be read, and what could not."""

    clips: Tensor
    """(N, T, S, S, 3) uint8, in evaluation all crops of a clip in a row."""
    labels: Tensor
    """(N,) int64."""
    failures: tuple[Failure, ...] = ()
    """Videos that could not be read: replaced in training, in evaluation left out."""
    missing: tuple[int, ...] = ()
    """Numbers of the entries of which a clip is absent here. In training only where no substitute was found."""
    indices: Tensor = _NONE
    """(N,) number of the entry that each clip was read from: `split.entries[index].path` is its file."""
    views: Tensor = _NONE
    """(N,) number of the view of its video, clip · crops + crop."""

    def __len__(self) -> int:
        return len(self.labels)

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory; called by the DataLoader."""
        tensors = ("clips", "labels", "indices", "views")
        return replace(self, **{name: getattr(self, name).pin_memory() for name in tensors})


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack what could be read."""
    read = [(sample, sample.clips) for sample in samples if sample.clips is not None]
    rows = [(sample.label, sample.index, sample.view + i) for sample, clips in read for i in range(len(clips))]
    labels, indices, views = torch.tensor(rows, dtype=torch.int64).reshape(-1, 3).T.contiguous()
    return Batch(
        clips=torch.cat([clips for _, clips in read]) if read else torch.empty(0, dtype=torch.uint8),
        labels=labels,
        failures=tuple(failure for sample in samples for failure in sample.failures),
        missing=tuple(sample.index for sample in samples if sample.clips is None),
        indices=indices,
        views=views,
    )


class TrainingBatches(Sequence[list[ClipKey]]):
    """The batches of one process over a whole run; `batches[i]` is its i-th, whatever was asked for before.

    A step's global batch of B clips is rows step·B to (step + 1)·B of the epoch's permutation. Rank r of W takes the
    r-th of W equal parts, and of that, with accumulation, the a-th of A: item step·A + a. So W may change at any step
    of a run, if B stays. The last n mod B rows of an epoch fill no batch and are dropped; they are others each epoch.

    Args:
        num_entries: n, entries of the split.
        batch_size: B, clips of a step over all processes and accumulated parts.
        epochs: of the whole run.
        seed: of the order.
        rank, world_size: which of how many processes this is.
        accumulate: A, parts that a process computes one after the other.
        balance: the label of each entry, (n,), for epochs with the same number of clips of every class, n / classes up
            to one: entries of a class with fewer come several times, with other frames and crops each time; of one with
            more a part does, another each epoch. None for every entry once.

    Raises:
        InputError: B is greater than n, or W·A does not divide it.
    """

    def __init__(
        self,
        num_entries: int,
        batch_size: int,
        epochs: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        balance: Sequence[int] | None = None,
    ) -> None:
        if balance is not None and len(balance) != num_entries:
            raise ValueError(f"balance: got {len(balance)} labels, expected one for each of {num_entries} entries")
        if accumulate < 1 or epochs < 1:
            raise InputError(f"accumulate and epochs must be at least 1, got {accumulate} and {epochs}")
        if not 1 <= batch_size <= num_entries:
            raise InputError(f"batch_size must be between 1 and the number of videos, {num_entries}; got {batch_size}")
        _check_rank(rank, world_size)
        parts = world_size * accumulate
        if batch_size % parts:
            raise InputError(
                f"batch_size: got {batch_size}, expected a multiple of {parts}: "
                f"{world_size} processes × {accumulate} accumulated parts"
            )
        self.num_entries, self.batch_size, self.epochs, self.seed = num_entries, batch_size, epochs, seed
        self.rank, self.accumulate, self.part_size = rank, accumulate, batch_size // parts
        self.balance = None if balance is None else np.asarray(balance, np.int64)
        self._order: tuple[int, NDArray[np.int64]] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch."""
        return self.num_entries // self.batch_size

    def __len__(self) -> int:
        return self.steps_per_epoch * self.epochs * self.accumulate

    def __getitem__(self, item: int) -> list[ClipKey]:  # type: ignore[override] # no slices
        """The keys of one batch."""
        if not 0 <= item < len(self):
            raise IndexError(f"batch {item} of {len(self)}")
        step, part = divmod(item, self.accumulate)
        epoch, step = divmod(step, self.steps_per_epoch)
        start = step * self.batch_size + (self.rank * self.accumulate + part) * self.part_size
        rows = self._epoch_order(epoch)[start : start + self.part_size]
        return [ClipKey(epoch, index, turn) for index, turn in rows.tolist()]

    def _epoch_order(self, epoch: int) -> NDArray[np.int64]:
        """(n, 2): entries in the epoch's order, and how often each came before; kept until another is asked for."""
        if self._order is None or self._order[0] != epoch:
            rng = np.random.default_rng((self.seed, epoch))
            if self.balance is None:
                order = np.stack([rng.permutation(self.num_entries), np.zeros(self.num_entries, np.int64)], 1)
            else:
                order = balanced_order(self.balance, rng)
            self._order = epoch, order
        return self._order[1]


def balanced_order(labels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """(n, 2): as many rows as there are `labels` (n,), of each class the same number up to one, in random order.

    A row is the number of an entry and how many of that entry there are besides, with lesser numbers. Which classes
    have the one more, and which entries of a class come once more than its others, `rng` draws.
    """
    classes = np.unique(labels)
    counts = np.full(len(classes), len(labels) // len(classes))
    counts[rng.permutation(len(classes))[: len(labels) % len(classes)]] += 1
    rows = []
    for label, count in zip(classes.tolist(), counts.tolist(), strict=True):
        entries = np.flatnonzero(labels == label)
        turns = np.arange(count) // len(entries)
        orders = [rng.permutation(entries) for _ in range(turns[-1] + 1 if count else 0)]
        rows.append(np.stack([np.concatenate([*orders, entries[:0]])[:count], turns], 1))
    return rng.permutation(np.concatenate(rows))


def evaluation_keys(
    num_entries: int, views: Views, batch_size: int, rank: int = 0, world_size: int = 1
) -> list[list[ViewKey]]:
    """The batches of one of W processes in an evaluation: over all of them every clip of every entry, exactly once.

    A batch holds at most `batch_size` views, or a single clip with more crops; none is padded. Process r takes every
    W-th block from the r-th on, a block being as many whole videos as fit into a batch, or one. What is in a batch
    therefore does not depend on W, nor does the order in which the views of a video come.
    """
    _check_rank(rank, world_size)
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    videos, clips = max(1, batch_size // views.per_video), max(1, batch_size // views.crops)
    batches: list[list[ViewKey]] = []
    for first in range(rank * videos, num_entries, world_size * videos):
        entries = range(first, min(first + videos, num_entries))
        block = [ViewKey(entry, clip) for entry in entries for clip in range(views.clips)]
        batches += [block[start : start + clips] for start in range(0, len(block), clips)]
    return batches


def training_batches(
    clips: TrainingClips, batches: TrainingBatches, loading: Loading, start: int = 0
) -> GuardedLoader[Batch]:
    """The batches of the whole run from number `start` on (step · accumulate). `loading` does not change them.

    Iterating raises WorkerError where workers hang or die time and again.
    """
    return GuardedLoader(clips, batches, collate, loading, start)


def evaluation_batches(
    clips: EvaluationClips, batch_size: int, loading: Loading, rank: int = 0, world_size: int = 1
) -> GuardedLoader[Batch]:
    """The batches of `evaluation_keys`, which may be iterated once an epoch: the workers stay. `close` ends them."""
    keys = evaluation_keys(len(clips), clips.views, batch_size, rank, world_size)
    return GuardedLoader(clips, keys, collate, loading)


class FailureTally:
    """How many training videos turned out to be unreadable, and which; ends a run on data that is mostly bad.

    Args:
        num_entries: entries of the whole split, also where this process sees but a share of each epoch: over the epochs
            it meets them all.
        max_bad_share: the greatest share of bad ones, from 0 to 1.
    """

    def __init__(self, num_entries: int, max_bad_share: float) -> None:
        self.num_entries, self.max_bad_share = num_entries, max_bad_share
        self.counts: Counter[Failure] = Counter()
        """Every failure with how often it was met."""
        self.tried = 0

    def add(self, batch: Batch) -> None:
        """Count `batch`.

        Raises:
            InputError: of the videos tried so far, or of the first `TRUSTED_SAMPLES`, a greater share than allowed was
                bad; or there was a sample for which no substitute could be read.
        """
        self.counts.update(batch.failures)
        self.tried += len(batch) + len(batch.failures)
        bad = len({failure.path for failure in self.counts})
        of = min(self.num_entries, max(self.tried, TRUSTED_SAMPLES))
        if batch.missing or bad > self.max_bad_share * of:
            path, reason = (batch.failures or tuple(self.counts))[-1]
            raise InputError(
                f"too many training videos cannot be read: {bad} of {min(self.tried, self.num_entries)}, where "
                f"max_bad_share allows {self.max_bad_share:g}; the last is {path}: {reason}"
            )


def _check_rank(rank: int, world_size: int) -> None:
    if not 0 <= rank < world_size:
        raise InputError(f"rank: got {rank}, expected a number from 0 to below world_size ({world_size})")
