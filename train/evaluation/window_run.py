"""The predictions of a trained network over one video or stream, window by window, and what is counted meanwhile."""

import time
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from train.data.reader import VideoError
from train.evaluation.predictor import Predictor
from train.evaluation.stream import StreamReader
from train.evaluation.timeline import Seen
from train.evaluation.windows import TOLERANCE, Window, WindowCutter, stride_length, window_length


class WindowRun:
    """The predictions of one video or stream, which iterating gives as they are known, and what was counted.

    Args:
        predictor: the network.
        reader: entered; it is iterated.
        window, stride: seconds; None as the command line has it.
        every: frames from one window's start to the next one's, in place of `stride`.
        top: classes of each window.
        say: told what a user is to know.
    """

    def __init__(
        self,
        predictor: Predictor,
        reader: StreamReader,
        window: float | None,
        stride: float | None,
        top: int = 1,
        say: Callable[[str], None] = lambda text: None,
        every: int | None = None,
    ) -> None:
        self.predictor, self.reader, self.window, self.stride, self.top = predictor, reader, window, stride, top
        self.say, self.every = say, every
        self.predictions, self.seconds, self.cutter = 0, 0.0, WindowCutter(1.0, 1.0)
        self.late = 0
        """Windows that were left out since frames of a later one waited already."""

    def __iter__(self) -> Iterator[Seen]:
        """Raises InputError where no window's length is known, and what iterating `reader` raises."""
        buffer, taken, windows = self.reader.buffer, -1, list[Window]()
        for moment, frame in self.reader:
            if taken < 0:
                self._start()
                taken = 0
            windows += self.cutter.add(moment, frame)
            taken += 1
            if buffer.drops:  # then the newest window is worth more than the frames that would be lost meanwhile
                self.late += len(windows[:-1])
                windows = windows[-1:]
                if buffer.waiting and taken < buffer.size:
                    continue
            yield from map(self._see, windows)
            taken, windows = 0, []
        if taken < 0:
            raise VideoError(self.reader.name, "no frame of it is ever shown")
        yield from map(self._see, self.cutter.finish(self.reader.frame_seconds))

    def _start(self) -> None:
        self.window = window_length(self.predictor.trained.recipe.sampling, self.reader.rate, self.window)
        self.stride = stride_length(self.reader.rate, self.every) or self.stride or self.window / 2
        self.cutter = WindowCutter(self.window, self.stride)

    def _see(self, window: Window) -> Seen:
        length = window.end - window.start
        if length < self.cutter.length - 2 * TOLERANCE:
            self.say(
                f"{self.reader.name}: lasts {length:.2f} s, less than a window of {self.cutter.length:.2f} s: one "
                "window of all its frames"
            )
        began = time.perf_counter()
        logits = self.predictor.logits_of_window(window)
        seconds = time.perf_counter() - began
        return self._seen(window.start, window.end, len(window.frames), logits, seconds)

    def _seen(self, start: float, end: float, frames: int, logits: Tensor, seconds: float) -> Seen:
        """A prediction by logits (classes,), counted."""
        self.predictions, self.seconds = self.predictions + 1, self.seconds + seconds
        best = self.predictor.best(logits, self.top, self.reader.name)
        probabilities = logits.softmax(0).float().numpy()
        return Seen(start, end, frames, probabilities, best, seconds)

    @property
    def counts(self) -> dict[str, Any]:
        """Frames, predictions and what was lost, by name."""
        mean = round(1000 * self.seconds / self.predictions, 2) if self.predictions else None
        return {
            "frames": self.reader.read,
            "dropped": self.reader.buffer.dropped,
            "damaged": self.reader.damaged,
            "late_windows": self.late,
            "empty_windows": self.cutter.empty,
            "predictions": self.predictions,
            "ms_per_prediction": mean,
        }

    def summary(self) -> str:
        """The counts in words."""
        counts = self.counts
        parts = [f"{counts['frames']} frames", f"{counts['dropped']} dropped", f"{counts['predictions']} predictions"]
        if counts["damaged"]:
            parts.append(f"{counts['damaged']} packets could not be decoded")
        if counts["late_windows"]:
            parts.append(f"{counts['late_windows']} windows left out, being late")
        if counts["empty_windows"]:
            parts.append(f"{counts['empty_windows']} windows without a frame left out")
        if counts["predictions"]:
            parts.append(f"{counts['ms_per_prediction']:.1f} ms a prediction")
        return f"{self.reader.name}: {', '.join(parts)}"
