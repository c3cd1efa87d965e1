"""What a run says of itself: JSON lines, lines and a bar on the console, and curves where they are asked for."""

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from tqdm import tqdm

from train.appended import AppendedFile
from train.curves import Curves, CurveWriter, WandbCurves, require_curves

Value = TypeVar("Value")


def say(*lines: str) -> None:
    """Print `lines`, names that are no text escaped. A console that is gone, or on a full disk, ends nothing."""
    text = "\n".join(lines).encode(errors="backslashreplace").decode()
    _on_console(lambda: tqdm.write(text))


def _on_console(show: Callable[[], object]) -> None:
    """Print by `show`. Where the console is gone, as a terminal that was closed, what it would show goes nowhere."""
    try:
        show()
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(nowhere, stream)
        os.close(nowhere)


def _warn(message: str) -> None:
    say(f"warning: {message}")


class JsonLines:
    """A file of JSON objects, a line each, as lasting as an `AppendedFile`.

    Args:
        path: the file.
        append: go on with the lines that are there. A last line without an end, as a killed writer leaves it, goes.
        warn: is told when it cannot be written; prints by default.

    Raises OSError where there can be no such file.
    """

    def __init__(self, path: Path, append: bool = False, warn: Callable[[str], None] = _warn) -> None:
        self._warn, self._file = warn, AppendedFile(path, warn)
        self._file.cut(path.read_bytes().rfind(b"\n") + 1 if append and path.is_file() else 0)

    def write(self, event: str, **values: Any) -> None:
        """Write one line: the event's name and its values. Numbers that JSON has no word for (nan, inf) go as text."""
        line = json.dumps({"event": event, **_plain(values)}, ensure_ascii=False, allow_nan=False)
        # Names of files that are no text are written as JSON itself would write them.
        self._file.append(line.encode(errors="backslashreplace") + b"\n")

    def keep(self, is_kept: Callable[[dict[str, Any]], bool]) -> None:
        """Leave out the lines that `is_kept` does not want; whatever happens, the file holds all lines or the kept."""
        if not self._file.path.is_file():  # a device
            return
        kept = b"".join(line for line, content in _read(self._file.path) if is_kept(content))
        try:
            self._file.replace(kept)
        except OSError as error:
            self._warn(f"{self._file.path}: {error.strerror or error}; lines that come again stand in it twice")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _read(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Every line at `path` and what it says; nothing where it is another program's, and so no object of JSON."""
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            content = None
        yield line, content if isinstance(content, dict) else {}


def read_events(path: Path, event: str) -> list[dict[str, Any]]:
    """The lines of one kind of event in the log at `path`. Raises OSError."""
    return [content for _, content in _read(path) if content.get("event") == event]


class RunLog:
    """The log of a training run: `log.jsonl` in its folder, the console, and curves for TensorBoard and for W&B.

    In the processes that do not lead, give `folder=None`: they write and print nothing. `tensorboard` asks for files in
    `tensorboard/`, `wandb` for a run of that project, shown with `settings`. InputError where either is not installed.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        append: bool = False,
        tensorboard: bool = False,
        wandb: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if folder:
            require_curves(tensorboard, wandb is not None)
        self._lines = None if folder is None else JsonLines(folder / "log.jsonl", append)
        self._folder, self._tensorboard, self._wandb, self._settings = folder, tensorboard, wandb, settings
        self._curves: list[CurveWriter] = []
        self._bar: Any = None

    def rewind(self, step: int, epochs: int) -> None:
        """Leave out what the file says of steps after `step` and of epochs after `epochs`: they will come again."""

        def number(line: dict[str, Any], name: str) -> float:
            return value if isinstance(value := line.get(name), int | float) else 0

        def is_kept(line: dict[str, Any]) -> bool:
            ends_epoch = line.get("event") in ("epoch", "left_out")
            return number(line, "step") <= step and not (ends_epoch and number(line, "epoch") > epochs)

        if self._lines:
            self._lines.keep(is_kept)

    def begin(self, step: int, total: int) -> None:
        """Show the bar and begin the curves: `step` of `total` steps are done; TensorBoard's later points are purged.

        Raises InputError, or OSError, where they cannot begin.
        """
        if self._folder and self._tensorboard:
            self._curves.append(Curves(self._folder / "tensorboard", _warn, purge_step=step + 1))
        if self._folder and self._wandb is not None:
            self._curves.append(self._begin_wandb(self._folder, self._wandb))
        # None: on a terminal only, so that the log of a batch job holds lines alone.
        disable = None if self._lines else True
        self._bar = tqdm(initial=step, total=total, unit="step", dynamic_ncols=True, disable=disable)

    def event(self, event: str, **values: Any) -> None:
        """A JSON line."""
        if self._lines:
            self._lines.write(event, **values)

    def say(self, message: str) -> None:
        """A line on the console."""
        if self._lines:
            say(message)

    def warn(self, message: str, **values: Any) -> None:
        """A line on the console and in the file about something that should not have happened."""
        self.event("warning", message=message, **values)
        self.say(f"warning: {message}")

    def steps(self, step: int, epoch: float, metrics: Mapping[str, float], text: str) -> None:
        """What the last steps were like, everywhere; `epoch` is how many are done, `text` the console's line."""
        self.event("step", step=step, epoch=epoch, **metrics)
        self.say(text)
        self._curve("train", step, metrics)

    def epoch(self, step: int, epoch: int, scores: Mapping[str, Mapping[str, float]], text: str) -> None:
        """How an epoch ended, everywhere: {"train" or "val": {name: value}}."""
        self.event("epoch", step=step, epoch=epoch, **scores)
        self.say(text)
        for part, values in scores.items():
            self._curve(f"epoch/{part}", epoch, values)

    def track(self, batches: Iterable[Value], title: str) -> Iterable[Value]:
        """`batches`, with a bar of their own as long as they last."""
        disable = None if self._lines else True
        return tqdm(batches, title, unit="batch", leave=False, dynamic_ncols=True, disable=disable)

    def progress(self, step: int) -> None:
        """Move the bar to `step`."""
        if self._bar is not None and not self._bar.disable:
            _on_console(lambda: self._bar.update(step - self._bar.n))

    def close(self) -> None:
        """Close file, bar and writer."""
        if self._bar is not None:
            _on_console(self._bar.close)
        if self._lines:
            self._lines.close()
        for writer in self._curves:
            writer.close()

    def _begin_wandb(self, folder: Path, project: str) -> WandbCurves:
        """A run of `project`, or that which the log names as this run's."""
        known = [
            line.get("id") for line in read_events(folder / "log.jsonl", "wandb") if line.get("project") == project
        ]
        number = known[-1] if known and isinstance(known[-1], str) else None
        writer = WandbCurves(folder, project, _warn, number, self._settings)
        if writer.number != number:
            self.event("wandb", project=project, id=writer.number)
        return writer

    def _curve(self, group: str, position: int, values: Mapping[str, float]) -> None:
        for writer in self._curves:
            writer.add(group, values, position)


def accuracy_text(top1: float, top5: float, num_classes: int) -> str:
    """Such as `top-1 76.10%, top-5 92.30%`; where there are five classes or fewer top-5 says nothing."""
    return f"top-1 {top1:.2%}" + (f", top-5 {top5:.2%}" if num_classes > 5 else "")


def _plain(value: Any) -> Any:
    """`value` as JSON knows it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
