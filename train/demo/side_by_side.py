"""Training several networks on the same batches, so that videos are decoded once for all of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from train.data.batches import Batch, FailureTally
from train.fit.learner import Learner
from train.metrics import Score, evaluate


@dataclass(frozen=True)
class EpochResult:
    """What one network did in one epoch."""

    network: str
    epoch: int
    lr: float
    train: Score
    val: Score


def train_side_by_side(
    learners: Mapping[str, Learner],
    batches: Iterable[Batch],
    steps_per_epoch: int,
    num_epochs: int,
    val_batches: Sequence[Batch],
    on_epoch: Callable[[EpochResult], None],
    failures: FailureTally,
    title: str,
) -> None:
    """Train all `learners` on `batches`, the batches of all epochs, and evaluate after each epoch.

    Every failure to read a video is counted in `failures`.

    Raises:
        InputError: too many videos cannot be read.
    """
    with tqdm(total=steps_per_epoch * num_epochs, desc=title, unit="step") as progress:
        for step, batch in enumerate(batches, start=1):
            failures.add(batch)
            for learner in learners.values():
                learner.step([batch])
            progress.update()
            if step % steps_per_epoch == 0:
                shown = {}
                for name, learner in learners.items():
                    val = evaluate(learner.evaluated, val_batches)
                    on_epoch(EpochResult(name, step // steps_per_epoch, learner.lr, learner.take_score(), val))
                    shown[name] = f"{val.accuracy:.0%}"
                progress.set_postfix(shown)
