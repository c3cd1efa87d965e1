"""Top-1, top-5 and loss of a network on batches, as sums that do not wait for the device."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from train.data.batches import Batch
from train.errors import InputError
from train.precision import Precision, logits_of

GRID = 2**20


@dataclass(frozen=True)
class Score:
    """How a network did on a list of videos. Videos that could not be read are in none of the numbers."""

    correct: int
    correct_top5: int
    total: int
    loss: float
    """Mean cross-entropy."""

    @property
    def accuracy(self) -> float:
        """Top-1, from 0 to 1."""
        return self.correct / self.total

    @property
    def accuracy_top5(self) -> float:
        """Top-5, from 0 to 1."""
        return self.correct_top5 / self.total


class Tally:
    """The sums behind a score, kept on their device so that no step waits for it.

    The loss of a clip is rounded to a multiple of 2⁻²⁰; up to 2³³ float64 adds such numbers exactly, so clips give the
    same bits in whatever order and batches they are counted, by one process or several.
    """

    def __init__(self, sums: Tensor | None = None) -> None:
        self._sums = sums

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: logits (N, classes) and labels (N,). A clip whose label got no number is wrong."""
        top5 = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        top5 &= ~logits.gather(1, labels[:, None]).isnan()  # topk takes NaN for the greatest
        losses = cross_entropy(logits.float(), labels, reduction="none").double()
        loss = (losses * GRID).round().sum() / GRID
        total = torch.full((), len(labels), device=labels.device)  # made there; to send it would wait for the device
        sums = torch.stack([top5[:, 0].sum(), top5.any(1).sum(), total, loss])
        self._sums = sums if self._sums is None else self._sums.to(sums.device) + sums

    def sums(self) -> Tensor:
        """Right in first place, right in the first five, all, and the sum of the losses: (4,) float64."""
        return torch.zeros(4, dtype=torch.float64) if self._sums is None else self._sums

    def score(self) -> Score:
        """The score. Raises InputError where nothing was counted."""
        correct, correct_top5, total, loss = self.sums().tolist()
        if total == 0:
            raise InputError("none of the videos can be read")
        return Score(int(correct), int(correct_top5), int(total), loss / total)


@torch.inference_mode()
def tally_batches(
    network: nn.Module, batches: Iterable[Batch], precision: Precision = "fp32", channels_last: bool = True
) -> Tally:
    """Count how `network` does on all clips of `batches`, on the network's device; leaves it in the mode it was in."""
    tally, device = Tally(), next(network.parameters()).device
    with evaluation_mode(network):
        for batch in batches:
            if len(batch.labels):
                logits = logits_of(network, batch.clips, device, precision, channels_last)
                tally.add(logits, batch.labels.to(device, non_blocking=True))
    return tally


def evaluate(network: nn.Module, batches: Iterable[Batch]) -> Score:
    """The score of `tally_batches`. Raises InputError where there are no clips."""
    return tally_batches(network, batches).score()


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """`network.eval()` for a while."""
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)
