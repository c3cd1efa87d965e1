"""`python -m train predict` over time: windows of files, and of streams that come through a pipe."""

import contextlib
import hashlib
import json
import os
import threading
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import tam_triton
from tests.support.video_files import encode, striped_frames
from tests.train.evaluation.test_testing import make_trained
from train.__main__ import main
from train.checkpoint import save_checkpoint
from train.data.reader.forward import timed_frames
from train.data.reader.live import LiveStream
from train.data.reader.stream import Stream
from train.errors import InputError
from train.evaluation import predict_windows
from train.evaluation.predict_config import InputConfig, PredictConfig
from train.evaluation.predictor import Predictor
from train.evaluation.stream import StreamReader
from train.evaluation.windows import Window, WindowCutter
from train.recipes import RECIPES

pytestmark = pytest.mark.usefixtures("one_thread")

LINE = {"start", "end", "frames", "predictions", "video"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A network that sees 4 frames out of 16, one that sees whole videos, and videos of 3 s and of 0.2 s."""
    folder = tmp_path_factory.mktemp("streams")
    demo = RECIPES["demo"].sampling
    save_checkpoint(folder / "dense.pt", make_trained(sampling=replace(demo, kind="dense", num_segments=4, reach=16)))
    save_checkpoint(folder / "whole.pt", make_trained(sampling=replace(demo, num_segments=4)))
    for suffix in ("mkv", "ts", "mp4"):
        encode(folder / f"long.{suffix}", striped_frames(90, 48, 80))
    encode(folder / "short.mp4", striped_frames(6, 48, 80))
    return folder


@pytest.fixture
def pipe(monkeypatch):
    """Lets standard input be a pipe with `data` in it, which stays open if `held`."""
    with contextlib.ExitStack() as stack:

        def lay(data, held=False):
            reading, writing = os.pipe()
            stack.enter_context(contextlib.suppress(OSError))
            monkeypatch.setattr("sys.stdin", stack.enter_context(os.fdopen(reading, "rb")))
            writer = os.fdopen(writing, "wb")

            def write():
                with contextlib.suppress(BrokenPipeError):
                    writer.write(data)
                    writer.flush()
                if not held:
                    writer.close()

            thread = threading.Thread(target=write, daemon=True)
            thread.start()
            stack.callback(writer.close)
            stack.callback(thread.join, 5)

        yield lay


def predicted(capsys, *arguments):
    """The exit status, the lines, and what was said beside."""
    status = main(["predict", *map(str, arguments), "--device", "cpu"])
    said = capsys.readouterr()
    return status, said.out.splitlines(), said.err


def windows_of(open_stream):
    cutter = WindowCutter(0.5, 0.25)
    windows: list[Window] = []
    with StreamReader(open_stream, "x", 40, timeout=5) as reader:
        for moment, frame in reader:
            windows += cutter.add(moment, frame)
        windows += cutter.finish(reader.frame_seconds)
    return windows


@pytest.mark.parametrize("suffix", ["mkv", "ts"])
def test_a_pipe_gives_the_frames_of_the_file(place, pipe, suffix):
    path = place / f"long.{suffix}"
    from_file = windows_of(partial(Stream, path))
    pipe(path.read_bytes())
    from_pipe = windows_of(lambda: LiveStream("-", "-", None, {}, 5))
    assert len(from_file) == len(from_pipe) == 11
    for one, other in zip(from_file, from_pipe, strict=True):
        assert (one.start, one.end, len(one.frames)) == (other.start, other.end, len(other.frames))
        assert all(torch.equal(a, b) for a, b in zip(one.frames, other.frames, strict=True))


def test_a_pipe_is_predicted_as_the_file(place, pipe, capsys, tmp_path):
    """By default in windows of what the network's frames span, 16 of 30 a second, every half of that."""
    path, out = place / "long.mkv", tmp_path / "out"
    status, lines, said = predicted(capsys, place / "dense.pt", path, "--timeline", out, "--json")
    *windows, counts = map(json.loads, lines)
    assert status == 0
    assert all(window.keys() == LINE for window in windows)
    assert [window["start"] for window in windows[:3]] == [0, 0.267, 0.533]
    assert windows[-1]["end"] == pytest.approx(3, abs=0.002)
    assert {window["frames"] for window in windows} == {16}
    assert (counts["frames"], counts["dropped"], counts["predictions"]) == (90, 0, len(windows))
    assert f"{path}: 90 frames, 0 dropped, {len(windows)} predictions, " in said

    pipe(path.read_bytes())
    status, lines, _ = predicted(capsys, place / "dense.pt", "-", "--timeline", out, "--json")
    assert status == 0
    assert [json.loads(line) | {"video": str(path)} for line in lines[:-1]] == windows
    written = json.loads((out / "stdin.json").read_text())
    assert len(written["windows"]) == len(windows)
    assert written["fingerprint"] == f"sha256:{hashlib.sha256((place / 'dense.pt').read_bytes()).hexdigest()}"
    assert (written["sampling"]["reach"], written["views"]["clips"], written["stride"]) == (16, 1, 16 / 30 / 2)
    (table,) = out.rglob("long.mkv.csv")
    assert (out / "stdin.csv").read_bytes() == table.read_bytes()
    _, lines, _ = predicted(capsys, place / "dense.pt", path, "--every", "24", "--json")
    assert [json.loads(line)["start"] for line in lines[:-1]] == [0, 0.8, 1.6, 2.4]
    status, lines, said = predicted(capsys, place / "dense.pt", path, "--timeline", out)
    assert (status, lines) == (1, [])
    assert "is there already; take another folder, or --overwrite" in said


def test_one_window_sees_what_the_whole_video_is_seen_as(place, capsys):
    """With several views; and what is shorter than a window is one, which is said."""
    views = ("--views.clips", "3", "--views.crops", "3", "--views.crop-size", "48", "--batch-size", "4", "--json")
    for name, window in (("long.mp4", "3"), ("short.mp4", "1")):
        _, (whole,), _ = predicted(capsys, place / "whole.pt", place / name, *views)
        window_options = ("--window", window, "--top", "5")
        _, (line, _), said = predicted(capsys, place / "whole.pt", place / name, *views, *window_options)
        for one, other in zip(json.loads(line)["predictions"], json.loads(whole)["predictions"], strict=True):
            assert one["class_name"] == other["class_name"]
            assert one["probability"] == pytest.approx(other["probability"], rel=1e-5)  # batches of other sizes
        assert ("short.mp4: lasts 0.20 s, less than a window of 1.00 s: one window of all" in said) == (name[0] == "s")


def test_videos_in_windows_go_on_after_a_bad_one(place, capsys, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"no video" * 100)
    videos = (tmp_path / "bad.mp4", place / "long.mp4")
    status, lines, said = predicted(capsys, place / "whole.pt", *videos, "--window", "1", "--stride", "1")
    assert status == 1
    assert lines[:2] == [str(video) for video in videos]
    assert [line.split(" s  ")[0].split() for line in lines[2:]] == [
        ["0.00", "–", "1.00"],
        ["1.00", "–", "2.00"],
        ["2.00", "–", "3.00"],
    ]
    assert "bad.mp4: is not a video file" in said
    assert "error: 1 of 2 videos cannot be read to their end" in said


def test_a_stall_keeps_what_was_seen(place, pipe, capsys, tmp_path):
    data = (place / "long.ts").read_bytes()
    pipe(data[: len(data) * 3 // 4], held=True)
    arguments = ("-", "--input.format", "mpegts", "--timeout", "1.5", "--timeline", tmp_path / "out", "--stride", "0.5")
    status, lines, said = predicted(capsys, place / "dense.pt", *arguments)
    assert status == 1
    assert len(lines) >= 2
    assert "error: standard input: has stalled: no frame for 1.5 s" in said
    assert f" 0 dropped, {len(lines)} predictions, " in said
    assert len(json.loads((tmp_path / "out" / "stdin.json").read_text())["windows"]) == len(lines)


def test_a_slow_machine_drops_frames_where_it_may(place, pipe, capsys, monkeypatch):
    def slow(self, window):
        time.sleep(0.05)
        return torch.zeros(3)

    monkeypatch.setattr(Predictor, "logits_of_window", slow)
    predictions, totals = [], set()
    for drop, lost in (("yes", True), ("no", False)):
        pipe((place / "long.ts").read_bytes())
        options = ("--stride", "0.2", "--buffer", "2", "--drop", drop, "--json")
        status, lines, _ = predicted(capsys, place / "dense.pt", "-", *options)
        counts = json.loads(lines[-1])
        assert status == 0
        assert counts["frames"] == 90
        assert (counts["dropped"] > 0) == lost
        predictions.append(counts["predictions"])
        totals.add(counts["predictions"] + counts["late_windows"] + counts["empty_windows"])
    assert totals == {predictions[1]}
    assert predictions[0] < predictions[1]


def test_mp4_with_its_index_at_the_end(place, pipe, capsys, tmp_path):
    """More of it than FFmpeg holds at once."""
    noise = np.random.default_rng(0).integers(0, 256, (20, 128, 128, 3), np.uint8)
    pipe(encode(tmp_path / "noise.mp4", noise).read_bytes())
    status, lines, said = predicted(capsys, place / "dense.pt", "-")
    assert (status, lines) == (1, [])
    assert "error: standard input: is empty, no video, or one that cannot be read as it comes (mp4 with" in said


@pytest.mark.parametrize("live", [True, False])
def test_an_interrupt_is_the_end_of_a_camera(place, pipe, capsys, monkeypatch, live):
    """And of what has an end of its own an interruption; either way with a summary."""
    monkeypatch.setattr(LiveStream, "goes_on_by_itself", live)
    shown: list[str] = []

    def line(seen):
        if len(shown) == 2:
            raise KeyboardInterrupt
        shown.append("")
        return "seen"

    monkeypatch.setattr(predict_windows, "_line", line)
    pipe((place / "long.ts").read_bytes())
    status, lines, said = predicted(capsys, place / "dense.pt", "-", "--drop", "no")
    assert (status, lines) == (0 if live else 130, ["seen"] * 2)
    assert " 0 dropped, 3 predictions, " in said
    assert ("interrupted" in said) != live


def test_raw_frames(place, pipe, capsys):
    frames = striped_frames(40, 48, 80)
    pipe(frames.tobytes())
    options = (
        "--input.format",
        "rawvideo",
        "--input.options",
        "video_size=80x48",
        "pixel_format=rgb24",
        "framerate=20",
    )
    status, lines, said = predicted(capsys, place / "dense.pt", "-", "--window", "1", *options)
    assert (status, len(lines)) == (0, 3)
    assert "standard input: 40 frames, 0 dropped, 3 predictions" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("/dev/video99",), "error: /dev/video99: there is no such camera (cameras: "),
        (("http://user:secret@127.0.0.1:1/x",), "error: http://127.0.0.1:1/x: cannot be opened: connection refused"),
        (("-",), "error: standard input: is empty, no video, or one that cannot be read as it comes"),
        (("nothing*.mp4",), "error: nothing*.mp4: matches nothing, expected a pattern of video files"),
    ],
)
def test_what_cannot_be_read_so(place, pipe, capsys, arguments, message):
    pipe(b"")
    status, lines, said = predicted(capsys, place / "dense.pt", *arguments)
    assert (status, lines) == (1, [])
    assert message in said
    assert "secret" not in said


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ("- long.mp4", {}, r"files: got - long.mp4, expected a stream \(-\) alone"),
        ("long.mp4", {"drop": "yes"}, "drop: got 'yes', expected auto, as only a stream"),
        ("long.mp4", {"input": InputConfig("ts")}, "format: got 'ts', expected None, as only streams"),
        ("long.mp4", {"stride": 0.0}, "stride: got 0.0, expected seconds from 0.01"),
        ("long.mp4", {"every": 0}, "every: got 0, expected at least 1"),
        ("long.mp4", {"every": 8, "stride": 1.0}, r"every: got 8 beside a stride of 1\.0 s, expected one of them"),
        ("long.mp4", {"recompute": 0}, "recompute: got 0, expected at least 1"),
        ("long.mp4", {"recompute": 2, "stride": 1.0}, r"stride: got 1\.0 s, expected none with --recompute"),
        (
            "long.mp4",
            {"recompute": 2, "window": 1.0, "every": 2},
            r"window: got 1\.0 s, expected none with --rec",
        ),
        ("-", {"timeout": 0.0}, "timeout: got 0.0, expected a number of seconds above 0"),
        ("long.mp4", {"overwrite": True}, "overwrite: got True without --timeline"),
    ],
)
def test_options_that_do_not_go_together(files, options, message):
    with pytest.raises(InputError, match=message):
        PredictConfig(("c", *files.split()), **options)
    with pytest.raises(InputError, match="expected KEY=VALUE, which 'x' is not"):
        InputConfig(options=("x",))


