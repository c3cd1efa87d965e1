"""Augmentation of clips: one crop, one flip and so on for all frames, which stay uint8 (T, H, W, 3) until the network.

Where a crop is a share of the frame it is cut out of the frames as they were decoded, and what was cut out is resized
once: the published pipelines first resize every frame to a short side of 256 and then throw half of it away.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from tam_triton.clips import resize
from train.data.distortions import RandAugment, jitter
from train.fields import ADDED, check_types, require


@dataclass(frozen=True)
class Augmentation:
    """What is done at random to the frames of a training clip."""

    crop_size: int = 224
    """Height and width of the clip that the network sees, in pixels. Paper."""
    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    """What shares of the frames' short side a crop's height and width may be, in falling order. Script, after TSN."""
    short_sides: tuple[int, int] | None = field(default=None, metadata=ADDED)
    """Instead of `scales`: from how many pixels to how many frames are resized, by their short side, before a square of
    `crop_size` is cut out of them. 256 320 for SlowFast."""
    max_distortion: int = 1
    """How many steps in `scales` the height may be away from the width. Script, after TSN."""
    positions: Literal["fixed", "any"] = "fixed"
    """fixed: the crop lies at one of 13 places: the corners, the middles of the sides, the center, and half way from
    each corner to the center (script, after TSN). any: anywhere within the frame."""
    flip: float = 0.5
    """Probability of a flip from left to right. Labels are swapped with it where class names say left and right, or
    `mirrored` says so."""
    mirrored: Path | None = field(default=None, metadata=ADDED)
    """File of the classes that a flip exchanges, a line `name<TAB>name` for each pair, or `name` alone for a class that
    must not be flipped; other classes go by their names. For directions in other words than the English ones."""
    color_jitter: tuple[float, ...] | None = field(default=None, metadata=ADDED)
    """How much brightness, contrast and saturation change, such as 0.4: by a factor from 0.6 to 1.4; or a number for
    each, and a fourth for the hue, at most 0.5 of a turn. The same for all frames. In no recipe; arXiv 1312.5402."""
    randaugment: str | None = field(default=None, metadata=ADDED)
    """N,M: N of 14 distortions, drawn for the clip, one after the other, each of magnitude M out of 10, such as 2,9.
    N,M,color leaves out those that move pixels, for classes that mean a direction. In no recipe; arXiv 1909.13719."""
    mixup: float | None = field(default=None, metadata=ADDED)
    """α: clips of a step are mixed in pairs, and their labels, by a share drawn from Beta(α, α), such as 0.2. One share
    for all clips that a process computes at a time. In no recipe; arXiv 1710.09412."""
    cutmix: float | None = field(default=None, metadata=ADDED)
    """α: a box of the pair's other clip is laid over all frames, as large as a share drawn from Beta(α, α), such as 1.
    With mixup given too, either one comes half the time. In no recipe; arXiv 1905.04899."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self, "crop_size", self.crop_size >= 1, "at least 1")
        falling = self.scales == tuple(sorted(set(self.scales), reverse=True)) and self.scales != ()
        require(self, "scales", falling and self.scales[-1] > 0 and self.scales[0] <= 1, "falling shares in (0, 1]")
        if (sides := self.short_sides) is not None:
            holds = len(sides) == 2 and self.crop_size <= sides[0] <= sides[1]
            require(self, "short_sides", holds, f"two rising numbers from crop_size ({self.crop_size}) on, or None")
        require(self, "max_distortion", self.max_distortion >= 0, "at least 0")
        require(self, "flip", 0 <= self.flip <= 1, "a probability from 0 to 1")
        strengths = self.color_jitter
        holds = strengths is None or (
            len(strengths) in (1, 3, 4)
            and all(0 <= strength <= bound for strength, bound in zip(strengths, (1, 1, 1, 0.5), strict=False))
        )
        expected = "one number from 0 to 1, three of them, a fourth of at most 0.5 with them, or None"
        require(self, "color_jitter", holds, expected)
        known = self.randaugment is None or self.distortion is not None
        require(self, "randaugment", known, "N,M or N,M,color, N from 1 to 16 and M from 0 to 10, or None")
        for name in ("mixup", "cutmix"):
            alpha = getattr(self, name)
            require(self, name, alpha is None or 0 < alpha <= 100, "a number above 0, at most 100, or None")

    @property
    def distortion(self) -> RandAugment | None:
        """What `randaugment` says."""
        return None if self.randaugment is None else RandAugment.parse(self.randaugment)

    def __call__(
        self, frames: Tensor, label: int, mirrored: Sequence[int | None], rng: np.random.Generator
    ) -> tuple[Tensor, int]:
        """`frames` (T, H, W, 3) as a clip (T, S, S, 3), contiguous, and its label; both uint8 and drawn by `rng`."""
        top, left, height, width = self.draw_crop(frames.shape[1], frames.shape[2], rng)
        clip = resize(frames[:, top : top + height, left : left + width], (self.crop_size, self.crop_size))
        clip, label = random_flip(clip, label, mirrored, rng, self.flip)
        if self.color_jitter is not None:
            clip = jitter(clip, self.color_jitter, rng)
        if self.distortion is not None:
            clip = self.distortion(clip, rng)
        return clip.contiguous(), label

    def draw_crop(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Top, left, height and width of a crop of frames of this size."""
        crop_height, crop_width = self._draw_size(min(height, width), rng)
        spare = (height - crop_height, width - crop_width)
        if self.positions == "any":
            top, left = (int(rng.integers(pixels + 1)) for pixels in spare)
        else:
            down, right = POSITIONS[rng.integers(len(POSITIONS))]
            top, left = down * (spare[0] // 4), right * (spare[1] // 4)
        return top, left, crop_height, crop_width

    def _draw_size(self, short_side: int, rng: np.random.Generator) -> tuple[int, int]:
        """Height and width of a crop of frames with such a short side."""
        if self.short_sides is not None:
            resized = round(rng.uniform(*self.short_sides))
            side = max(1, round(short_side * self.crop_size / resized))
            return side, side
        sides = [max(1, int(short_side * scale)) for scale in self.scales]
        steps = range(len(sides))
        pairs = [(sides[i], sides[j]) for i in steps for j in steps if abs(i - j) <= self.max_distortion]
        return pairs[rng.integers(len(pairs))]


# Where the 13 crops lie, (down, right), in quarters of the room that a crop has in the frame.
POSITIONS = tuple((i, j) for i in range(5) for j in range(5) if i % 2 == j % 2)


def random_flip(
    frames: Tensor, label: int, mirrored: Sequence[int | None], rng: np.random.Generator, probability: float = 0.5
) -> tuple[Tensor, int]:
    """Flip all frames (T, H, W, 3) from left to right with a probability, and the label with them.

    `mirrored` is what `mirrored_labels` gives; a class with None there is left as it is.
    """
    target = mirrored[label]
    if rng.random() < probability and target is not None:
        return frames.flip(2), target
    return frames, label
