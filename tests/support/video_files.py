"""Small video files, good and bad, for tests; and a second opinion on what is in them (PyAV)."""

import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

H264 = ("libx264", {"crf": "18", "g": "12", "bf": "3", "preset": "medium"})
OPEN_GOP = ("libx264", {"crf": "18", "g": "12", "bf": "3", "x264-params": "open-gop=1"})
HEVC = ("libx265", {"x265-params": "log-level=none:keyint=12:min-keyint=12:open-gop=1"})
VP9 = ("libvpx-vp9", {"crf": "24", "b": "0", "g": "12", "deadline": "realtime", "cpu-used": "8"})


def striped_frames(count, height=64, width=64):
    """Frames (T, H, W, 3) that differ from one another: a bright bar moves over a pattern of blocks."""
    blocks = np.random.default_rng(0).integers(30, 160, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    pattern = np.kron(blocks, np.ones((8, 8, 1), dtype=np.uint8))[:height, :width]
    frames = np.repeat(pattern[None], count, axis=0)
    for i, frame in enumerate(frames):
        frame[:, (5 * i) % width] = 250
        frame[(3 * i) % height] = 20
    return frames


def encode(path, frames, codec=H264, container_options=None, pixels="yuv420p", times=None):
    """Encode `frames` into `path`; its suffix chooses the container. `times` are in ms, by default 30 a second."""
    name, options = codec
    if name == "libx264":  # stripes look like cuts between scenes; in real videos key frames stand further apart
        options = {"sc_threshold": "0"} | options
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(name, rate=30, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixels
        stream.codec_context.thread_count = 1
        if times is not None:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for i, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            if times is not None:
                picture.pts, picture.time_base = times[i], Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def decode(path):
    """All frames that are to be shown, RGB (T, H, W, 3), by PyAV; not turned as the container may say."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def cut_without_encoding(path, source, first, last):
    """Remux mp4 `source` (frames of equal length) as `ffmpeg -ss -c copy` does: earlier frames stay in as pre-roll.

    Frames `first` to `last` (about) are to be shown. decord by itself hangs on such files.
    """
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        video = old.streams.video[0]
        copy = new.add_stream_from_template(video)
        step = (video.duration or 0) // video.frames
        for packet in old.demux(video):
            if packet.dts is None or packet.pts > last * step:
                continue
            packet.pts -= first * step
            packet.dts -= first * step
            packet.stream = copy
            new.mux(packet)
    return path


def with_edits(path, source, edits):
    """Copy mp4 `source`, 30 fps, with another edit list: (frames, first frame or None for nothing), …."""
    data = bytearray(source.read_bytes())
    movie_rate, media_rate = (_ticks(data, *kinds) for kinds in (("moov", "mvhd"), ("moov", "trak", "mdia", "mdhd")))
    start, length = _find(data, "moov", "trak", "edts", "elst")
    first = int.from_bytes(data[start + 20 : start + 24])  # B-frames make the first frame's time more than 0
    body = b"".join(
        struct.pack(
            ">iiHH",
            round(count * movie_rate / 30),
            -1 if begin is None else first + round(begin * media_rate / 30),
            1,
            0,
        )
        for count, begin in edits
    )
    elst = struct.pack(">I4sII", 16 + len(body), b"elst", 0, len(edits)) + body
    parents = [_find(data, *kinds) for kinds in (("moov",), ("moov", "trak"), ("moov", "trak", "edts"))]
    data[start : start + length] = elst
    for parent, size in parents:
        data[parent : parent + 4] = struct.pack(">I", size + len(elst) - length)
    path.write_bytes(data)
    return path


def with_display_matrix(path, source, a, b, c, d):
    """Copy mp4 `source`, telling players to show the pixel at (x, y) at (ax + cy, bx + dy)."""
    data = bytearray(source.read_bytes())
    start, _ = _find(data, "moov", "trak", "tkhd")
    data[start + 48 : start + 84] = struct.pack(">9i", *(v << 16 for v in (a, b, 0, c, d, 0, 0, 0)), 1 << 30)
    path.write_bytes(data)
    return path


def _find(data, *kinds):
    """(start, length) of the first box of that kind in the box of the kind before."""
    start, end, length = 0, len(data), 0
    for depth, kind in enumerate(kinds):
        start += 8 if depth else 0
        while data[start + 4 : start + 8] != kind.encode():
            start += int.from_bytes(data[start : start + 4])
            assert start < end, kind
        length = int.from_bytes(data[start : start + 4])
        end = start + length
    return start, length


def _ticks(data, *kinds):
    start, _ = _find(data, *kinds)
    return int.from_bytes(data[start + 20 : start + 24])


def audio_only(path):
    """A second of silence."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        for _ in range(40):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.rate = 44100
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def no_frames(path, codec=H264):
    """A container with a video stream in which nothing was written."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec[0], rate=30)
        stream.height = stream.width = 64
        stream.pix_fmt = "yuv420p"
        container.start_encoding()
    return path


def bad_videos(folder: Path):
    """Every kind of file that is no readable video: {kind: path}."""
    folder.mkdir(parents=True, exist_ok=True)
    good = encode(folder / "good.mp4", striped_frames(24)).read_bytes()
    streaming = {"movflags": "faststart"}  # the index comes first, so it survives the cut and the frames do not
    index_first = encode(folder / "index_first.mp4", striped_frames(90), container_options=streaming).read_bytes()
    kinds = {kind: folder / f"{kind}.mp4" for kind in ("absent", "directory", "empty", "garbage", "text", "no_index")}
    kinds["directory"].mkdir()
    kinds["empty"].touch()
    kinds["garbage"].write_bytes(np.random.default_rng(1).bytes(20_000))
    kinds["text"].write_text("not a video\n" * 200)
    kinds["no_index"].write_bytes(good[: len(good) // 2])
    webm = encode(folder / "good.webm", striped_frames(90), VP9).read_bytes()
    for percent in (1, 5, 10, 20, 30, 45, 60, 75, 90, 99):
        for name, whole in ((f"cut_{percent}.mp4", index_first), (f"cut_{percent}.webm", webm)):
            kinds[name] = folder / name
            kinds[name].write_bytes(whole[: len(whole) * percent // 100])
    kinds["audio_only"] = audio_only(folder / "audio_only.mp4")
    kinds["no_frames"] = no_frames(folder / "no_frames.mp4")
    kinds["no_frames_webm"] = no_frames(folder / "no_frames.webm", VP9)
    return kinds


def run_python(code, *arguments, timeout=60):
    """Run `code` in a process of its own, where a decoder that hangs can be stopped; returns what it printed."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, timeout=timeout, check=True, capture_output=True, text=True).stdout
