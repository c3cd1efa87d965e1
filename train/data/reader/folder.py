"""Videos as folders of numbered pictures, the form in which Something-Something V1 is given out.

JPEG is decoded by simplejpeg where it is installed (twice as fast as Pillow, equal to the bit) and by Pillow otherwise;
every other format by Pillow. Both raise on a picture that is cut short.
"""

import functools
import importlib
import io
import os
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from train.data.reader.errors import VideoError
from train.data.reader.files import check_indices, check_regular, system_reason

# Of the authors' and mmaction2's own extraction, of Something-Something V1 as it is given out, of other extractions.
PATTERNS = ("img_{:05d}.jpg", "img_{:05d}.png", "{:05d}.jpg", "{:06d}.jpg")


class FrameFolder:
    """A folder of pictures as a video of `num_frames` frames, the picture named `pattern.format(first)` being frame 0.

    What is not given is found: the pattern among `PATTERNS`, the number of frames by counting the pictures, which then
    begin at 0 where there is such a one and `first` is 1, as it is where nothing says it.
    Raises VideoError if there is no such folder, no picture in it, or, where the frames are counted, a gap.
    """

    def __init__(
        self, path: str | os.PathLike[str], num_frames: int | None = None, pattern: str | None = None, first: int = 1
    ) -> None:
        self.path = str(path)
        if num_frames is not None and num_frames < 1:
            raise VideoError(path, f"the list gives it {num_frames} frames")
        if num_frames is None or pattern is None:
            names = _names(path)
            pattern = _find_pattern(self.path, names, first) if pattern is None else pattern
            if num_frames is None:
                first = 0 if first == 1 and pattern.format(0) in names else first
                num_frames = _count(self.path, names, pattern, first)
        self._pattern, self._num_frames = pattern, num_frames
        self.first = first
        """The number in the name of frame 0."""

    def __len__(self) -> int:
        return self._num_frames

    def read(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """The frames at `indices`, in any order and with repetitions, as RGB (T, H, W, 3).

        Raises IndexError for an index outside [0, len), VideoError for a picture that is missing or damaged or differs
        in size from the others; the error names the picture.
        """
        wanted = check_indices(self.path, indices, self._num_frames)
        pictures = {i: self._picture(i) for i in np.unique(wanted).tolist()}
        size = pictures[int(wanted[0])].shape
        for i, picture in pictures.items():
            if picture.shape != size:
                raise VideoError(self._file(i), f"is {_size(picture.shape)}, other frames are {_size(size)}")
        return np.stack([pictures[i] for i in wanted.tolist()])

    def _file(self, index: int) -> Path:
        return Path(self.path, self._pattern.format(self.first + index))

    def _picture(self, index: int) -> NDArray[np.uint8]:
        file = self._file(index)
        check_regular(file)
        try:
            return decode_picture(file.read_bytes())
        except Exception as error:  # decoders raise whatever they meet: ValueError, OSError, SyntaxError, …
            raise VideoError(file, "is no picture, or is damaged or truncated") from error


def decode_picture(data: bytes) -> NDArray[np.uint8]:
    """RGB (H, W, 3) of an encoded picture of any format. Raises what its decoder raises."""
    fast = _simplejpeg_decoder()
    if fast is not None and data[:2] == b"\xff\xd8":
        try:
            return fast(data)
        except ValueError:  # it knows no four-color pictures, and Pillow raises on what is damaged
            pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a damaged picture Pillow sometimes only warns
        return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


@functools.cache
def _simplejpeg_decoder() -> Callable[[bytes], NDArray[np.uint8]] | None:
    try:
        return importlib.import_module("simplejpeg").decode_jpeg
    except ImportError:
        return None


def _names(path: str | os.PathLike[str]) -> set[str]:
    try:
        with os.scandir(path) as items:
            return {item.name for item in items}
    except OSError as error:
        raise VideoError(path, system_reason(error)) from error


def _find_pattern(path: str, names: set[str], first: int) -> str:
    for pattern in PATTERNS:
        if any(pattern.format(number) in names for number in ((1, 0) if first == 1 else (first,))):
            return pattern
    looked_for = ", ".join(pattern.format(first) for pattern in PATTERNS)
    raise VideoError(path, f"holds no first frame; looked for {looked_for} among {len(names)} files")


def _count(path: str, names: set[str], pattern: str, first: int) -> int:
    """Pictures from `first` on. A gap is no end: a picture after it means that some are lost."""
    count = 0
    while pattern.format(first + count) in names:
        count += 1
    before, _, after = pattern.partition("{")
    number = re.compile(re.escape(before) + r"(\d+)" + re.escape(after.partition("}")[2]))
    beyond = [int(match[1]) for name in names if (match := number.fullmatch(name)) and int(match[1]) >= first + count]
    if beyond:
        raise VideoError(Path(path, pattern.format(first + count)), f"is missing, later frames to {max(beyond)} exist")
    if count == 0:
        raise VideoError(path, f"holds no frame {pattern.format(first)} among {len(names)} files")
    return count


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} × {shape[0]}"
