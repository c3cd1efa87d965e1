"""The training loop: networks side by side on the same batches, so that videos are decoded once for all of them."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from train.dataset import Batch, Failure
from train.errors import InputError
from train.transforms import normalise


@dataclass(frozen=True)
class Optimisation:
    """SGD with momentum and a cosine schedule. The gradient clip and the momentum are the paper's training code's."""

    lr: float = 0.1
    """Learning rate at the start; falls to zero along half a cosine."""
    momentum: float = 0.9
    weight_decay: float = 1e-4
    max_grad_norm: float = 20.0


@dataclass(frozen=True)
class Score:
    """How a network did on a list of videos. Videos that could not be read are in neither number."""

    correct: int
    total: int
    loss: float
    """Mean cross-entropy."""

    @property
    def accuracy(self) -> float:
        """Top-1, from 0 to 1."""
        return self.correct / self.total


@dataclass(frozen=True)
class EpochResult:
    """What one network did in one epoch."""

    network: str
    epoch: int
    lr: float
    train: Score
    val: Score


class Learner:
    """A network with its optimiser, its schedule, and its score over the epoch so far."""

    def __init__(self, network: nn.Module, optimisation: Optimisation, num_steps: int) -> None:
        self.network = network.to(memory_format=torch.channels_last).train()
        self.max_grad_norm = optimisation.max_grad_norm
        self.optimiser = torch.optim.SGD(
            network.parameters(),
            lr=optimisation.lr,
            momentum=optimisation.momentum,
            weight_decay=optimisation.weight_decay,
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimiser, lambda step: 0.5 * (1 + math.cos(math.pi * step / num_steps))
        )
        self._tally = _Tally()

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self.optimiser.param_groups[0]["lr"])

    def step(self, clips: Tensor, labels: Tensor) -> None:
        """One step on normalised clips (N, T, 3, H, W) and labels (N,)."""
        logits = self.network(clips)
        loss = cross_entropy(logits, labels)
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.max_grad_norm)
        self.optimiser.step()
        self.schedule.step()
        self._tally.add(logits.detach(), labels)

    def take_score(self) -> Score:
        """The score over the batches since this was last called."""
        score, self._tally = self._tally.score(), _Tally()
        return score


def fit(
    learners: Mapping[str, Learner],
    batches: Iterable[Batch],
    steps_per_epoch: int,
    num_epochs: int,
    val_batches: Sequence[Batch],
    on_epoch: Callable[[EpochResult], None],
    title: str,
) -> list[Failure]:
    """Train all `learners` on `batches`, the batches of all epochs, and evaluate after each epoch.

    Returns every failure to read a video, in order, a video as often as it failed.

    Raises:
        InputError: so many videos cannot be read that no substitute was found for one.
    """
    failures: list[Failure] = []
    with tqdm(total=steps_per_epoch * num_epochs, desc=title, unit="step") as progress:
        for step, batch in enumerate(batches, start=1):
            failures.extend(batch.failures)
            if batch.missing:
                bad = len({failure.path for failure in failures})
                raise InputError(f"too many videos cannot be read, {bad} so far; one is {': '.join(failures[-1])}")
            clips = normalise(batch.clips)
            for learner in learners.values():
                learner.step(clips, batch.labels)
            progress.update()
            if step % steps_per_epoch == 0:
                shown = {}
                for name, learner in learners.items():
                    val = evaluate(learner.network, val_batches)
                    on_epoch(EpochResult(name, step // steps_per_epoch, learner.lr, learner.take_score(), val))
                    shown[name] = f"{val.accuracy:.0%}"
                progress.set_postfix(shown)
    return failures


@torch.inference_mode()
def evaluate(network: nn.Module, batches: Iterable[Batch]) -> Score:
    """Score `network` on all clips of `batches`; leaves it in the mode it was in."""
    tally = _Tally()
    with evaluation_mode(network):
        for batch in batches:
            if len(batch.labels):
                tally.add(network(normalise(batch.clips)), batch.labels)
    return tally.score()


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """`network.eval()` for a while."""
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)


class _Tally:
    """Sums over batches, kept on their device so that no step waits for it."""

    def __init__(self) -> None:
        self.loss: Tensor | float = 0.0
        self.correct: Tensor | int = 0
        self.total = 0

    def add(self, logits: Tensor, labels: Tensor) -> None:
        self.loss += cross_entropy(logits, labels, reduction="sum").double()
        self.correct += (logits.argmax(1) == labels).sum()
        self.total += len(labels)

    def score(self) -> Score:
        if self.total == 0:
            raise InputError("none of the videos can be read")
        return Score(int(self.correct), self.total, float(self.loss) / self.total)
