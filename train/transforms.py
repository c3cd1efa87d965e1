"""Augmentation of clips. Frames stay uint8 (T, H, W, 3) until the network; one crop and one flip for a whole clip."""

import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

# Of ImageNet's training images, in the units of [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# The words of class names that a mirror exchanges.
_OPPOSITES = {"left": "right", "leftward": "rightward", "leftwards": "rightwards", "clockwise": "counterclockwise"}
_OPPOSITES |= {right: left for left, right in _OPPOSITES.items()}
_SPELLINGS = dict.fromkeys(("counter-clockwise", "anticlockwise", "anti-clockwise"), "counterclockwise")
_DIRECTION = re.compile(rf"(?<![a-z])({'|'.join([*_SPELLINGS, *_OPPOSITES])})(?![a-z])")


def mirrored_labels(class_names: Sequence[str]) -> tuple[int | None, ...]:
    """What a horizontal flip makes of each class.

    A class whose name has left and right (or clockwise and counterclockwise) in it becomes the one whose name has them
    exchanged. Where there is no such class the entry is None: clips of it must not be flipped. Every other class stays
    what it is.
    """

    def spelled_alike(match: re.Match[str]) -> str:
        return _SPELLINGS.get(match[0], match[0])

    def mirrored(match: re.Match[str]) -> str:
        return _OPPOSITES[spelled_alike(match)]

    names = [_DIRECTION.sub(spelled_alike, name.lower()) for name in class_names]
    return tuple(
        names.index(partner) if (partner := _DIRECTION.sub(mirrored, name)) in names else None for name in names
    )


def resize_short_side(frames: Tensor, size: int) -> Tensor:
    """Resize (T, H, W, 3) uint8 so that the shorter side has `size` pixels, in proportion; bilinear, antialiased."""
    height, width = frames.shape[1:3]
    if min(height, width) == size:
        return frames
    scale = size / min(height, width)
    target = (max(size, round(height * scale)), max(size, round(width * scale)))
    resized = interpolate(frames.permute(0, 3, 1, 2), size=target, mode="bilinear", antialias=True)
    return resized.permute(0, 2, 3, 1)


def random_crop(frames: Tensor, size: int, rng: np.random.Generator) -> Tensor:
    """One square of `size` pixels, at one random place, out of all frames (T, H, W, 3)."""
    top, left = (int(rng.integers(side - size + 1)) for side in frames.shape[1:3])
    return frames[:, top : top + size, left : left + size]


def center_crop(frames: Tensor, size: int) -> Tensor:
    """The square of `size` pixels in the middle of all frames (T, H, W, 3)."""
    top, left = ((side - size) // 2 for side in frames.shape[1:3])
    return frames[:, top : top + size, left : left + size]


def random_flip(
    frames: Tensor, label: int, mirrored: Sequence[int | None], rng: np.random.Generator
) -> tuple[Tensor, int]:
    """Flip all frames (T, H, W, 3) from left to right in one case of two, and the label with them.

    `mirrored` is what `mirrored_labels` gives; a class with None there is left as it is.
    """
    target = mirrored[label]
    if rng.random() < 0.5 and target is not None:
        return frames.flip(2), target
    return frames, label


def normalise(clips: Tensor) -> Tensor:
    """uint8 frames (N, T, H, W, 3) → float32 (N, T, 3, H, W), channels_last, with ImageNet's mean and deviation."""
    mean, std = (torch.tensor(values, device=clips.device) * 255 for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((clips - mean) / std).movedim(-1, 2)
