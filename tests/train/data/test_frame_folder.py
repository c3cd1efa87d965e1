import importlib
import io
import os

import numpy as np
import pytest
from PIL import Image

import train.data.reader.folder
from tests.support.video_files import striped_frames
from train.data.check import check
from train.data.entries import Entry
from train.data.reader import FrameFolder, VideoError, open_frames


@pytest.fixture(params=["simplejpeg", "Pillow"])
def jpeg_decoder(request, monkeypatch):
    if request.param == "Pillow":
        monkeypatch.setattr(train.data.reader.folder, "_simplejpeg_decoder", lambda: None)
    else:
        pytest.importorskip("simplejpeg")
    return request.param


def encoded(frame, kind="JPEG"):
    data = io.BytesIO()
    Image.fromarray(frame).save(data, format=kind, quality=90)
    return data.getvalue()


def write_folder(folder, pattern="{:05d}.jpg", count=6, first=1, size=(48, 64)):
    """Returns the frames as Pillow reads them."""
    folder.mkdir(parents=True)
    kind = "PNG" if pattern.endswith("png") else "JPEG"
    pictures = [encoded(frame, kind) for frame in striped_frames(count, *size)]
    for number, data in enumerate(pictures, start=first):
        (folder / pattern.format(number)).write_bytes(data)
    return np.stack([np.array(Image.open(io.BytesIO(data)).convert("RGB")) for data in pictures])


@pytest.mark.parametrize("pattern", ["img_{:05d}.jpg", "img_{:05d}.png", "{:05d}.jpg", "{:06d}.jpg"])
def test_public_patterns_are_found(tmp_path, pattern, jpeg_decoder):
    expected = write_folder(tmp_path / "clip", pattern)
    (tmp_path / "clip" / "thumbs.db").touch()
    frames = open_frames(Entry(tmp_path / "clip", 0, "frames"))
    assert len(frames) == 6
    np.testing.assert_array_equal(frames.read([5, 0, 3, 3]), expected[[5, 0, 3, 3]])


def test_pictures_that_begin_at_0(tmp_path):
    """As OpenCV users write them; the first one is not lost."""
    expected = write_folder(tmp_path / "clip", first=0)
    frames = open_frames(Entry(tmp_path / "clip", 0, "frames"))
    np.testing.assert_array_equal(frames.read(range(len(frames))), expected)
    write_folder(tmp_path / "still", first=0, count=1)
    assert len(open_frames(Entry(tmp_path / "still", 0, "frames"))) == 1
    assert len(FrameFolder(tmp_path / "clip", first=2)) == 4
    for listed, first in ((None, 0), (6, 0), (5, 1), (3, 1)):
        checked = check(0, Entry(tmp_path / "clip", 0, "frames", listed))
        assert (checked.problem, checked.entry.num_frames, checked.entry.first) == (None, listed or 6, first)
        np.testing.assert_array_equal(open_frames(checked.entry).read([0]), expected[[first]])
    assert check(0, Entry(tmp_path / "clip", 0, "frames", 7)).problem == "short"


def test_what_the_list_says_holds(tmp_path):
    expected = write_folder(tmp_path / "clip", "frame{:d}.jpg", first=0)
    entry = Entry(tmp_path / "clip", 0, "frames", num_frames=4, pattern="frame{:d}.jpg", first=0)
    frames = open_frames(entry)
    assert len(frames) == 4
    np.testing.assert_array_equal(frames.read(np.array([3, 0])), expected[[3, 0]])
    with pytest.raises(IndexError, match="frames 0 to 3"):
        frames.read([4])
    with pytest.raises(ValueError, match="integers"):
        frames.read(np.array([0.5]))


