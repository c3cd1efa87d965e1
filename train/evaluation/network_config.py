"""Which network, as commands are asked for it, apart from what loads it: their help is there at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from train.errors import InputError
from train.fields import check_types, require


class CheckpointOrWeights:
    """What these options of a command line mean together; the command describes each."""

    files: tuple[str, ...]
    weights: Path | None
    recipe: str | None
    segments: Literal["interpolate", "draw"] | None
    average: bool

    def check_network(self) -> None:
        """Raises InputError for weights without a recipe, and without weights for a recipe or what else is of them."""
        if (self.weights is None) != (self.recipe is None):
            raise InputError(f"recipe: got {self.recipe} with weights {self.weights}, expected both of them or neither")
        if self.weights is None:
            require(self, "segments", self.segments is None, "None without weights")
            require(self, "average", not self.average, "False without weights")

    @property
    def videos(self) -> tuple[str, ...]:
        """What stands behind the checkpoint, or, with weights, all."""
        return self.files if self.weights is not None else self.files[1:]

    @property
    def network_path(self) -> Path:
        """The file of the network: the checkpoint, or the weights."""
        return Path(self.files[0]) if self.weights is None else self.weights


@dataclass(frozen=True)
class NetworkConfig(CheckpointOrWeights):
    """A network and videos for it."""

    files: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="CHECKPOINT VIDEO …")]
    """CHECKPOINT VIDEO …, where the checkpoint is of a training run; with --weights videos alone. Videos are files of
    any format and size, folders of them, or quoted patterns ('videos/**/*.mp4')."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16 and fp16 compute under autocast."""
    threads: int | None = None
    """Threads that torch computes with on the CPU; by default as many as torch takes."""
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
        require(self, "threads", self.threads is None or self.threads >= 1, "at least 1")
        self.check_network()
        require(self, "data", self.data is None or self.weights is not None, "None without weights")
        least, expected = (2, "CHECKPOINT VIDEO …") if self.weights is None else (1, "VIDEO …, as there are weights")
        if len(self.files) < least:
            raise InputError(f"files: got {' '.join(self.files) or 'none'}, expected {expected}")
