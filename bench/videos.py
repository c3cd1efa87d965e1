"""Video files like those of Kinetics-400 and Something-Something V2, made here: no data set is needed to measure."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from train.data.entries import Entry
from train.data.sampling import Sampling
from train.data.transcode import transcode

GRAIN = 3.0  # standard deviation of the sensor's noise, in gray levels: at none the files are far too small


@dataclass(frozen=True)
class Kind:
    """How a data set's files are encoded, and how frames are taken from them.

    Attributes:
        codec, options: FFmpeg's encoder; its defaults but for what bounds the time of encoding and the size.
        rate: frames a second.
        transcoded: whether the files are then encoded again as `python -m train prepare --transcode` does.
    """

    width: int
    height: int
    num_frames: int
    rate: int
    codec: str
    options: tuple[tuple[str, str], ...]
    suffix: str
    sampling: Sampling
    transcoded: bool = False


K400 = Kind(340, 256, 300, 30, "libx264", (("crf", "23"),), ".mp4", Sampling("dense", 8))
_VP9 = (("crf", "38"), ("b", "0"), ("deadline", "realtime"), ("cpu-used", "6"))
SSV2 = Kind(427, 240, 48, 12, "libvpx-vp9", _VP9, ".webm", Sampling("segments", 8))

KINDS = {
    "k400": K400,
    "k400-transcoded": replace(K400, transcoded=True),
    "ssv2": SSV2,
    "ssv2-transcoded": replace(SSV2, transcoded=True),
}


def make_files(name: str, folder: Path, count: int) -> list[Entry]:
    """`count` files of the kind `name` in `folder`, each with another content; their bytes depend on FFmpeg alone."""
    kind, entries = KINDS[name], []
    for number in range(count):
        entry = Entry(folder / f"{name}-{number}{kind.suffix}", number % 2, num_frames=kind.num_frames)
        encode(entry.path, kind, np.random.default_rng(number))
        if kind.transcoded:
            original, entry = entry, replace(entry, path=folder / f"{name}-{number}.small.mp4")
            transcode(original, entry.path, short_side=256)
        entries.append(entry)
    return entries


def encode(path: Path, kind: Kind, rng: np.random.Generator) -> None:
    """Write one file."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(kind.codec, rate=kind.rate, options=dict(kind.options))
        stream.width, stream.height, stream.pix_fmt = kind.width, kind.height, "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in scene(kind, rng):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def scene(kind: Kind, rng: np.random.Generator) -> Iterator[NDArray[np.uint8]]:
    """Frames (H, W, 3): a camera that pans over a texture, three discs before it, and a sensor's noise."""
    margin = 64
    height, width = kind.height + margin, kind.width + margin
    backdrop = np.zeros((height, width, 3))
    for size, contrast in ((64, 150), (16, 80), (4, 25)):  # as in natural pictures, the finer the fainter
        backdrop += _blocks(height, width, size, rng) * contrast
    grain = rng.normal(0.0, GRAIN, (8, kind.height, kind.width, 1))
    y, x = np.mgrid[: kind.height, : kind.width]
    colors, phases, radii = rng.uniform(0, 255, (3, 3)), rng.uniform(0, 6.28, (3, 2)), rng.uniform(15, 40, 3)
    for number in range(kind.num_frames):
        turn = 6.28 * number / (4.0 * kind.rate)  # once round in four seconds
        down, right = (int(margin / 2 * (1 + np.sin(turn + shift))) for shift in (0.0, 1.57))
        frame = backdrop[down : down + kind.height, right : right + kind.width].copy()
        for color, (a, b), radius in zip(colors, phases, radii, strict=True):
            center = kind.height / 2 * (1 + 0.7 * np.sin(turn + a)), kind.width / 2 * (1 + 0.7 * np.cos(turn + b))
            frame[(y - center[0]) ** 2 + (x - center[1]) ** 2 < radius**2] = color
        frame += grain[rng.integers(len(grain))]
        yield np.clip(frame, 0, 255).astype(np.uint8)


def _blocks(height: int, width: int, size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Squares of random color (H, W, 3), from 0 to 1."""
    small = rng.uniform(0, 1, (height // size + 1, width // size + 1, 3))
    return small.repeat(size, axis=0).repeat(size, axis=1)[:height, :width]
