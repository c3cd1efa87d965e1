"""What the reader that seeks leaves out, and what no reading by PyAV may cost: memory and threads."""

import ctypes
import gc
from pathlib import Path

import av
import numpy as np
import pytest

from tests.support.video_files import decode, encode, run_python, striped_frames
from train.data.reader import VideoFile
from train.data.reader.stream import Stream


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("videos")


@pytest.mark.parametrize(
    ("pyramid", "decoded"),
    [
        ("none", [0, 2, 4, 40, 44, 45, 47, 48]),  # of I0 P4 b1 b2 b3 and I40 P44 b41 b42 b43 P48 b45 b46 b47
        ("normal", [0, 2, 4, 40, 42, 44, 45, 46, 47, 48]),  # to the B-frame in the middle the others refer
    ],
)
def test_what_no_wanted_frame_needs_is_not_decoded(folder, monkeypatch, pyramid, decoded):
    options = {"g": "20", "bf": "3", "b_strategy": "0", "b-pyramid": pyramid, "sc_threshold": "0"}
    path = encode(folder / f"left_out_{pyramid}.mp4", striped_frames(60), ("libx264", options))
    expected = decode(path)
    times: list[float] = []
    decode_packet = Stream.decode

    def recorded(stream, packet):
        frames = decode_packet(stream, packet)
        times.extend(frame.time for frame in frames)
        return frames

    monkeypatch.setattr(Stream, "decode", recorded)
    np.testing.assert_array_equal(VideoFile(path).read([2, 47, 45]), expected[[2, 47, 45]])
    assert sorted(round(30 * time) for time in times) == decoded


LEAK = """
import ctypes, gc, sys
from train.data.reader import VideoFile

fields = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
Usage = type("Usage", (ctypes.Structure,), {"_fields_": [(field, ctypes.c_size_t) for field in fields]})
mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Usage

def used():
    gc.collect()
    usage = mallinfo()
    return usage.uordblks + usage.hblkhd

def read(times):
    for _ in range(times):
        VideoFile(sys.argv[1], sys.argv[2]).read([3, 17, 31])

read(300)
before = used()
read(400)
print((used() - before) / 400)
"""


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
def test_no_memory_is_lost(folder, decoder):
    """Bytes in use, which the allocator counts: there is nothing that grows by a little for each file."""
    if not hasattr(ctypes.CDLL(None), "mallinfo2"):
        pytest.skip("the C library does not count its memory")
    path = encode(folder / "leak.mp4", striped_frames(40))
    assert float(run_python(LEAK, path, decoder)) < 64


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
def test_no_threads_are_started(folder, decoder):
    """As many as the machine has cores, in each of as many reading processes, would wait for one another."""
    path = encode(folder / "threads.mp4", striped_frames(20, 256, 340))
    video = VideoFile(path, decoder)
    threads = Path("/proc/self/task")
    before = list(threads.iterdir())
    video.read(range(20))
    assert list(threads.iterdir()) == before


def count_frames():
    return sum(type(found) is av.VideoFrame for found in gc.get_objects())


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
def test_no_frame_stays_in_memory(folder, decoder):
    """With its frames a decoder's memory would stay, and the next file's would be fresh, which takes longer."""
    path = encode(folder / "freed.mp4", striped_frames(20))
    gc.collect()
    gc.disable()
    try:
        before = count_frames()
        VideoFile(path, decoder).read(range(20))
        assert count_frames() == before
    finally:
        gc.enable()