@pytest.mark.parametrize(("name", "every"), [("dense", None), ("whole", 5)])
def test_frame_by_frame_is_the_stream_of_the_library(place, pipe, capsys, name, every):
    """A line for each window that `VideoClassifier.stream` has of the file's frames, through a pipe too."""
    model = tam_triton.load(place / f"{name}.pt")
    stream = model.stream(every=4 if every is None else every)
    frames = [stream(torch.from_numpy(frame.pixels), top=5) for frame in timed_frames(Stream(place / "long.mkv"))]
    expected = [window for window in frames if window is not None]
    options = ("--recompute", "4", "--top", "5", "--json", *(() if every is None else ("--every", str(every))))
    status, lines, said = predicted(capsys, place / f"{name}.pt", place / "long.mkv", *options)
    *windows, counts = map(json.loads, lines)
    assert (status, counts["predictions"], counts["frames"]) == (0, len(windows), 90)
    assert f"{len(windows)} predictions" in said
    assert len(windows) == len(expected) > 10
    for window, predictions in zip(windows, expected, strict=True):
        assert [one["class_name"] for one in window["predictions"]] == [one.class_name for one in predictions]
        found = [one["probability"] for one in window["predictions"]]
        assert found == pytest.approx([one.probability for one in predictions], rel=1e-5)
    step = (4 if every is None else every) / 30
    assert [window["start"] for window in windows[:3]] == pytest.approx([0, step, 2 * step], abs=1e-3)
    assert windows[0]["end"] == pytest.approx(4 * step, abs=1e-3)
    pipe((place / "long.mkv").read_bytes())
    _, lines, _ = predicted(capsys, place / f"{name}.pt", "-", *options)
    assert [json.loads(line)["predictions"] for line in lines[:-1]] == [window["predictions"] for window in windows]


