"""torchcodec, an option: how it is called, what its errors become, and, where it can be used, its frames."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.support.video_files import VP9, decode, encode, striped_frames, with_edits
from tests.train.data.test_reader import assert_frames_are_those_asked_for
from train.data.reader import VideoError, VideoFile
from train.data.reader.with_torchcodec import TorchcodecFile
from train.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("videos")


def test_torchcodec_is_asked_in_its_exact_mode(folder, monkeypatch):
    """torchcodec is no requirement: what is tested here is how it is called and what its errors become."""
    path = encode(folder / "ten.mp4", striped_frames(10))
    calls = []

    class VideoDecoder:
        def __init__(self, name, **options):
            calls.append((name, options))

        def __len__(self):
            return 10

        def get_frames_at(self, indices):
            if 9 in indices:
                raise RuntimeError("Could not push packet to decoder")
            return SimpleNamespace(data=torch.tensor(indices, dtype=torch.uint8)[:, None, None, None])

    monkeypatch.setitem(sys.modules, "torchcodec.decoders", SimpleNamespace(VideoDecoder=VideoDecoder))
    video = VideoFile(path, "torchcodec")
    assert video.read(np.array([4, 2, 4]))[:, 0, 0, 0].tolist() == [4, 2, 4]
    assert calls == [(str(path), {"dimension_order": "NHWC", "num_ffmpeg_threads": 1, "seek_mode": "exact"})]
    with pytest.raises(VideoError, match=r"ten\.mp4: cannot be decoded"):
        video.read([9])
    edited = with_edits(folder / "edited.mp4", path, [(5, 2)])
    assert VideoFile(edited, "torchcodec").read_by == "SelectiveFile"
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(InputError, match="torchcodec cannot be used here"):
        VideoFile(path, "torchcodec")


def skip_without_torchcodec(path):
    """FFmpeg's shared libraries are the system's to give, and torchcodec looks for them when it is first used."""
    try:
        TorchcodecFile(path)
    except InputError as error:
        pytest.skip(f"torchcodec, an option, cannot be used: {error}")


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("b_frames.mp4", ("libx264", {"crf": "18", "g": "12", "bf": "3"}), {}),
        ("vp9.webm", VP9, {}),
        ("mpeg4.avi", ("mpeg4", {"g": "12"}), {}),
        ("av1.mkv", ("libsvtav1", {"preset": "12", "svtav1-params": "lp=1"}), {}),
        ("varying.mkv", VP9, {"times": np.cumsum(np.random.default_rng(3).integers(1, 120, size=50)).tolist()}),
        ("ten_bits.mp4", ("libx264", {"g": "12"}), {"pixels": "yuv420p10le"}),
    ],
)
def test_real_torchcodec(folder, name, codec, options):
    path = encode(folder / name, striped_frames(50), codec, **options)
    skip_without_torchcodec(path)
    video = VideoFile(path, "torchcodec")
    assert_frames_are_those_asked_for(video, decode(path), tolerance=2.0)
    assert video.read_by == "TorchcodecFile"
