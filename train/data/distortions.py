"""Colors and shapes of a clip changed at random: RandAugment and color jitter, by one draw for all of its frames.

What depends on the picture (its contrast, its histogram) is taken of the whole clip, so that a pixel that stands still
keeps one color. Clips are uint8 (T, H, W, 3); torchvision's functions do the work, and are imported when first needed.
"""

import math
import re
from dataclasses import dataclass

import numpy as np
from torch import Tensor

COLOR = (
    *("identity", "autocontrast", "equalize", "solarize", "posterize"),
    *("color", "contrast", "brightness", "sharpness"),
)
GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
SCALE = 10
"""The magnitude at which an operation has all of its range."""
MOST_OPERATIONS = 16

_FILL = [128.0] * 3  # what a clip has no pixels for is grey, as in the code of AutoAugment's authors
_ADJUSTED = ("brightness", "contrast", "saturation", "hue")


@dataclass(frozen=True)
class RandAugment:
    """RandAugment (arXiv 1909.13719): `count` operations out of 14, drawn with equal chances, one after the other.

    Each has the strength `magnitude` / 10 of its range, which is that of AutoAugment (arXiv 1805.09501, table 6), and
    either sign where it has two. Rotations and shears are about the middle. Without `geometric` ones nine are left,
    which move nothing.
    """

    count: int
    magnitude: float
    geometric: bool = True

    @staticmethod
    def parse(text: str) -> "RandAugment | None":
        """What "N,M", or "N,M,color", stands for: N from 1 to 16, M from 0 to 10; None for any other text."""
        match = re.fullmatch(r"(\d{1,2}),(\d{1,2}(?:\.\d{1,4})?)(,color)?", text, re.ASCII)
        if not match or not 1 <= int(match[1]) <= MOST_OPERATIONS or float(match[2]) > SCALE:
            return None
        return RandAugment(int(match[1]), float(match[2]), match[3] is None)

    def __call__(self, clip: Tensor, rng: np.random.Generator) -> Tensor:
        """`clip` (T, H, W, 3), distorted as `rng` draws it."""
        operations = COLOR + GEOMETRIC if self.geometric else COLOR
        for _ in range(self.count):
            operation, sign = operations[rng.integers(len(operations))], rng.choice((-1, 1))
            clip = distort(clip, operation, sign * self.magnitude / SCALE)
        return clip


def distort(clip: Tensor, operation: str, strength: float) -> Tensor:
    """`clip` (T, H, W, 3) after an operation, at a strength from −1 to 1; where it has one, 0 changes nothing.

    Raises ValueError for an operation that is none of COLOR and GEOMETRIC.
    """
    from torchvision.transforms.v2 import functional

    size, factor = abs(strength), 1 + 0.9 * strength
    match operation:
        case "identity":
            return clip
        case "sharpness":
            return _by_frame(functional.adjust_sharpness(_frames(clip), factor))
        case "autocontrast":
            picture = functional.autocontrast(_picture(clip))
        case "equalize":
            picture = functional.equalize(_picture(clip))
        case "solarize":
            picture = functional.solarize(_picture(clip), 255 * (1 - size)) if size else _picture(clip)
        case "posterize":
            picture = functional.posterize(_picture(clip), 8 - round(4 * size))
        case "color" | "contrast" | "brightness":
            return adjust(clip, "saturation" if operation == "color" else operation, factor)
        case _:
            return _move(clip, operation, strength)
    return _of_picture(picture, clip)


def _move(clip: Tensor, operation: str, strength: float) -> Tensor:
    from torchvision.transforms.v2 import InterpolationMode, functional

    angle, shift, shear = 0.0, [0.0, 0.0], [0.0, 0.0]
    axis = int(operation.endswith("_y"))
    if operation == "rotate":
        angle = 30 * strength
    elif operation.startswith("translate_"):
        shift[axis] = 150 / 331 * strength * clip.shape[2 - axis]  # AutoAugment's pixels, of pictures of 331
    elif operation.startswith("shear_"):
        shear[axis] = math.degrees(math.atan(0.3 * strength))
    else:
        raise ValueError(f"operation: got {operation!r}, expected one of {', '.join(COLOR + GEOMETRIC)}")
    bilinear = InterpolationMode.BILINEAR
    return _by_frame(functional.affine(_frames(clip), angle, shift, 1.0, shear, bilinear, fill=_FILL))


def jitter(clip: Tensor, strengths: tuple[float, ...], rng: np.random.Generator) -> Tensor:
    """`clip` with brightness, contrast, saturation and hue changed, in an order and to degrees that `rng` draws.

    After arXiv 1312.5402, in torchvision's terms: each of the first three is multiplied by a factor from
    1 − s to 1 + s, and the hue moves by up to s of a turn. One of `strengths` is that of the first three.
    """
    strengths = 3 * strengths if len(strengths) == 1 else strengths
    order = rng.permutation(len(strengths))
    draws = rng.uniform(-1, 1, len(strengths))
    for kind in order:
        if strengths[kind] > 0:
            change = strengths[kind] * draws[kind]
            clip = adjust(clip, _ADJUSTED[kind], change if _ADJUSTED[kind] == "hue" else max(0.0, 1 + change))
    return clip


def adjust(clip: Tensor, what: str, amount: float) -> Tensor:
    """`clip` with its brightness, contrast or saturation multiplied by `amount`, or its hue turned by so many turns."""
    from torchvision.transforms.v2 import functional

    return _of_picture(getattr(functional, f"adjust_{what}")(_picture(clip), float(amount)), clip)


def _picture(clip: Tensor) -> Tensor:
    """All frames below one another: (3, T·H, W)."""
    return clip.movedim(-1, 0).flatten(1, 2)


def _of_picture(picture: Tensor, clip: Tensor) -> Tensor:
    return picture.unflatten(1, clip.shape[:2]).movedim(0, -1)


def _frames(clip: Tensor) -> Tensor:
    return clip.movedim(-1, 1)


def _by_frame(frames: Tensor) -> Tensor:
    return frames.movedim(1, -1)
