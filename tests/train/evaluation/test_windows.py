"""Windows of time, the clock they go by, the buffer before them, and the timeline after them."""

import csv
import json
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tam_triton.classifier import Prediction
from train.data.reader.forward import Clock
from train.data.sampling import Sampling
from train.errors import InputError
from train.evaluation.stream import FrameBuffer
from train.evaluation.timeline import Seen, Span, Timeline
from train.evaluation.windows import Window, WindowCutter, window_length


def cut(times, length, stride, frame_seconds):
    """(start, end, numbers of the frames) of every window, how many were empty, and the most frames that were held."""
    cutter, held = WindowCutter(length, stride), 0
    windows: list[Window] = []
    for number, moment in enumerate(times):
        windows += cutter.add(moment, torch.tensor(number))
        held = max(held, len(cutter._frames))
    windows += cutter.finish(frame_seconds)
    cuts = [(round(w.start, 3), round(w.end, 3), [int(frame) for frame in w.frames]) for w in windows]
    return cuts, cutter.empty, held


def test_windows_overlap_and_the_last_one_ends_with_the_video():
    cuts, empty, held = cut([i / 10 for i in range(23)], 1.0, 0.5, 0.1)
    assert cuts == [
        (0.0, 1.0, list(range(10))),
        (0.5, 1.5, list(range(5, 15))),
        (1.0, 2.0, list(range(10, 20))),
        (1.3, 2.3, list(range(13, 23))),
    ]
    assert (empty, held) == (0, 11)


def test_a_whole_number_of_windows_has_no_other_one():
    assert [c[2] for c in cut([i / 10 for i in range(20)], 1.0, 1.0, 0.1)[0]] == [list(range(10)), list(range(10, 20))]


def test_rounded_times_make_the_same_windows():
    """Matroska's, in milliseconds, and MPEG-TS', in 90,000ths."""
    exact = [i / 30 for i in range(300)]
    whole = cut(exact, 64 / 30, 32 / 30, 1 / 30)[0]
    for ticks in (1000, 90000):
        assert [c[2] for c in cut([round(t * ticks) / ticks for t in exact], 64 / 30, 32 / 30, 1 / 30)[0]] == [
            c[2] for c in whole
        ]
    assert [len(c[2]) for c in whole] == [64] * len(whole)


def test_what_is_shorter_than_a_window_is_one():
    assert cut([0.0, 0.1, 0.2], 1.0, 0.5, 0.1)[0] == [(0.0, 0.3, [0, 1, 2])]
    assert cut([], 1.0, 0.5, 0.1)[0] == []


def test_windows_with_time_between_them():
    cuts, empty, held = cut([i / 10 for i in range(25)], 0.5, 1.0, 0.1)
    assert [(c[0], c[2][0], len(c[2])) for c in cuts] == [(0.0, 0, 5), (1.0, 10, 5), (2.0, 20, 5)]
    assert empty == 0
    assert held <= 6


def test_time_without_frames_is_counted_and_not_walked_through():
    began = time.perf_counter()
    cuts, empty, _ = cut([0.0, 0.5, 1e9, 1e9 + 0.5, 1e9 + 1.0], 1.0, 1.0, 0.5)
    assert time.perf_counter() - began < 1
    assert [c[2] for c in cuts] == [[0, 1], [2, 3], [3, 4]]
    assert empty == 10**9 - 1


def test_a_clock_of_timestamps_that_jump_back_or_are_missing():
    clock = Clock(10.0)
    times = [round(clock(t), 3) for t in (5.0, 5.1, None, 5.3, 2.0, 2.1, 2.1, 2.5)]
    assert times == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0]


def test_how_long_a_window_is():
    dense, segments = Sampling("dense", 8, 64), Sampling("segments", 8)
    assert window_length(dense, 25.0, None) == 64 / 25
    assert window_length(segments, None, 3.0) == 3.0
    with pytest.raises(InputError, match=r"window: got none, expected seconds: this network saw whole videos"):
        window_length(segments, 25.0, None)
    with pytest.raises(InputError, match="does not say how many frames a second"):
        window_length(dense, None, None)


def test_a_full_buffer_drops_the_oldest_or_waits():
    frame = torch.zeros(1)
    buffer = FrameBuffer(2, drops=True)
    for number in range(5):
        buffer.put(float(number), frame)
    buffer.end(None)
    assert [taken[0] for taken in iter(lambda: buffer.take(1.0), None)] == [3.0, 4.0]
    assert buffer.dropped == 3

    buffer = FrameBuffer(2)

    def fill():
        for number in range(20):
            buffer.put(float(number), frame)
        buffer.end(None)

    thread = threading.Thread(target=fill)
    thread.start()
    assert [taken[0] for taken in iter(lambda: buffer.take(5.0), None)] == [float(i) for i in range(20)]
    assert buffer.dropped == 0
    thread.join()
    with pytest.raises(TimeoutError):
        FrameBuffer(2).take(0.01)


def timeline():
    names = ("a $x", "=b", "c")
    shares = np.array([[0.7, 0.2, 0.1], [0.6, 0.4, 0], [0.1, 0.9, 0], [0.3, 0.3, 0.4]], np.float32)
    seen = [
        Seen(i, i + 2, 20, row, [Prediction(names[int(row.argmax())], float(row.max()))], 0.1)
        for i, row in enumerate(shares)
    ]
    return Timeline("long.mp4", names, {"window": 2.0}, seen)


def test_spans_change_halfway_between_the_middles_of_windows():
    assert timeline().edges == [0, 1.5, 2.5, 3.5, 5]
    assert timeline().spans == [Span(0, 2.5, "a $x"), Span(2.5, 3.5, "=b"), Span(3.5, 5, "c")]
    assert replace(timeline(), seen=[]).spans == []


def test_the_files_of_a_timeline(tmp_path):
    said = timeline().write(tmp_path / "deep" / "long.mp4", {"dropped": 3})
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == [
        f"long.mp4.{s}" for s in ("csv", "json", "png")
    ]
    assert str(tmp_path / "deep" / "long.mp4.png") in said
    content = json.loads((tmp_path / "deep" / "long.mp4.json").read_text())
    assert (content["dropped"], content["window"], len(content["windows"])) == (3, 2.0, 4)
    assert content["spans"][1] == {"start": 2.5, "end": 3.5, "class_name": "=b"}
    with (tmp_path / "deep" / "long.mp4.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["start", "end", "frames", "class", "probability", "a $x", "'=b", "c"]
    assert rows[3] == ["2.000", "4.000", "20", "'=b", str(float(np.float32(0.9))), "0.100000", "0.900000", "0.000000"]
    picture = np.asarray(Image.open(tmp_path / "deep" / "long.mp4.png").convert("RGB")).astype(int)
    red = (abs(picture - (0xD6, 0x27, 0x28)).sum(2) < 20).nonzero()
    rows_of_red = {row for row in np.unique(red[0]).tolist() if (red[0] == row).sum() > 50}
    runs = 1 + sum(b - a > 5 for a, b in zip(sorted(rows_of_red), sorted(rows_of_red)[1:], strict=False))
    assert runs == 3  # a line in the row of each class that is ever the most probable
