"""Small video files, good and bad, for tests; and a second opinion on what is in them (PyAV)."""

import subprocess
import sys
from pathlib import Path

import av
import numpy as np

H264 = ("libx264", {"crf": "18", "g": "12", "bf": "3", "preset": "medium"})
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


def encode(path, frames, codec=H264, container_options=None):
    """Encode `frames` into `path`; its suffix chooses the container."""
    name, options = codec
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(name, rate=30, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def decode(path):
    """All frames that are to be shown, RGB (T, H, W, 3), by PyAV."""
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
    for percent in (5, 30, 60, 90):
        kinds[f"cut_{percent}"] = folder / f"cut_{percent}.mp4"
        kinds[f"cut_{percent}"].write_bytes(index_first[: len(index_first) * percent // 100])
    kinds["audio_only"] = audio_only(folder / "audio_only.mp4")
    kinds["no_frames"] = no_frames(folder / "no_frames.mp4")
    kinds["no_frames_webm"] = no_frames(folder / "no_frames.webm", VP9)
    return kinds


def run_python(code, *arguments, timeout=60):
    """Run `code` in a process of its own, where a decoder that hangs can be stopped; returns what it printed."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, timeout=timeout, check=True, capture_output=True, text=True).stdout
