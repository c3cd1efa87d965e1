"""A training run: steps, validation, checkpoints, and the same decision in all its processes about when to end.

Before each step the processes agree whether to take it. So they stop at the same step, whichever of them was told to or
has met trouble, and what the checkpoint holds is the state between two steps.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any, NoReturn

from torch import Tensor

from train.checkpoint import TrainedNetwork
from train.data.batches import Batch, FailureTally, TrainingBatches, training_batches
from train.data.dataset import Failure, TrainingClips
from train.data.entries import Split
from train.data.loader import GuardedLoader, Loading
from train.errors import InputError
from train.fit.config import FitConfig
from train.fit.folder import RunFolder
from train.fit.learner import Learner
from train.fit.meter import Meter
from train.fit.stopping import FiniteWatch, Outcome, Stopped, StopRequest, Verdict
from train.log import RunLog, accuracy_text
from train.metrics import Score, Tally, tally_batches
from train.precision import seed_generators
from train.team import Team


@dataclass
class Run:
    """One run of `team`. Its parts are made by `fit`; `train` takes its steps."""

    config: FitConfig
    identity: dict[str, Any]
    """All that decides what the run computes."""
    team: Team
    stop: StopRequest
    log: RunLog
    folder: RunFolder

    clips: TrainingClips
    order: TrainingBatches
    validation_split: Split
    validation: GuardedLoader[Batch]
    """This process' part of the validation videos."""
    loading: Loading
    learner: Learner
    trained: TrainedNetwork
    watch: FiniteWatch
    meter: Meter
    failures: FailureTally
    """What all processes could not read as of the last report, and this one since."""

    # What a checkpoint holds beside the learner; of all processes.
    unreadable: Counter[Failure] = field(default_factory=Counter)
    best: dict[str, Any] | None = None
    validated: int = 0
    """Epochs."""

    _new_failures: list[Failure] = field(default_factory=list)
    """Of this process since the last report."""

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.order.steps_per_epoch * self.order.epochs

    @property
    def stale(self) -> int:
        """Validations in a row up to the last one that have not brought a better top-1."""
        return self.validated - self.best.get("since", self.best["epoch"]) if self.best else 0

    @property
    def ends_early(self) -> bool:
        """Whether as many validations as the run is to wait for have brought nothing better."""
        return self.config.stop_after is not None and self.stale >= self.config.stop_after

    def train(self) -> Outcome:
        """Take all steps that are left, or those until a signal comes, or until nothing becomes better any more."""
        signal: int | None = None
        self.team.on_leader(lambda: self.log.begin(self.learner.steps, self.total))
        try:
            with closing(self.validation):
                if self.learner.steps // self.order.steps_per_epoch > self.validated:  # ended while it validated
                    self._end_epoch()
                start = self.learner.steps * self.config.compute.accumulate
                with closing(training_batches(self.clips, self.order, self.loading, start)) as loader:
                    self.meter.begin()
                    batches = iter(loader)
                    while self.learner.steps < self.total and not self.ends_early:
                        self._step(batches)
            if self.learner.steps < self.total:
                self.log.event("ended_early", step=self.learner.steps, epoch=self.validated, stale=self.stale)
        except Stopped as stopped:
            signal = stopped.signal
            self.log.event("stopped", step=self.learner.steps, signal=signal)
            self.log.say(f"stopped at step {self.learner.steps} of {self.total}; --resume goes on from there")
        best = self.best["accuracy"] if self.best else None
        return Outcome(self.learner.steps, signal, best, self.folder.checkpoints.best)

    def _step(self, batches: Iterator[Batch]) -> None:
        parts = self._next_parts(batches)
        step = self.learner.steps + 1
        # What a step draws depends on nothing before it, so no checkpoint has to hold the generators' states.
        seed_generators(self.team.device, self.order.seed, step, self.team.rank)
        result = self.learner.step(parts)
        entries = self.clips.split.entries
        self.watch.add(step, result, [str(entries[i].path) for part in parts for i in part.indices.tolist()])
        self.meter.add(result)
        self._new_failures += [failure for part in parts for failure in part.failures]
        self.log.progress(step)
        is_epoch_end, is_gone = step % self.order.steps_per_epoch == 0, False
        if is_epoch_end or step % self.config.log_every == 0:
            is_gone = self._keep_folder()
            self._report()
        if is_epoch_end:
            self._end_epoch()
        elif is_gone or step % self.config.checkpoint_every == 0:
            self._save()

    def _next_parts(self, batches: Iterator[Batch]) -> list[Batch]:
        """This process' clips of the next step, if all processes are to take it; otherwise ends the run in all."""
        parts: list[Batch] = []
        problem: str | None = None
        try:
            with self.meter.waiting():
                for _ in range(self.config.compute.accumulate):
                    parts.append(next(batches))
                    self.failures.add(parts[-1])
        except InputError as error:
            problem = str(error)
        self._agree(problem)
        return parts

    def _agree(self, problem: str | None) -> None:
        """Return if all processes can go on; otherwise end the run in all, for the gravest reason that any has."""
        verdict = Verdict.FAILED if problem else Verdict.GO
        if self.stop.number is not None:
            # Whatever else was wrong: a signal to all processes ends those that read videos too.
            verdict = Verdict.STOP
        if diverged := self.watch.problem():
            verdict, problem = Verdict.DIVERGED, diverged
        verdict = Verdict(self.team.all_reduce_max(verdict))
        if verdict is not Verdict.GO:
            self._end(verdict, problem)

    def _end(self, verdict: Verdict, problem: str | None) -> NoReturn:
        """End the run in all processes as they agreed."""
        self._keep_folder()
        self._report()
        if verdict is not Verdict.DIVERGED:
            self._save(required=True)
        if verdict is Verdict.STOP:
            raise Stopped(self.team.all_reduce_max(self.stop.number or 0))  # only some may have been told
        problems = [text for text in self.team.gather(problem) if text]
        self.log.event("failed", step=self.learner.steps, problems=problems)
        raise InputError("; ".join(dict.fromkeys(problems)))

    def _keep_folder(self, is_best: bool = False) -> bool:
        """Write again what has been removed of the run's folder; whether a checkpoint is to be, too.

        `is_best`: the best one is about to be written.
        """
        best = self.best["step"] if self.best and not is_best else None
        newest_is_gone, best_is_gone = self.team.on_leader(lambda: self.folder.restore(best, self.log.warn))
        if best_is_gone:
            self.best = None
        return newest_is_gone

    def _report(self) -> None:
        """A line of the log about the steps since the last one."""
        self._share_failures()
        step = self.learner.steps
        if metrics := self.meter.report(self.learner.lr):
            epoch = step / self.order.steps_per_epoch
            self.log.steps(step, epoch, metrics, f"step {step}/{self.total}  {self.meter.text(metrics)}")

    def _share_failures(self) -> None:
        """Name what could not be read since this was last called, and let every process count what the others met."""
        new = Counter(failure for some in self.team.gather(self._new_failures) for failure in some)
        self._new_failures = []
        for failure, count in new.items():
            self.log.event("unreadable", step=self.learner.steps, **failure._asdict(), count=count)
            self.log.say(f"cannot be read, another stood in: {failure.path}: {failure.reason}")
        self._count_failures(self.unreadable + new)

    def _count_failures(self, unreadable: Counter[Failure]) -> None:
        """Let every process judge the training videos by what all of them could not read up to this step."""
        self.unreadable = unreadable
        self.failures.counts = unreadable.copy()
        self.failures.tried = self.learner.steps * self.order.batch_size + unreadable.total()

    def _end_epoch(self) -> None:
        """Validate, and keep the network if it is the best so far."""
        step = self.learner.steps
        epoch = step // self.order.steps_per_epoch
        self._save()  # first, so that nothing is lost if the run is stopped while it validates
        with self.meter.aside():
            val, left_out = self._validate()
        train = Tally(self.team.total(self.learner.tally.sums())).score()
        self.learner.tally, self.validated = Tally(), epoch
        scores = {"train": _described(train), "val": _described(val) | {"left_out": len(left_out)}}
        accuracy = accuracy_text(val.accuracy, val.accuracy_top5, len(self.trained.class_names))
        text = (
            f"epoch {epoch}/{self.order.epochs}  training loss {train.loss:.4f}, top-1 {train.accuracy:.2%}  "
            f"validation loss {val.loss:.4f}, {accuracy} of {val.total} videos"
        )
        self.log.epoch(step, epoch, scores, text)
        if left_out:
            self.log.warn(
                f"{len(left_out)} validation videos cannot be read and are not in the score; log.jsonl has them"
            )
        former = self.best
        # Of equal accuracies, as small validation sets have many, the lower loss is the better.
        is_best = former is None or (val.accuracy, -val.loss) > (former["accuracy"], -former["loss"])
        if is_best:
            is_same = former is not None and val.accuracy == former["accuracy"]
            since = former.get("since", former["epoch"]) if former and is_same else epoch
            self.best = {"step": step, "epoch": epoch, "accuracy": val.accuracy, "loss": val.loss, "since": since}
        if not self._save(is_best=is_best, required=step == self.total or self.ends_early):
            self.best = former

    def _validate(self) -> tuple[Score, list[Failure]]:
        """The score over all processes' parts of the validation videos, each counted once, and what it is without."""
        network, compute = self.learner.evaluated, self.config.compute
        self.team.share_buffers(network)
        failures: list[Failure] = []
        problem, tally = None, Tally()

        def until_stopped() -> Iterator[Batch]:
            for batch in self.log.track(self.validation, "validation"):
                if self.stop.number is not None:
                    return
                failures.extend(batch.failures)
                yield batch

        try:
            tally = tally_batches(network, until_stopped(), compute.precision, compute.channels_last)
        except InputError as error:
            problem = str(error)
        self._agree(problem)
        self._keep_folder()  # before the log is written to, for another run may be in its place
        everything = [failure for some in self.team.gather(failures) for failure in some]
        for failure in everything:
            self.log.event("left_out", epoch=self.learner.steps // self.order.steps_per_epoch, **failure._asdict())
        sums = self.team.total(tally.sums())
        if everything and sums[2] == 0:
            raise InputError(
                f"none of the {len(everything)} validation videos can be read, such as {everything[0].path}: "
                f"{everything[0].reason}"
            )
        return Tally(sums).score(), everything

    def _save(self, *, is_best: bool = False, required: bool = False) -> bool:
        """Write a checkpoint; whether it could be written. A disk that is full for a while does not end the run.

        Raises:
            InputError: it could not, and `required` says that the run cannot go on without; or the run has diverged.
        """
        with self.meter.aside():
            problem = self.watch.problem(wait=True)
            if self.team.all_reduce_max(problem is not None):
                self._end(Verdict.DIVERGED, problem)
            self._keep_folder(is_best)
            self._share_failures()
            tally = self.team.total(self.learner.tally.sums())
            failed = self.team.on_leader(lambda: self._write(tally, is_best))
        if failed is None:
            return True
        message = f"no checkpoint at step {self.learner.steps}: {failed}; those before it are as they were"
        if required:
            raise InputError(message)
        self.log.warn(message)
        return False

    def _write(self, tally: Tensor, is_best: bool) -> str | None:
        """Write the checkpoint; what went wrong, if it did."""
        run = {
            "identity": self.identity,
            "processes": self.team.size,
            "accumulate": self.config.compute.accumulate,
            "learner": self.learner.state_dict(),
            "tally": tally,
            "unreadable": [[*failure, count] for failure, count in self.unreadable.items()],
            "best": self.best,
            "validated": self.validated,
        }
        try:
            path = self.folder.checkpoints.save(self.learner.steps, self.trained, run, is_best)
        except OSError as error:
            return f"{self.folder.checkpoints.folder}: {error.strerror or error}"
        self.log.event("checkpoint", step=self.learner.steps, path=str(path), best=is_best)
        return None

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what a checkpoint holds of a run, in any number of processes."""
        self.learner.load_state_dict(state["learner"])
        if self.team.leads:
            self.learner.tally = Tally(state["tally"])
        self._count_failures(Counter({Failure(path, reason): count for path, reason, count in state["unreadable"]}))
        self.best, self.validated = state["best"], state["validated"]


def _described(score: Score) -> dict[str, float]:
    return asdict(score) | {"top1": score.accuracy, "top5": score.accuracy_top5}
