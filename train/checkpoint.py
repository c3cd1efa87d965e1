"""Checkpoints: what is needed to use a trained network, and in those of a run to go on with it; never half of one.

Both are one kind of file: a run's checkpoint is a trained network's, with the part `run` beside it.
"""

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tam_triton.classifier import FORMAT
from tam_triton.nets import archive
from train.atomic import replacing
from train.errors import InputError
from train.fields import ADDED, check_types, from_plain, require, to_plain
from train.networks import build_network
from train.recipe import Recipe

DAMAGE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError)
"""What is raised where a file holds something else than it should, of the right types."""


@dataclass(frozen=True)
class TrainedNetwork:
    """A network, how to feed it (the recipe), and what its answers are called."""

    network: nn.Module
    recipe: Recipe
    class_names: tuple[str, ...]
    validated_on: str | None = None
    """The fingerprint of the videos that the run validated on; None where the checkpoint holds no run."""


@dataclass(frozen=True)
class Checkpoint:
    """What a file of a trained network holds. Raises InputError for a part of another type."""

    recipe: dict[str, Any]
    class_names: tuple[str, ...]
    state_dict: dict[str, Any]
    run: dict[str, Any] | None = field(default=None, metadata=ADDED)

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True)
class Learner:
    """What a run's checkpoint holds of the learner. Raises InputError for a part of another type."""

    steps: int
    model: dict[str, Any]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    average: dict[str, Any] | None

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True)
class Best:
    """Of which step the best network is. Raises InputError where it is no number."""

    step: int

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True)
class RunState:
    """What a run's checkpoint holds to go on with. Raises InputError for a part of another type."""

    identity: dict[str, Any]
    processes: int
    accumulate: int
    learner: dict[str, Any]
    tally: Tensor
    unreadable: tuple[list[Any], ...]
    best: dict[str, Any] | None
    validated: int

    def __post_init__(self) -> None:
        check_types(self)
        from_plain(Learner, self.learner, "run.learner", newer=True)
        if self.best is not None:
            from_plain(Best, self.best, "run.best", newer=True)
        require(self, "tally", self.tally.shape == (4,), "4 sums")
        require(self, "unreadable", all(len(row) == 3 for row in self.unreadable), "rows of path, reason and count")


def save_checkpoint(path: Path, trained: TrainedNetwork, run: dict[str, Any] | None = None) -> None:
    """Write `trained`, and `run` with it; whatever happens, `path` holds what it held before or all of the new one.

    Raises OSError where it cannot be written.
    """
    content = {
        "format": FORMAT,
        "recipe": to_plain(trained.recipe),
        "class_names": list(trained.class_names),
        "state_dict": trained.network.state_dict(),
        "run": run,
    }
    write_tensors(path, content)


def write_tensors(path: Path, content: dict[str, Any]) -> None:
    """Let `path` hold what `torch.save` makes of `content`, on the disk. Raises OSError, and it is as it was."""
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # What torch says when the file refuses a write hides what the file said.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        file.flush()
        os.fsync(file.fileno())