def test_grey_and_four_colours(tmp_path, jpeg_decoder):
    (tmp_path / "clip").mkdir()
    picture = Image.fromarray(striped_frames(1)[0])
    for number, mode in enumerate(("L", "CMYK"), start=1):
        picture.convert(mode).save(tmp_path / "clip" / f"{number:05d}.jpg", quality=95)
    grey, colours = FrameFolder(tmp_path / "clip").read([0, 1]).astype(int)
    assert np.ptp(grey, axis=-1).max() == 0
    assert np.abs(colours - striped_frames(1)[0]).mean() < 12


def test_missing_frame_is_named(tmp_path):
    write_folder(tmp_path / "clip")
    (tmp_path / "clip" / "00003.jpg").unlink()
    with pytest.raises(VideoError, match=r"00003\.jpg: is missing, later frames to 6 exist"):
        FrameFolder(tmp_path / "clip")
    frames = FrameFolder(tmp_path / "clip", num_frames=6)
    assert frames.read([0, 3]).shape == (2, 48, 64, 3)
    with pytest.raises(VideoError, match=r"00003\.jpg: no such file"):
        frames.read([0, 2])


def test_folder_shorter_than_its_list_says(tmp_path):
    write_folder(tmp_path / "clip")
    with pytest.raises(VideoError, match=r"00009\.jpg: no such file"):
        FrameFolder(tmp_path / "clip", num_frames=9).read([0, 8])


@pytest.mark.parametrize("share", [0, 1, 10, 30, 50, 70, 90, 97, 99])
def test_damaged_frame_is_named(tmp_path, share, jpeg_decoder):
    write_folder(tmp_path / "clip")
    file = tmp_path / "clip" / "00002.jpg"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) * share // 100])
    with pytest.raises(VideoError, match=r"00002\.jpg: is (empty|no picture, or is damaged)"):
        FrameFolder(tmp_path / "clip").read([0, 1])
    file.write_bytes(b"not a picture" * 20)
    with pytest.raises(VideoError, match=r"00002\.jpg: is no picture"):
        FrameFolder(tmp_path / "clip").read([1])


def test_frames_of_several_sizes(tmp_path):
    write_folder(tmp_path / "clip")
    (tmp_path / "clip" / "00002.jpg").write_bytes(encoded(striped_frames(1, 32, 32)[0]))
    with pytest.raises(VideoError, match=r"00002\.jpg: is 32 × 32, other frames are 64 × 48"):
        FrameFolder(tmp_path / "clip").read([0, 1])


def test_no_folder_no_frames(tmp_path):
    with pytest.raises(VideoError, match="absent: no such file"):
        FrameFolder(tmp_path / "absent")
    with pytest.raises(VideoError, match=r"absent/00001\.jpg: no such file"):
        FrameFolder(tmp_path / "absent", 5, "{:05d}.jpg").read([0])
    (tmp_path / "file").touch()
    with pytest.raises(VideoError, match="not a directory"):
        FrameFolder(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(VideoError, match=r"holds no first frame; looked for img_00001\.jpg, .* among 0 files"):
        FrameFolder(tmp_path / "empty")
    with pytest.raises(VideoError, match=r"holds no frame x1\.jpg"):
        FrameFolder(tmp_path / "empty", pattern="x{:d}.jpg")
    with pytest.raises(VideoError, match="gives it 0 frames"):
        FrameFolder(tmp_path / "empty", 0)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_pipe_does_not_wait_for_a_writer(tmp_path):
    write_folder(tmp_path / "clip")
    (tmp_path / "clip" / "00002.jpg").unlink()
    os.mkfifo(tmp_path / "clip" / "00002.jpg")
    with pytest.raises(VideoError, match=r"00002\.jpg: is not a regular file"):
        FrameFolder(tmp_path / "clip").read([1])


def test_pillow_stands_in_for_simplejpeg(monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    train.data.reader.folder._simplejpeg_decoder.cache_clear()
    try:
        assert train.data.reader.folder._simplejpeg_decoder() is None
        assert train.data.reader.folder.decode_picture(encoded(striped_frames(1)[0])).shape == (64, 64, 3)
    finally:
        train.data.reader.folder._simplejpeg_decoder.cache_clear()
