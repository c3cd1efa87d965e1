"""A training run: steps, checkpoints, validation, and the same decision in all its processes about when to end.

Before each step the processes agree whether to take it. So they stop at the same step, whichever of them was told to or
has met trouble, and what the checkpoint holds is the state between two steps.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, NoReturn

import torch

from train.checkpoint import RunCheckpoints, TrainedNetwork
from train.data.batches import Batch, FailureTally, TrainingBatches, evaluation_batches, training_batches
from train.data.dataset import EvaluationClips, Failure, TrainingClips
from train.data.entries import Split
from train.errors import InputError
from train.fit.config import FitConfig
from train.fit.learner import Learner
from train.fit.meter import Meter
from train.fit.optimizer import build_schedule
from train.fit.resume import (
    MAY_DIFFER,
    describe_run,
    differences,
    generator_states,
    restore_generators,
    seed_generators,
)
from train.fit.stopping import FiniteWatch, StopRequest
from train.log import RunLog
from train.metrics import Score, Tally, tally_batches
from train.networks import build_network
from train.recipes import Recipe
from train.team import Team, naming_lost_peers


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    steps: int
    """Optimiser steps done, in this run and those that it resumed."""
    signal: int | None
    """The signal that stopped it; None if it went to its end."""
    best: float | None
    """Highest top-1 accuracy in a validation, from 0 to 1."""
    checkpoint: Path


class Verdict(IntEnum):
    """What a process says before a step; the highest of all processes' holds for all of them."""

    GO = 0
    STOP = 1
    """A signal came."""
    FAILED = 2
    """No batch could be had: the state is sound, and saved before the run ends."""
    DIVERGED = 3
    """The state itself is spoilt."""


class _Stopped(Exception):  # noqa: N818 (no error)
    """All processes have agreed to stop, as `signal` asked, and the checkpoint is written."""

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal


class Run:
    """One run, from its beginning or, after `resume`, from a checkpoint; `fit` says what the arguments are."""

    def __init__(
        self,
        config: FitConfig,
        recipe: Recipe,
        train: Split,
        val: Split,
        team: Team,
        stop: StopRequest,
        checkpoints: RunCheckpoints,
        log: RunLog,
    ) -> None:
        self.config, self.recipe, self.train_split, self.val_split = config, recipe, train, val
        self.team, self.stop, self.checkpoints, self.log = team, stop, checkpoints, log
        optimisation, compute = recipe.optimisation, config.compute
        self.loading = config.loading.for_device(team.device)
        self.batches = TrainingBatches(
            len(train),
            optimisation.batch_size,
            optimisation.epochs,
            recipe.seed,
            team.rank,
            team.size,
            compute.accumulate,
            [entry.label for entry in train.entries] if recipe.data.balanced else None,
        )
        self.per_epoch = self.batches.steps_per_epoch
        seed_generators(recipe.seed)
        network = build_network(recipe.model, len(train.class_names), recipe.sampling.num_segments)
        self.learner = Learner(network, optimisation, build_schedule(optimisation, self.per_epoch), compute, team)
        seed_generators(recipe.seed, 0, team.rank)
        self.trained = TrainedNetwork(self.learner.evaluated, recipe, train.class_names)
        self.identity = describe_run(recipe, compute, train, val)
        self.failures = FailureTally(len(train), recipe.data.max_bad_share)
        self.watch = FiniteWatch(norm_may_overflow=compute.precision == "fp16")
        self.meter = Meter(team, optimisation.batch_size)
        self.best: dict[str, Any] | None = None
        self.validated = 0  # epochs
        self._generators = generator_states(team.device)
        self._validation = evaluation_batches(
            EvaluationClips(val, recipe.sampling, recipe.validation, recipe.data.decoder),
            max(1, optimisation.batch_size // team.size),
            self.loading,
            team.rank,
            team.size,
        )

    def resume(self) -> None:
        """Go on from the newest checkpoint that is whole; does nothing where there is none.

        Raises:
            InputError: it is of a run that computes something else, or no checkpoint is whole.
        """
        content = self.team.led(lambda: self.checkpoints.newest(self.log.warn))
        if content is None:
            self.log.say(f"nothing to resume in {self.config.out}: the run starts from its beginning")
            return
        run = content["run"]
        if differing := differences(run["identity"], self.identity):
            raise InputError(
                f"{self.config.out}: holds a run that cannot go on by these settings: {'; '.join(differing)}. "
                f"Of recipe and compute only {', '.join(MAY_DIFFER)} may differ"
            )
        self.learner.load_state_dict(run["learner"])
        self.best, self.validated = run["best"], run["validated"]
        steps, ranks = self.learner.steps, run["ranks"]
        self.log.event("resume", step=steps, processes=self.team.size)
        self.log.say(f"resumed at step {steps}, {steps / self.per_epoch:.2f} epochs")
        if len(ranks) == self.team.size and run["accumulate"] == self.config.compute.accumulate:
            mine = ranks[self.team.rank]
            self._generators = mine["generators"]
            self.learner.tally = Tally(mine["tally"])
            self.failures.counts.update({Failure(path, reason): count for path, reason, count in mine["failures"]})
            self.failures.tried = mine["tried"]
            return
        self.log.warn(
            f"the checkpoint is of {len(ranks)} processes × {run['accumulate']} parts, this run has {self.team.size} × "
            f"{self.config.compute.accumulate}: every step has the same clips, but BatchNorm and dropout see them "
            "divided otherwise, so the numbers will not be those of an unbroken run"
        )
        seed_generators(self.recipe.seed, steps, self.team.rank)
        self._generators = generator_states(self.team.device)
        if self.team.leads:
            self.learner.tally = Tally(sum((rank["tally"] for rank in ranks), torch.zeros(4, dtype=torch.float64)))

    def train(self) -> Outcome:
        """Take all steps that are left, or those until a signal comes."""
        total = self.per_epoch * self.recipe.optimisation.epochs
        signal: int | None = None
        self.log.begin(self.learner.steps, total)
        try:
            with naming_lost_peers():
                self._train(total)
        except _Stopped as stopped:
            signal = stopped.signal
            self.log.event("stopped", step=self.learner.steps, signal=signal)
            self.log.say(f"stopped at step {self.learner.steps} of {total}; --resume goes on from there")
        finally:
            self._validation.close()
        best = self.best["accuracy"] if self.best else None
        return Outcome(self.learner.steps, signal, best, self.checkpoints.best)

    def _train(self, total: int) -> None:
        restore_generators(self._generators, self.team.device)  # since they were taken, others may have drawn
        if self.learner.steps // self.per_epoch > self.validated:  # the validation was what the end of the run hit
            self._end_epoch()
        recipe = self.recipe
        clips = TrainingClips(self.train_split, recipe.sampling, recipe.augmentation, recipe.seed, recipe.data.decoder)
        names = zip(self.train_split.class_names, clips.mirrored, strict=True)
        alone = [repr(name) for name, partner in names if partner is None]
        if alone and recipe.augmentation.flip > 0:
            self.log.say(f"never flipped, as no class is their mirror image: {', '.join(alone)}")
        start = self.learner.steps * self.config.compute.accumulate
        loader = training_batches(clips, self.batches, self.loading, start)
        self.meter.begin()
        try:
            batches = iter(loader)
            while self.learner.steps < total:
                self._step(batches)
        finally:
            loader.close()

    def _step(self, batches: Iterator[Batch]) -> None:
        parts = self._next_parts(batches)
        result = self.learner.step(parts)
        step = self.learner.steps
        entries = self.train_split.entries
        self.watch.add(step, result, [str(entries[i].path) for part in parts for i in part.indices.tolist()])
        self.meter.add(result, [failure for part in parts for failure in part.failures])
        self.log.progress(step)
        is_epoch_end = step % self.per_epoch == 0
        if is_epoch_end or step % self.config.log_every == 0:
            self._report()
        if is_epoch_end:
            self._end_epoch()
        elif step % self.config.checkpoint_every == 0:
            self._save()

    def _next_parts(self, batches: Iterator[Batch]) -> list[Batch]:
        """This process' clips of the next step, if all processes are to take it; otherwise ends the run in all."""
        parts: list[Batch] = []
        verdict, problem = Verdict.GO, None
        try:
            with self.meter.waiting():
                for _ in range(self.config.compute.accumulate):
                    parts.append(next(batches))
                    self.failures.add(parts[-1])
        except InputError as error:
            verdict, problem = Verdict.FAILED, str(error)
        if self.stop.number is not None:
            # Whatever else was wrong: a signal to all processes ends those that read videos too.
            verdict = Verdict.STOP
        if spoilt := self.watch.problem():
            verdict, problem = Verdict.DIVERGED, spoilt
        verdict = Verdict(self.team.highest(verdict))
        if verdict is not Verdict.GO:
            for part in parts:  # not trained on, so the run that resumes will count them
                self.failures.counts.subtract(part.failures)
                self.failures.tried -= len(part) + len(part.failures)
            self._end(verdict, problem)
        return parts

    def _end(self, verdict: Verdict, problem: str | None) -> NoReturn:
        """End the run in all processes as they agreed."""
        self._report()
        if verdict is not Verdict.DIVERGED:
            self._save(required=True)
        if verdict is Verdict.STOP:
            raise _Stopped(self.team.highest(self.stop.number or 0))  # only some may have been told
        problems = [text for text in self.team.gather(problem) if text]
        self.log.event("failed", step=self.learner.steps, problems=problems)
        raise InputError("; ".join(dict.fromkeys(problems)))

    def _report(self) -> None:
        """A line of the log about the steps since the last one."""
        step, epochs = self.learner.steps, self.recipe.optimisation.epochs
        metrics, failures = self.meter.report(self.learner.lr)
        for failure, count in failures.items():
            self.log.event("unreadable", step=step, **failure._asdict(), count=count)
            self.log.say(f"cannot be read, another stood in: {failure.path}: {failure.reason}")
        if metrics:
            total = self.per_epoch * epochs
            self.log.steps(step, step / self.per_epoch, metrics, f"step {step}/{total}  {self.meter.text(metrics)}")

    def _end_epoch(self) -> None:
        """Validate, and keep the network if it is the best so far."""
        epochs = self.recipe.optimisation.epochs
        epoch, step = self.learner.steps // self.per_epoch, self.learner.steps
        self._save()  # first, so that nothing is lost if the run is stopped while it validates
        with self.meter.aside():
            val, left_out = self._validate()
        train = Tally(self.team.total(self.learner.tally.sums())).score()
        self.learner.tally, self.validated = Tally(), epoch
        scores = {"train": _described(train), "val": _described(val) | {"left_out": len(left_out)}}
        text = (
            f"epoch {epoch}/{epochs}  training loss {train.loss:.4f}, top-1 {train.accuracy:.2%}  validation loss "
            f"{val.loss:.4f}, top-1 {val.accuracy:.2%}, top-5 {val.accuracy_top5:.2%} of {val.total} videos"
        )
        self.log.epoch(step, epoch, scores, text)
        for failure in left_out:
            self.log.event("left_out", epoch=epoch, **failure._asdict())
        if left_out:
            self.log.warn(
                f"{len(left_out)} validation videos cannot be read and are not in the score; log.jsonl has them"
            )
        former = self.best
        is_best = former is None or val.accuracy > former["accuracy"]
        if is_best:
            self.best = {"step": step, "epoch": epoch, "accuracy": val.accuracy, "loss": val.loss}
        if not self._save(is_best=is_best, required=epoch == epochs):
            self.best = former

    def _validate(self) -> tuple[Score, list[Failure]]:
        """The score over all processes' parts of the validation videos, each counted once, and what it is without."""
        network, compute = self.learner.evaluated, self.config.compute
        self.team.share_buffers(network)
        failures: list[Failure] = []
        problem, tally = None, Tally()

        def until_stopped() -> Iterator[Batch]:
            for batch in self._validation:
                if self.stop.number is not None:
                    return
                failures.extend(batch.failures)
                yield batch

        try:
            tally = tally_batches(network, until_stopped(), compute.precision, compute.channels_last)
        except InputError as error:
            problem = str(error)
        verdict = Verdict.STOP if self.stop.number is not None else Verdict.FAILED if problem else Verdict.GO
        verdict = Verdict(self.team.highest(verdict))
        if verdict is not Verdict.GO:
            self._end(verdict, problem)
        everything = [failure for some in self.team.gather(failures) for failure in some]
        return Tally(self.team.total(tally.sums())).score(), everything

    def _save(self, *, is_best: bool = False, required: bool = False) -> bool:
        """Write a checkpoint; whether it could be written. A disk that is full for a while does not end the run.

        Raises:
            InputError: it could not, and `required` says that the run cannot go on without; or the state is spoilt.
        """
        with self.meter.aside():
            problem = self.watch.problem(wait=True)
            if Verdict(self.team.highest(Verdict.DIVERGED if problem else Verdict.GO)) is Verdict.DIVERGED:
                self._end(Verdict.DIVERGED, problem)
            ranks = self.team.gather(self._rank_state())
            failed = self.team.led(lambda: self._write(ranks, is_best))
        if failed is None:
            return True
        message = f"no checkpoint at step {self.learner.steps}: {failed}; those before it are as they were"
        if required:
            raise InputError(message)
        self.log.warn(message)
        return False

    def _write(self, ranks: list[dict[str, Any]], is_best: bool) -> str | None:
        """Write the checkpoint; what went wrong, if it did."""
        run = {
            "identity": self.identity,
            "learner": self.learner.state_dict(),
            "ranks": ranks,
            "accumulate": self.config.compute.accumulate,
            "best": self.best,
            "validated": self.validated,
        }
        try:
            path = self.checkpoints.save(self.learner.steps, self.trained, run, is_best)
        except OSError as error:
            return f"{self.checkpoints.folder}: {error.strerror or error}"
        self.log.event("checkpoint", step=self.learner.steps, path=str(path), best=is_best)
        return None

    def _rank_state(self) -> dict[str, Any]:
        """What a checkpoint holds of this process alone."""
        return {
            "generators": generator_states(self.team.device),
            "tally": self.learner.tally.sums().cpu(),
            "failures": [[*failure, count] for failure, count in self.failures.counts.items() if count],
            "tried": self.failures.tried,
        }


def _described(score: Score) -> dict[str, float]:
    return asdict(score) | {"top1": score.accuracy, "top5": score.accuracy_top5}
