"""As how many views a network sees a video: by a published protocol, by the recipe's, or by one changed a little."""

from dataclasses import replace
from typing import Protocol

from train.data.dataset import Views
from train.evaluation.view_changes import ViewChanges
from train.recipes import CENTER, CLIPS_2_CROPS_3, CLIPS_4_CROPS_3, CLIPS_10_CROPS_3

PROTOCOLS = {"10x3": CLIPS_10_CROPS_3, "4x3": CLIPS_4_CROPS_3, "2x3": CLIPS_2_CROPS_3, "1x1": CENTER}


class Asked(Protocol):
    """What a command line says of views."""

    @property
    def protocol(self) -> str:
        """One of `PROTOCOLS`, or a word for the recipe's own."""

    @property
    def views(self) -> ViewChanges:
        """What is to differ from it."""


def choose_views(asked: Asked, recipe_views: Views) -> Views:
    """The views that `asked` says: `recipe_views`, or a published protocol's, and what is to differ from them."""
    views = PROTOCOLS.get(asked.protocol, recipe_views)
    changes = {name: value for name, value in vars(asked.views).items() if value is not None}
    if "clips" in changes:  # more than one can but be spread; a single one so would be the first of a dense sampling
        changes.setdefault("placement", "spread" if changes["clips"] > 1 else "middle")
    return replace(views, **changes)


def describe_views(views: Views, num_segments: int) -> str:
    """How many views, and of what, in words."""
    return (
        f"{views.clips} × {views.crops} views of a video (clips × crops of {views.crop_size} pixels, short side "
        f"{views.short_side}, {num_segments} frames), {views.average} averaged"
    )
