"""What `python -m train visualize` is asked for, apart from what does it, so that its help is there at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from train.errors import InputError
from train.evaluation.network_config import CheckpointOrWeights
from train.fields import check_types, require

GIVEN = "videos"
"""The name of the data set that the videos on the command line are."""


@dataclass(frozen=True)
class VisualizeConfig(CheckpointOrWeights):
    """Draw what TAMs make of videos: importance maps V and kernels Θ, as figures and as a page to look around in."""

    files: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="CHECKPOINT VIDEO …")]
    """CHECKPOINT VIDEO …, where the checkpoint is of a training run; with --weights videos alone. Videos are files of
    any format and size, folders of them, or patterns such as 'videos/*.mp4'; with --data there may be none."""
    out: Path = Path("runs/visualize")
    """Folder for pictures, page and tensors."""
    blocks: tuple[str, ...] = ()
    """TAMs to look at, by name or pattern, such as layer3.5.tam or 'layer4.*'; by default the last ones of the last two
    stages, res4 and res5 of a ResNet."""
    i3d: Path | None = None
    """Checkpoint of system i3d, whose filters are drawn beside the kernels."""
    data: tuple[str, ...] = ()
    """NAME=PLACE …: more videos, compared by these names. PLACE is an index, as `python -m train prepare` writes it, a
    folder of videos, or a pattern."""
    root: tuple[str, ...] = ()
    """NAME=FOLDER …: where the videos of the index of that name are, if they have moved since it was written."""
    most: int = 64
    """Videos of each data set that are looked at, spread evenly over it."""
    shown: int = 12
    """Of all these, how many the page shows one by one, spread evenly too."""
    batch_size: int = 8
    """Clips that are computed at a time."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one."""
    overwrite: bool = False
    """Write over the pictures that are in `out`."""
    weights: Path | None = None
    """Instead of a checkpoint: weights of another program, such as the authors' code and mmaction2, with --recipe."""
    recipe: str | None = None
    """What `weights` belong to: the name of a recipe, such as k400-8f, or the recipe.json of a run."""
    segments: Literal["interpolate", "draw"] | None = None
    """Where `weights` are of another number of frames: make TAM's global branches of them, or draw them anew."""
    average: bool = False
    """Take the moving average (EMA) that lies beside `weights` in their file."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("most", "shown", "batch_size"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        self.check_network()
        if self.weights is None and not self.files:
            raise InputError("files: got none, expected CHECKPOINT VIDEO …")
        if not self.videos and not self.data:
            got = " ".join(self.files) or "none"
            raise InputError(f"files: got {got}, and no --data, expected videos: VIDEO … or --data NAME=PLACE")
        names = [GIVEN] * bool(self.videos) + self._names("data", "NAME=PLACE, such as k400=val.jsonl")
        rooted = self._names("root", "NAME=FOLDER, such as k400=/videos")
        for option, those in (("data", names), ("root", rooted)):
            if twice := sorted({name for name in those if those.count(name) > 1}):
                raise InputError(f"{option}: got {twice[0]!r} twice, expected another name for each of the data sets")
        if unknown := sorted(set(rooted) - set(names) | set(rooted) & {GIVEN}):
            raise InputError(f"root: got {unknown[0]!r}, expected a name of --data: {', '.join(names) or 'none'}")

    def _names(self, option: str, form: str) -> list[str]:
        """Of the items of an option. Raises InputError for those without a name or a place."""
        parts = [item.partition("=") for item in getattr(self, option)]
        for name, sign, place in parts:
            if not (sign and name.strip() and place):
                raise InputError(f"{option}: got {name + sign + place!r}, expected {form}")
        return [name for name, *_ in parts]

    @property
    def roots(self) -> dict[str, Path]:
        """Where the videos of an index are, by the name of the data set."""
        return {name: Path(folder) for name, _, folder in (item.partition("=") for item in self.root)}

    @property
    def places(self) -> dict[str, tuple[Path, ...]]:
        """Where the videos of each data set are, by its name."""
        given = {GIVEN: tuple(map(Path, self.videos))} if self.videos else {}
        named = (item.partition("=") for item in self.data)
        return given | {name: (Path(place),) for name, _, place in named}