def load_checkpoint(path: Path) -> TrainedNetwork:
    """The network saved at `path`, on the CPU, in evaluation mode. Nothing in the file is executed.

    Raises:
        InputError: no such file, damaged, written by something else, or with weights that do not fit its description.
    """
    content = read_checkpoint(path)
    try:
        parts = from_plain(Checkpoint, content, "checkpoint", newer=True)
        recipe, class_names = from_plain(Recipe, parts.recipe, "recipe"), parts.class_names
        network = build_network(recipe.model, len(class_names), recipe.sampling.num_segments, pretrained=False)
        network.load_state_dict(parts.state_dict)
        identity = (parts.run or {}).get("identity")
        validated_on = str(identity["data"]["validation videos"]) if identity else None
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{path}: the checkpoint does not fit the network it describes: {reason}") from error
    return TrainedNetwork(network.eval(), recipe, class_names, validated_on)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What is in the checkpoint at `path`, on the CPU, its checksums verified, unchecked but for its format.

    Raises InputError.
    """
    try:
        content = archive.read_checkpoint(path)
    except OSError as error:
        raise InputError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    except ValueError as error:
        raise InputError(str(error)) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path}: is not a checkpoint of this program (format {FORMAT!r})")
    return content


class RunCheckpoints:
    """The checkpoints of a run in its folder: those of the last steps as `step-*.pt`, and the best as `best.pt`.

    `folder` is theirs alone; the last `keep` stay.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self._newest: Path | None = None
        """As far as this program knows."""

    @property
    def best(self) -> Path:
        """Where the best one is, or will be."""
        return self.folder / "best.pt"

    def save(self, step: int, trained: TrainedNetwork, run: dict[str, Any], is_best: bool) -> Path:
        """Write the checkpoint of `step` and remove those that are one too many. Raises OSError, having lost none."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{step:08d}.pt"
        save_checkpoint(path, trained, run)
        self._newest = path
        if is_best:
            self._mark_best(path)
        for old in self.by_age()[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def newest_is_gone(self) -> bool:
        """Whether something else has removed the newest checkpoint; says so once. Raises OSError."""
        gone = self._newest is not None and not self._newest.exists()
        if gone:
            self._newest = None
        return gone

    def restore_best(self, step: int) -> bool:
        """Whether `best.pt` is there, or could be put there again, as the checkpoint of `step`. Raises OSError."""
        path = self.folder / f"step-{step:08d}.pt"
        if not self.best.exists() and path.exists():
            self._mark_best(path)
        return self.best.exists()

    def _mark_best(self, path: Path) -> None:
        """Let `best.pt` hold what `path` holds."""
        with replacing(self.best) as unfinished:
            try:
                os.link(path, unfinished)  # one file under two names takes no space twice
            except OSError:  # not every file system can
                shutil.copyfile(path, unfinished)

    def by_age(self) -> list[Path]:
        """The checkpoints of the last steps, the oldest first; the best one where someone has left it alone."""
        steps = sorted(path for path in self.folder.glob("step-*.pt") if re.fullmatch(r"step-\d+\.pt", path.name))
        return steps or ([self.best] if self.best.exists() else [])

    def newest(
        self, warn: Callable[[str], None], load: Callable[[dict[str, Any]], None] = lambda run: None
    ) -> dict[str, Any] | None:
        """The content of the newest checkpoint that is whole, and that `load` takes; None where there is none at all.

        `warn` is told of each that is damaged, and `best.pt` is put right if the run ended before it could be.

        Raises:
            InputError: there are some, but none of them is whole.
        """
        for remains in self.folder.glob("*.unfinished"):
            remains.unlink()
        paths = self.by_age()
        for path in reversed(paths):
            try:
                content = _read_run(path)
                _load_run(path, content["run"], load)
            except InputError as error:
                warn(f"{error}; trying the checkpoint before it")
                continue
            self._newest = path
            self._put_best_right(path, content["run"], warn)
            return content
        if paths:
            raise InputError(
                f"{self.folder}: none of the {len(paths)} checkpoints can be read; start in another folder"
            )
        return None

    def _put_best_right(self, path: Path, run: dict[str, Any], warn: Callable[[str], None]) -> None:
        step = run["best"]["step"] if run["best"] else None
        if step == run["learner"]["steps"]:
            if path != self.best:
                self._mark_best(path)
        elif step is not None:
            try:
                self._check_best(step)
            except InputError as error:
                warn(f"{error}; the next validation makes another best checkpoint")
                run["best"] = None

    def _check_best(self, step: int) -> None:
        """Raise InputError unless `best.pt` holds the checkpoint of `step`, or can again: a run that was gone on with
        from before its best one has left another there."""
        found = _read_run(self.best)["run"].get("learner", {}).get("steps")
        if found == step:
            return
        path = self.folder / f"step-{step:08d}.pt"
        if not path.exists():
            raise InputError(f"{self.best}: is of step {found}, expected {step}")
        _read_run(path)
        self._mark_best(path)


def _load_run(path: Path, run: dict[str, Any], load: Callable[[dict[str, Any]], None]) -> None:
    try:
        load(run)
    except DAMAGE as error:
        raise InputError(f"{path}: is damaged: {' '.join(str(error).split())[:300]}") from error


def _read_run(path: Path) -> dict[str, Any]:
    """What is in the run's checkpoint at `path`. Raises InputError, also for one without the run."""
    content = read_checkpoint(path)
    if not content.get("run"):
        raise InputError(f"{path}: holds a trained network, but not the run that trained it")
    try:
        parts = from_plain(Checkpoint, content, "checkpoint", newer=True)
        if "ranks" not in (parts.run or {}):  # else it is of an older version, which is for `resume` to say
            from_plain(RunState, parts.run, "run", newer=True)
    except InputError as error:
        raise InputError(f"{path}: is damaged: {' '.join(str(error).split())[:300]}") from error
    return content
