"""Frames by torchcodec, in its exact mode. An option, not a requirement: it needs a matching torch and FFmpeg."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.data.reader.errors import UnsuitedError, VideoError
from train.data.reader.files import name_for_ffmpeg
from train.errors import InputError


class TorchcodecFile:
    """A video file opened by torchcodec. Raises VideoError, InputError where torchcodec is not installed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        decoders = _import_decoders()
        try:
            # Its approximate mode computes frame numbers from a mean rate and is wrong where the rate varies.
            self._decoder: Any = decoders.VideoDecoder(
                name_for_ffmpeg(path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact"
            )
            self._num_frames = len(self._decoder)
        except UnicodeEncodeError as error:
            raise UnsuitedError("takes no such name") from error
        except (RuntimeError, ValueError) as error:
            if "libtorchcodec" in str(error):
                raise InputError(f"decoder: torchcodec cannot be used here, {str(error).splitlines()[0]}") from error
            raise VideoError(path, _reason(error)) from error

    def __len__(self) -> int:
        return self._num_frames

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """RGB (T, H, W, 3) of the frames at `indices`, which are in range. Raises VideoError."""
        try:
            return self._decoder.get_frames_at(indices=indices.tolist()).data.numpy()
        except (RuntimeError, ValueError, IndexError) as error:
            raise VideoError(self.path, _reason(error)) from error


def _import_decoders() -> Any:
    try:
        return importlib.import_module("torchcodec.decoders")
    except (ImportError, RuntimeError, OSError) as error:  # it is there, and its FFmpeg is not
        raise InputError(f"decoder: torchcodec cannot be used here, {str(error).splitlines()[0]}") from error


def _reason(error: Exception) -> str:
    if "No valid stream" in str(error) or "No best video stream" in str(error):
        return "has no video stream (audio only, or not a single frame)"
    return f"cannot be decoded, it is damaged or truncated ({type(error).__name__})"
