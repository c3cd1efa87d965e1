"""Streams that are read as they come: standard input, cameras, addresses. Opened by FFmpeg, decoded as files are."""

import os
import stat
import sys
from collections.abc import Generator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import av

from train.data.reader.errors import VideoError
from train.data.reader.files import name_for_ffmpeg
from train.data.reader.stream import Stream
from train.data.sources.files import CAMERA, CAMERAS, STDIN


class LiveStream(Stream):
    """The video stream that players choose of what is at `place`; what cannot be decoded is passed over and counted.

    Args:
        place: "-" is standard input, "camera" the first camera; or a device, a named pipe or an address.
        name: what errors call it.
        format: FFmpeg's name of the format, where that does not show by itself.
        options: FFmpeg's options.
        timeout: seconds that an address may take to answer.

    Raises:
        VideoError: nothing is there, or nothing that FFmpeg can read; there is no such camera.
    """

    def __init__(self, place: str, name: str, format: str | None, options: Mapping[str, str], timeout: float) -> None:
        self._place, self._format, self._options, self._timeout = place, format, dict(options), timeout
        self.damaged = 0
        """Packets of which no frame could be decoded."""
        try:
            super().__init__(Path(place), name)
        except OSError as error:
            raise VideoError(name, self._why_not_open(error)) from error

    @property
    def goes_on_by_itself(self) -> bool:
        """Whether frames come in their own time, and not as fast as they are taken: from cameras, and from addresses
        that say neither how long what is there lasts nor how many bytes it has."""
        is_endless = self.has_no_duration and self._container.size <= 0
        return is_camera(self._place) or ("://" in self._place and is_endless)

    def decode(self, packet: Any) -> list[Any]:
        """As of a file, but what cannot be decoded, as before a camera's first key frame, is counted in `damaged`."""
        try:
            return super().decode(packet)
        except VideoError:
            self.damaged += packet is not None
            return []

    def _packets(self) -> Generator[Any, None, None]:
        """As of a file; but where not even a first one comes, the container is why."""
        packets = super()._packets()
        with closing(packets):
            try:
                first = next(packets, None)
            except VideoError as error:
                raise VideoError(self.name, self._why_not_open(error.__cause__)) from error
            if first is not None:
                yield first
                yield from packets

    def _open(self) -> Any:
        place, form = self._place, self._format
        if place == STDIN:
            place = f"pipe:{_standard_input()}"
        elif is_camera(place):
            place, form = find_camera(place), form or "v4l2"
        elif "://" not in place:
            place = name_for_ffmpeg(self.path)
        return av.open(place, format=form, options=self._options, timeout=(self._timeout, None))

    def _why_not_open(self, error: BaseException | None) -> str:
        if isinstance(error, VideoError):
            return error.reason
        if error is None:
            return ""
        if isinstance(error, av.InvalidDataError | av.EOFError):
            return (
                "is empty, no video, or one that cannot be read as it comes (mp4 with its index at the end: "
                "Matroska and MPEG-TS can)"
            )
        return f"cannot be opened: {(getattr(error, 'strerror', None) or str(error)).lower()}"


def is_camera(place: str) -> bool:
    """Whether `place` is `camera` or a device of that kind, there or not."""
    return place == CAMERA or place.startswith(CAMERAS)


def find_camera(place: str) -> str:
    """The device of the camera `place`. Raises VideoError where it is none, naming those that there are."""
    device = f"{CAMERAS}0" if place == CAMERA else place
    with suppress(OSError):
        if stat.S_ISCHR(Path(device).stat().st_mode):
            return device
    there = ", ".join(map(str, sorted(Path("/dev").glob("video*")))) or "none"
    raise VideoError(device, f"there is no such camera (cameras: {there})")


def _standard_input() -> int:
    try:
        return os.dup(sys.stdin.fileno())
    except (OSError, ValueError, AttributeError) as error:
        raise VideoError("standard input", "there is none") from error
