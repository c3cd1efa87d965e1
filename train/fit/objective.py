"""What a step minimizes: the cross-entropy of a clip's logits, and what may be done to clips and labels before it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from train.recipe import Recipe

_MIXING = 0x6D6978
"""In the seed, so that what is mixed does not follow from what else is drawn for the same step."""


class Mixed(NamedTuple):
    """Clips (N, T, H, W, 3), uint8 or float32 of the same range, of which each is `share` of one clip and the rest of
    another."""

    clips: Tensor
    labels: Tensor
    """(N,) of the one."""
    others: Tensor | None = None
    """(N,) of the other; None where nothing is mixed."""
    share: float = 1.0

    @property
    def main_labels(self) -> Tensor:
        """(N,) of the greater share: those that the accuracy in training goes by."""
        return self.labels if self.others is None or self.share >= 0.5 else self.others

    def targets(self, num_classes: int) -> Tensor:
        """(N, classes) float32, which sum to 1; or the labels (N,) where nothing is mixed."""
        if self.others is None:
            return self.labels
        first, second = (one_hot(labels, num_classes).float() for labels in (self.labels, self.others))
        return second.lerp_(first, self.share)


@dataclass(frozen=True)
class Objective:
    """Cross-entropy with a recipe's additions; by default there are none, and no random number is drawn."""

    label_smoothing: float = 0.0
    class_weights: Tensor | None = None
    """(classes,) float32: a clip's loss is multiplied by its class'."""
    mixup: float | None = None
    cutmix: float | None = None
    seed: int = 0

    @staticmethod
    def of(recipe: Recipe, class_weights: Tensor | None) -> "Objective":
        """What `recipe` asks for."""
        augmentation, smoothing = recipe.augmentation, recipe.optimization.label_smoothing
        return Objective(smoothing, class_weights, augmentation.mixup, augmentation.cutmix, recipe.seed)

    @property
    def mixes(self) -> bool:
        """Whether clips are mixed."""
        return self.mixup is not None or self.cutmix is not None

    def mix(self, clips: Tensor, labels: Tensor, place: Sequence[int]) -> Mixed:
        """Clips uint8 (N, T, H, W, 3), each mixed with the one before it, as `place` in the run decides.

        One share for all of them, as in both papers' codes. With `mixup` and `cutmix` either comes with probability ½,
        as in timm. It is computed where `labels` (N,) are; `clips` themselves stay as they are.
        """
        if not self.mixes:
            return Mixed(clips, labels)
        clips = clips.to(labels.device, non_blocking=True)
        rng = np.random.default_rng((self.seed, *place, _MIXING))
        if self.cutmix is None or (self.mixup is not None and rng.random() < 0.5):
            assert self.mixup is not None
            share = float(rng.beta(self.mixup, self.mixup))
            # Not rounded to bytes: the network takes float32 anyway.
            mixed = clips.float().lerp_(clips.roll(1, 0).float(), 1 - share)
        else:
            height, width = clips.shape[2:4]
            top, bottom, left, right = draw_box(height, width, float(rng.beta(self.cutmix, self.cutmix)), rng)
            share = 1 - (bottom - top) * (right - left) / (height * width)
            mixed = clips.clone()
            mixed[:, :, top:bottom, left:right] = clips[:, :, top:bottom, left:right].roll(1, 0)
        return Mixed(mixed, labels, labels.roll(1, 0), share)

    def loss(self, logits: Tensor, mixed: Mixed) -> Tensor:
        """The sum over the clips, of logits (N, classes).

        Label smoothing: arXiv 1512.00567, section 7; of mixed labels it smooths the mixture.
        """
        targets = mixed.targets(logits.shape[1])
        smoothing = self.label_smoothing
        return cross_entropy(logits, targets, self.class_weights, reduction="sum", label_smoothing=smoothing)


def draw_box(height: int, width: int, share: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of a box that leaves about `share` of the picture: its middle is anywhere, and what
    of it is outside is cut off (arXiv 1905.04899, section 3.1)."""
    scale = (1 - share) ** 0.5
    ends: list[int] = []
    for side in (height, width):
        start = int(rng.integers(side)) - int(side * scale) // 2
        ends += [max(0, start), min(side, start + int(side * scale))]
    return ends[0], ends[1], ends[2], ends[3]
