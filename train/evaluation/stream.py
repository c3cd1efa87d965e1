"""A thread that reads a file or stream frame by frame, and the buffer between it and the network."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tam_triton.clips import resize_short_side
from train.data.reader import VideoError
from train.data.reader.forward import Clock, TimedFrame, timed_frames
from train.data.reader.live import LiveStream
from train.data.reader.stream import Stream


class _StoppedError(Exception):
    """Nobody takes frames any more."""


class FrameBuffer:
    """At most `size` frames between the thread that reads them and the one that takes them.

    Where it is full a frame waits or, if `drops`, takes the place of the oldest one, which is counted.
    """

    def __init__(self, size: int, drops: bool = False) -> None:
        self.size, self.drops, self.dropped = size, drops, 0
        self._frames: deque[tuple[float, Tensor]] = deque()
        self._changed = threading.Condition()
        self._ended = self._stopped = False
        self._error: Exception | None = None

    def put(self, time: float, frame: Tensor) -> None:
        """Add a frame."""
        with self._changed:
            while len(self._frames) >= self.size and not self._stopped:
                if self.drops:
                    self._frames.popleft()
                    self.dropped += 1
                else:
                    self._changed.wait()
            if self._stopped:
                raise _StoppedError
            self._frames.append((time, frame))
            self._changed.notify_all()

    def end(self, error: Exception | None) -> None:
        """No frame comes after those that are there; with an `error`, that is raised in place of the next one."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def stop(self) -> None:
        """No frame is taken any more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    @property
    def waiting(self) -> int:
        """Frames that are there to be taken."""
        return len(self._frames)

    def take(self, timeout: float) -> tuple[float, Tensor] | None:
        """The oldest frame and its time; None at the end. TimeoutError after so many seconds without one."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._frames or self._ended, timeout):
                raise TimeoutError
            if self._frames:
                frame = self._frames.popleft()
                self._changed.notify_all()
                return frame
        if self._error is not None:
            raise self._error
        return None


class StreamReader:
    """Frames of what `open_stream` opens, resized to a short side, as they come: a context manager, to be iterated.

    Args:
        open_stream: called in the thread that reads.
        name: what errors call it.
        short_side: pixels.
        buffer: frames that are held.
        drops: whether frames are dropped that come too fast; None where the stream goes on by itself.
        timeout: seconds without a frame after which iterating raises VideoError, for the stream has stalled.

    Iterating gives (seconds, uint8 (H, W, 3)), and raises VideoError where the stream cannot be read.
    """

    def __init__(
        self,
        open_stream: Callable[[], Stream],
        name: str,
        short_side: int,
        buffer: int = 64,
        drops: bool | None = None,
        timeout: float = 30.0,
    ) -> None:
        self._open, self.name, self.short_side, self.timeout = open_stream, name, short_side, timeout
        self._drops = drops
        self.buffer = FrameBuffer(buffer, bool(drops))
        self.read = 0
        """Frames that were decoded, those that were dropped too."""
        self.rate: float | None = None
        """Frames a second, known with the first frame, if at all."""
        self.goes_on_by_itself = False
        self._stream: Stream | None = None
        # A decoder, or a pipe, that hangs cannot be woken: the thread must not keep the program from ending.
        self._thread = threading.Thread(target=self._run, name="reader", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.buffer.stop()
        self._thread.join(timeout=1.0)

    def __iter__(self) -> Iterator[tuple[float, Tensor]]:
        try:
            while (frame := self.buffer.take(self.timeout)) is not None:
                yield frame
        except TimeoutError:
            raise VideoError(self.name, f"has stalled: no frame for {self.timeout:g} s") from None

    @property
    def frame_seconds(self) -> float:
        """How long a frame lasts."""
        return Clock(self.rate).frame_seconds

    @property
    def damaged(self) -> int:
        """Packets of a stream that could not be decoded."""
        return self._stream.damaged if isinstance(self._stream, LiveStream) else 0

    def _run(self) -> None:
        error: Exception | None = None
        try:
            stream = self._stream = self._open()
            self.rate = stream.rate
            if isinstance(stream, LiveStream):
                self.goes_on_by_itself = stream.goes_on_by_itself
                self.buffer.drops = self.goes_on_by_itself if self._drops is None else self._drops
            sizes: set[tuple[int, ...]] = set()
            for frame in timed_frames(stream):
                self.read += 1
                self.buffer.put(frame.time, self._resized(frame, sizes))
        except _StoppedError:
            pass
        except OSError as failure:
            error = VideoError(self.name, (failure.strerror or str(failure)).lower())
        except Exception as failure:
            error = failure
        self.buffer.end(error)

    def _resized(self, frame: TimedFrame, sizes: set[tuple[int, ...]]) -> Tensor:
        pixels: NDArray[np.uint8] = frame.pixels
        sizes.add(pixels.shape)
        if len(sizes) > 1:
            raise VideoError(self.name, "its frames change their size")
        return resize_short_side(torch.from_numpy(pixels)[None], self.short_side)[0]
