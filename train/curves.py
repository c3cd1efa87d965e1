"""Curves of a run: for TensorBoard, in a file that outlives a full disk, which torch's own writer ends the program for;
and for Weights & Biases, whose package sends them.
"""

import io
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from train.appended import AppendedFile
from train.errors import InputError


class CurveWriter(Protocol):
    """What draws curves. No writer ends a run once it has begun."""

    def add(self, group: str, values: Mapping[str, float], position: int) -> None:
        """Add a point to the curve `group`/name of each of `values`; groups that begin with `epoch` count epochs."""

    def close(self) -> None:
        """Write what is left."""


class Curves:
    """Points of curves, in a new file in `folder`, as TensorBoard reads them.

    Args:
        folder: TensorBoard's; it is made.
        warn: is told, once, that the file cannot be written.
        purge_step: points from this position on that other files in `folder` hold are not shown.

    Raises InputError where TensorBoard is not installed, OSError where no file can be made.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None], purge_step: int = 0) -> None:
        require_tensorboard()
        folder.mkdir(parents=True, exist_ok=True)
        place = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}"
        self._file = AppendedFile(folder / f"events.out.tfevents.{place}", warn)
        self._add(file_version="brain.Event:2")
        self._add(step=purge_step, session_log={"status": "START"})

    def add(self, group: str, values: Mapping[str, float], position: int) -> None:
        """Add a point to each of these curves."""
        for name, value in values.items():
            self.add_scalar(f"{group}/{name}", value, position)

    def add_scalar(self, curve: str, value: float, position: int) -> None:
        """Add a point."""
        self._add(step=position, summary={"value": [{"tag": curve, "simple_value": value}]})

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _add(self, **event: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        record = io.BytesIO()
        RecordWriter(record).write(Event(wall_time=time.time(), **event).SerializeToString())
        self._file.append(record.getvalue())


class WandbCurves:
    """A run of Weights & Biases (the package `wandb`) that gets the same points.

    Args:
        folder: of its own files, in `wandb/`.
        project: its project.
        warn: is told, once, that it takes no more points.
        known: the number of the run to go on with; None begins one.
        settings: what the run was asked for, which is shown beside it.

    Raises InputError where wandb is not installed, or does not begin a run, as without a key.
    """

    def __init__(
        self,
        folder: Path,
        project: str,
        warn: Callable[[str], None],
        known: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        require_wandb()
        import wandb

        self._warn, self._fails = warn, False
        try:
            self._run = wandb.init(
                project=project,
                id=known,
                resume="allow" if known else None,
                name=str(folder),
                dir=str(folder),
                config=dict(settings or {}),
                allow_val_change=True,  # epochs may become more
                settings=wandb.Settings(console="off"),  # it would take the place of stdout
            )
            for group, position in (("train/*", "step"), ("epoch/*", "epoch")):
                self._run.define_metric(group, step_metric=position)
        except Exception as error:  # whatever it raises
            raise InputError(f"wandb: begins no run: {error}; the run can do without it") from error

    @property
    def number(self) -> str:
        """By which the run is gone on with."""
        return str(self._run.id)

    def add(self, group: str, values: Mapping[str, float], position: int) -> None:
        """Add a point to each of these curves."""
        axis = "epoch" if group.startswith("epoch") else "step"
        points = {f"{group}/{name}": value for name, value in values.items()}
        self._try(lambda: self._run.log({**points, axis: position}))

    def close(self) -> None:
        """Send what is left."""
        self._try(self._run.finish)

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:
            if not self._fails:
                self._warn(f"wandb: takes no more points: {error}")
            self._fails = True


def require_curves(tensorboard: bool, wandb: bool) -> None:
    """Raise InputError where one of them is asked for and not installed."""
    if tensorboard:
        require_tensorboard()
    if wandb:
        require_wandb()


def require_wandb() -> None:
    """Raise InputError where wandb is not installed."""
    try:
        import wandb

        wandb.init  # noqa: B018 # a folder `wandb`, as its runs leave one, is a module, too
    except (ImportError, AttributeError) as error:
        raise InputError("wandb: is not installed (pip install wandb); the run can do without it") from error


def require_tensorboard() -> None:
    """Raise InputError where TensorBoard is not installed."""
    try:
        import tensorboard.compat.proto.event_pb2  # noqa: F401
    except ImportError as error:
        raise InputError(
            "tensorboard: is not installed (pip install tensorboard); the run can do without it"
        ) from error
