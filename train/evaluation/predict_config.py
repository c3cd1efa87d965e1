"""What `python -m train predict` is asked for, apart from what does it, so that its help is there at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from train.errors import InputError
from train.fields import check_types, require


@dataclass(frozen=True)
class PredictConfig:
    """Name what is in videos: the most probable classes of a trained network, with their probabilities."""

    files: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="CHECKPOINT VIDEO …")]
    """CHECKPOINT VIDEO …, where the checkpoint is of a training run; with --weights videos alone. Videos are files of
    any format and size, folders of them, or patterns such as 'videos/*.mp4'."""
    top: int = 5
    """How many classes to show."""
    json: bool = False
    """Print a JSON object a line for each video, with its predictions or, where it cannot be read, the error."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one."""
    weights: Path | None = None
    """Instead of a checkpoint: weights of another program, such as the authors' code and mmaction2, with --recipe."""
    recipe: str | None = None
    """What `weights` belong to: the name of a recipe, such as k400-8f, or the recipe.json of a run."""
    segments: Literal["interpolate", "draw"] | None = None
    """Where `weights` are of another number of frames: make TAM's global branches of them, or draw them anew."""
    average: bool = False
    """Take the moving average (EMA) that lies beside `weights` in their file."""
    data: Path | None = None
    """Index of the data set of `weights`, for the names of its classes; without one they are numbers."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self, "top", self.top >= 1, "at least 1")
        if (self.weights is None) != (self.recipe is None):
            raise InputError(f"recipe: got {self.recipe} with weights {self.weights}, expected both of them or neither")
        least, expected = (2, "CHECKPOINT VIDEO …") if self.weights is None else (1, "VIDEO …, as there are weights")
        if len(self.files) < least:
            raise InputError(f"files: got {' '.join(map(str, self.files)) or 'none'}, expected {expected}")
