"""Curves for TensorBoard, in a file that outlives a full disk, which torch's own writer ends the program for."""

import io
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from train.appended import AppendedFile
from train.errors import InputError


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


def require_tensorboard() -> None:
    """Raise InputError where TensorBoard is not installed."""
    try:
        import tensorboard.compat.proto.event_pb2  # noqa: F401
    except ImportError as error:
        raise InputError(
            "tensorboard: is not installed (pip install tensorboard); the run can do without it"
        ) from error
