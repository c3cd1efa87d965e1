"""What a trained network sees in a video or stream, window by window, as the frames come."""

import json
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from train.data.entries import Entry
from train.data.reader import VideoError
from train.data.reader.live import LiveStream
from train.data.reader.stream import Stream
from train.data.sources.files import CAMERA, STDIN
from train.errors import InputError
from train.evaluation.frame_run import FrameRun
from train.evaluation.places import find_videos, fingerprint, output_paths, shown_name
from train.evaluation.predict_config import PredictConfig
from train.evaluation.predictor import Predictor
from train.evaluation.stream import StreamReader
from train.evaluation.timeline import SUFFIXES, Seen, Timeline, with_suffix
from train.evaluation.window_run import WindowRun
from train.evaluation.windows import window_length
from train.fields import to_plain


def run_windows(config: PredictConfig, predictor: Predictor) -> None:
    """Do what the command line asks for: print what is seen in each window, as it is known, and write timelines.

    Raises InputError where something cannot be read, at the end; what was seen before is printed and written.
    """
    if config.recompute is None or config.every is None:
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
        if config.recompute is None:
            run = WindowRun(predictor, reader, config.window, config.stride, config.top or 1, _say, config.every)
        else:
            run = FrameRun(predictor, reader, config.recompute, config.window, config.every, config.top or 1, _say)
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