def test_frame_by_frame_needs_one_view_and_a_whole_window(place, capsys):
    for arguments, message in (
        (
            ("long.mp4", "--recompute", "9", "--every", "2"),
            "recompute: got 9, expected at most the window",
        ),
        (
            ("long.mp4", "--recompute", "4", "--views.crops", "3", "--every", "2"),
            "with 3 views of a window, expected one",
        ),
        (("long.mp4", "--recompute", "4"), "window: got none, expected seconds"),
        (("short.mp4", "--recompute", "4", "--every", "5"), "ends before a window is full: 1 of 4 frames"),
    ):
        status, lines, said = predicted(capsys, place / "whole.pt", place / arguments[0], *arguments[1:])
        assert (status, lines) == (1, [])
        assert message in said


def test_networks_of_whole_videos_need_a_window(place, capsys):
    status, _, said = predicted(capsys, place / "whole.pt", place / "long.mp4", "--stride", "1")
    assert status == 1
    assert "error: window: got none, expected seconds: this network saw whole videos" in said
    assert "frames" not in said.split("error")[0]  # before any was read


def test_what_is_a_stream(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    streams = ("-", "camera", "/dev/video7", "rtsp://host/a", "http://host/a.mp4", str(tmp_path / "fifo"))
    assert all(PredictConfig(("c", place)).stream == place for place in streams)
    files = ("camera.mp4", "./camera", "10:30.mp4", "a-b", str(tmp_path))
    assert [PredictConfig(("c", place)).in_windows for place in files] == [False] * 5
