"""What a trained network sees in a video or stream, window by window, as the frames come."""

import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from train.data.entries import Entry
from train.data.reader import VideoError
from train.data.reader.live import LiveStream
from train.data.reader.stream import Stream
from train.data.sources.files import CAMERA, STDIN
from train.errors import InputError
from train.evaluation.places import find_videos, fingerprint, output_paths, shown_name
from train.evaluation.predict_config import PredictConfig
from train.evaluation.predictor import Predictor
from train.evaluation.stream import StreamReader
from train.evaluation.timeline import SUFFIXES, Seen, Timeline, with_suffix
from train.evaluation.windows import TOLERANCE, Window, WindowCutter, stride_length, window_length
from train.fields import to_plain


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
        self.predictions, self.seconds = self.predictions + 1, self.seconds + seconds
        best, probabilities = self.predictor.best(logits, self.top), logits.softmax(0).float().numpy()
        return Seen(window.start, window.end, len(window.frames), probabilities, best, seconds)

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


def run_windows(config: PredictConfig, predictor: Predictor) -> None:
    """Do what the command line asks for: print what is seen in each window, as it is known, and write timelines.

    Raises InputError where something cannot be read, at the end; what was seen before is printed and written.
    """
    window_length(predictor.trained.recipe.sampling, 1.0, config.window)  # before anything is waited for
    stream = config.stream
    if stream is not None:
        name = shown_name(stream)
        entry, opened = Entry(Path(name), 0), {Path(name): _opener(config, stream, name)}
        outputs = {config.timeline / _file_name(stream): entry} if config.timeline else {}
        entries: tuple[Entry, ...] = (entry,)
    else:
        entries = find_videos(config.videos)
        opened = {entry.path: partial(Stream, entry.path) for entry in entries}
        outputs = output_paths(entries, config.timeline, "") if config.timeline else {}
        if frames := [str(entry.path) for entry in entries if entry.kind == "frames"]:
            raise InputError(f"window: {frames[0]} is a folder of pictures, which have no times; expected video files")
    paths = {entry.path: path for path, entry in outputs.items()}
    _check_absent(list(outputs), config.overwrite)
    origin = {
        "network": str(config.network_path),
        "fingerprint": fingerprint(config.network_path) if outputs else None,
        "sampling": to_plain(predictor.trained.recipe.sampling),
        "views": to_plain(predictor.views),
    }
    failures: list[VideoError] = []
    for entry in entries:
        name = shown_name(stream) if stream is not None else str(entry.path)
        if len(entries) > 1 and not config.json:
            print(name)
        try:
            _run_one(config, predictor, name, opened[entry.path], paths.get(entry.path), origin)
        except VideoError as error:
            failures.append(error)
            if config.json:
                print(json.dumps({"video": name, "error": error.reason}, ensure_ascii=False), flush=True)
            if len(entries) > 1:
                print(f"cannot be read: {error}", file=sys.stderr)
    if failures:
        raise (
            failures[0]
            if len(entries) == 1
            else InputError(f"{len(failures)} of {len(entries)} videos cannot be read to their end")
        )


def _run_one(
    config: PredictConfig,
    predictor: Predictor,
    name: str,
    open_stream: Callable[[], Stream],
    output: Path | None,
    origin: Mapping[str, Any],
) -> None:
    short_side, drops = predictor.views.short_side, {"auto": None, "yes": True, "no": False}[config.drop]
    with StreamReader(open_stream, name, short_side, config.buffer, drops, config.timeout) as reader:
        run = WindowRun(predictor, reader, config.window, config.stride, config.top or 1, _say, config.every)
        timeline = Timeline(name, predictor.class_names, dict(origin))
        try:
            for seen in run:
                print(_json_line(name, seen) if config.json else _line(seen), flush=True)
                if output is not None:
                    timeline.seen.append(seen)
        except KeyboardInterrupt:
            if not reader.goes_on_by_itself:  # a camera has no other end
                raise
        finally:
            _say(run.summary())
            if config.json:
                print(json.dumps({"video": name, **run.counts}, ensure_ascii=False), flush=True)
            if output is not None:
                timeline.origin |= {"window": run.window, "stride": run.stride}
                _say(timeline.write(output, run.counts))


def _opener(config: PredictConfig, place: str, name: str) -> Callable[[], Stream]:
    options = dict(option.split("=", 1) for option in config.input.options)
    return lambda: LiveStream(place, name, config.input.format, options, config.timeout)


def _file_name(stream: str) -> str:
    """What the files of a stream's timeline are called."""
    named = {STDIN: "stdin", CAMERA: "camera"}.get(stream, shown_name(stream))
    return re.sub(r"[^\w.-]+", "_", named).strip("_.") or "stream"


def _check_absent(outputs: list[Path], overwrite: bool) -> None:
    there = [file for path in outputs for file in (with_suffix(path, s) for s in SUFFIXES) if file.exists()]
    if there and not overwrite:
        raise InputError(f"timeline: {there[0]} is there already; take another folder, or --overwrite")


def _line(seen: Seen) -> str:
    classes = "  ".join(f"{probability:7.2%}  {class_name}" for class_name, probability in seen.best)
    return f"{seen.start:8.2f} – {seen.end:8.2f} s  {classes}"


def _json_line(name: str, seen: Seen) -> str:
    return json.dumps({"video": name, **seen.to_plain()}, ensure_ascii=False)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
