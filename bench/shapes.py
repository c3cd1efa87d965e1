"""The shapes to measure: by default those of every TAM in TANet-50."""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Shape:
    """A feature map `(N·T, C, H, W)`, and how many TAMs of the network see it.

    Attributes:
        channels: C.
        size: H, and W too unless `width` is given.
        count: TAMs of this shape.
        width: W.
    """

    channels: int
    size: int
    count: int = 1
    width: int | None = None

    def __str__(self) -> str:
        return f"{self.channels}×{self.size}×{self.width or self.size}"

    def features(self, clips: int, segments: int, dtype: torch.dtype, layout: str, device: str) -> Tensor:
        """Random values in the given layout."""
        x = torch.randn(clips * segments, self.channels, self.size, self.width or self.size, dtype=dtype, device=device)
        return x.contiguous(memory_format=LAYOUTS[layout])


def parse(text: str) -> Shape:
    """CxHxW, such as 64x56x56.

    Raises:
        ValueError: `text` is something else, or has a zero.
    """
    if not re.fullmatch(r"[1-9]\d*[x×][1-9]\d*[x×][1-9]\d*", text):
        raise ValueError(f"shapes: got {text!r}, expected CxHxW such as 64x56x56")
    channels, height, width = map(int, re.split("[x×]", text))
    return Shape(channels, height, width=width)


def tanet50(pixels: int = 224) -> list[Shape]:
    """The 16 TAMs of TANet-50 for frames of `pixels`²: they sit before the strided convolution of a stage."""
    sizes = [-(-pixels // stride) for stride in (4, 8, 16, 32)]
    return [
        Shape(64, sizes[0], 3),
        Shape(128, sizes[0], 1),
        Shape(128, sizes[1], 3),
        Shape(256, sizes[1], 1),
        Shape(256, sizes[2], 5),
        Shape(512, sizes[2], 1),
        Shape(512, sizes[3], 2),
    ]
