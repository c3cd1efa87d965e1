"""A close look at one entry of a data set: is all of it there, and would training read the right frames?"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from train.data.entries import Entry
from train.data.index import Checked, Problem
from train.data.reader import Decoder, FrameFolder, Frames, VideoError, VideoFile, open_frames
from train.data.reader.files import name_for_ffmpeg
from train.data.reader.known import text_of
from train.data.reader.straight import decoded_frames
from train.data.reader.stream import Pictures

_PROBES = 8  # frames of a video file that are read as training reads them
_CHUNK = 32  # frames of a folder that are held at once
_SAME = 8.0  # mean difference in luma, of 255 levels, up to which two decoders may show the same frame …
_NEARER = 1.0  # … if the frames before and after it are not nearer by this


def check(number: int, entry: Entry, min_frames: int = 1, decoder: Decoder = "auto") -> Checked:
    """Look at an entry: decode all of it, count its frames, compare what training would read with a second decoder.

    A video file is decoded from its start to its end by PyAV; some of its frames are also read as training does, and
    must be the same. `number` is the entry's place in its list. Raises nothing for what is wrong with the entry.
    """
    try:
        frames = open_frames(replace(entry, num_frames=None, packets=""), decoder)  # nothing promised is believed
        if isinstance(frames, VideoFile):
            found = _count_shown(frames, decoder)
        else:
            found = sum(len(chunk) for chunk in chunks(frames))
    except VideoError as error:
        problem: Problem = "missing"
        if entry.path.exists():
            problem = "short" if isinstance(error, _ShortError) else "corrupt"
        inside = "" if error.path == str(entry.path) else f"{Path(error.path).name}: "
        return Checked(number, entry, problem, inside + error.reason)
    least = max(min_frames, entry.num_frames or 1)
    if found < least:
        asked = "the list says" if least == entry.num_frames else "there should be at least"
        return Checked(number, entry, "short", f"has {found} frames, {asked} {least}")
    if isinstance(frames, FrameFolder):
        from_first = found - (entry.first - frames.first)  # a list of so many does not mean a frame 0
        first = frames.first if from_first < (entry.num_frames or found) else entry.first
        return Checked(number, replace(entry, num_frames=entry.num_frames or found, first=first))
    return Checked(number, replace(entry, num_frames=entry.num_frames or found, packets=text_of(entry.path)))


class _ShortError(VideoError):
    """The end of a video is not there."""


def chunks(frames: Frames) -> Iterator[NDArray[np.uint8]]:
    """All frames of a video, in pieces (up to 32, H, W, 3)."""
    for start in range(0, len(frames), _CHUNK):
        yield frames.read(np.arange(start, min(start + _CHUNK, len(frames))))


def _count_shown(video: VideoFile, decoder: Decoder) -> int:
    """Frames that PyAV shows of the whole video. VideoError where the reader counts or shows others."""
    read = _probed(video, decoder)
    distance: dict[tuple[int, int], float] = {}  # (probe, frame beside it or itself)
    shown = damaged = 0
    seconds = 0.0
    picture = Pictures()
    for frame in decoded_frames(Path(video.path)):
        near = [probe for probe in (shown - 1, shown, shown + 1) if probe in read]
        if near:
            luma = _luma(picture(frame))
            for probe in near:
                same_size = luma.shape == read[probe].shape
                distance[probe, shown] = float(np.abs(luma - read[probe]).mean()) if same_size else np.inf
        damaged += bool(frame.is_corrupt)
        seconds = frame.time or 0.0
        shown += 1
    if shown != len(video):
        raise VideoError(video.path, f"the reader counts {len(video)} frames, {shown} can be decoded")
    if damaged:
        raise VideoError(video.path, f"{damaged} of its {shown} frames are damaged")
    promised, slack = _promised_seconds(video.path)
    if seconds < promised - slack:
        raise _ShortError(video.path, f"ends after {seconds:.1f} of {promised:.1f} seconds: it is truncated")
    for probe in read:
        beside = min(distance.get((probe, probe - 1), np.inf), distance.get((probe, probe + 1), np.inf))
        if distance[probe, probe] > min(_SAME, beside + _NEARER):
            raise VideoError(video.path, f"two decoders disagree about what its frame {probe} shows")
    return shown


def _probed(video: VideoFile, decoder: Decoder) -> dict[int, NDArray[np.float32]]:
    """Luma of frames from all over the video, each as the first that a reader is asked for: it must seek, and has seen
    nothing that helps it. They come in an order that depends on their number alone.
    """
    probes = np.unique(np.linspace(0, len(video) - 1, _PROBES).astype(np.int64))
    order = np.random.default_rng(len(video)).permutation(probes)
    read = {i: _luma(VideoFile(video.path, decoder, len(video)).read([i])[0]) for i in order.tolist()}
    return dict(sorted(read.items()))


def _promised_seconds(path: str) -> tuple[float, float]:
    """How long the video is by its container's header, and by how much less its last frame may begin earlier.

    Asked where a part of a file can be read, 0 elsewhere: an mp4 cannot lose its end unnoticed, and where an edit list
    is in it the header may mean more than is shown.
    """
    with av.open(name_for_ffmpeg(Path(path))) as container:
        if not {"matroska", "avi"} & set(container.format.name.split(",")):
            return 0.0, 0.0
        stream: Any = container.streams.best("video")
        try:  # what is said of this stream, as hours:minutes:seconds
            hours, minutes, seconds = map(float, stream.metadata["DURATION"].split(":"))
            return 3600 * hours + 60 * minutes + seconds, 0.25  # three frames of the slowest usual rate
        except (KeyError, ValueError):
            seconds = (container.duration or 0) / 1e6  # of the longest stream, which may well be the sound
            return seconds, 0.1 * seconds + 0.5


def _luma(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(H, W) of RGB (H, W, 3): ITU-R BT.601, in which decoders agree better than in colors, which they interpolate."""
    return pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
