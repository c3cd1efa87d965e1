"""What a command line may change of a protocol's views, apart from what does it, so that help is there at once."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ViewChanges:
    """What is to differ from the protocol; each as in a recipe's `test`."""

    placement: Literal["middle", "spread"] | None = None
    """middle: one clip in the middle. spread: clips spread over the video."""
    clips: int | None = None
    """Clips out of a video; a single one is the middle's."""
    crops: int | None = None
    """Squares out of a clip."""
    short_side: int | None = None
    """Of the resized frames, in pixels."""
    crop_size: int | None = None
    """Height and width of the squares. The network takes any."""
    average: Literal["logits", "probabilities"] | None = None
    """What is averaged over the views: logits in the authors' code, probabilities in mmaction2's."""
