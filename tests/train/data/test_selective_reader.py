"""What the reader of H.264 leaves out, and what no reading by PyAV may cost: memory and threads."""

import ctypes
from pathlib import Path

import numpy as np
import pytest

from tests.support.video_files import decode, encode, run_python, striped_frames
from train.data.reader import VideoFile
from train.data.reader.h264 import is_reference, is_restart


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("videos")


def test_restart_of_h264():
    def unit(kind, length=5):
        return length.to_bytes(4) + bytes([0x60 | kind]) + bytes(length - 1)

    assert is_restart(unit(6) + unit(7) + unit(5), 4)
    assert not is_restart(unit(6) + unit(1) + unit(5), 4)
    assert not is_restart(unit(6, 9000)[:4096], 4)  # cannot be seen
    assert not is_restart(unit(5), 0)


def test_references_of_h264():
    def unit(kind, importance):
        return b"\0\0\0\5" + bytes([importance << 5 | kind]) + bytes(4)

    assert is_reference(unit(6, 0) + unit(1, 1), 4)
    assert not is_reference(unit(7, 3) + unit(1, 0), 4)
    assert is_reference(unit(1, 0) + unit(1, 2), 4)
    assert is_reference(unit(6, 0), 4)  # holds no picture that could be left out
    assert is_reference(unit(1, 0), 0)  # cannot be told


def test_what_no_wanted_frame_needs_is_not_decoded(folder, monkeypatch):
    options = {"g": "20", "bf": "3", "b_strategy": "0", "b-pyramid": "none", "sc_threshold": "0"}
    path = encode(folder / "left_out.mp4", striped_frames(60), ("libx264", options))
    looked_at: list[bool] = []

    def recorded(sample, length_bytes):
        looked_at.append(is_reference(sample, length_bytes))
        return looked_at[-1]

    monkeypatch.setattr("train.data.reader.selective.is_reference", recorded)
    np.testing.assert_array_equal(VideoFile(path).read([2, 47, 45]), decode(path)[[2, 47, 45]])
    on_the_way_to_2 = [True, True, False]  # I0, P4, b1
    to_45_and_47 = [True, True, False, False, False, True, False]  # I40, P44, b41, b42, b43, P48, b46
    assert looked_at == on_the_way_to_2 + to_45_and_47


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

read(100)
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
