"""What a trained network sees in a video."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import tyro

from train.checkpoint import TrainedNetwork, load_checkpoint
from train.data.batches import evaluation_batches
from train.data.dataset import EvaluationClips
from train.data.entries import Entry, Split
from train.data.index import read_index
from train.data.loader import Loading
from train.data.reader import VideoError
from train.errors import InputError
from train.fields import check_types, require
from train.precision import logits_of
from train.weights import Foreign


@dataclass(frozen=True)
class PredictConfig:
    """Name what is in a video: the most probable classes of a trained network, with their probabilities."""

    files: tyro.conf.Positional[tuple[Path, ...]]
    """CHECKPOINT VIDEO, where the checkpoint is of a training run; with --weights VIDEO alone. Any format and size."""
    top: int = 5
    """How many classes to show."""
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
        count, expected = (2, "CHECKPOINT VIDEO") if self.weights is None else (1, "VIDEO, as there are weights")
        if len(self.files) != count:
            raise InputError(f"files: got {' '.join(map(str, self.files)) or 'none'}, expected {expected}")

    def load(self) -> TrainedNetwork:
        """The network. Raises InputError."""
        if self.weights is None or self.recipe is None:
            return load_checkpoint(self.files[0])
        foreign = Foreign(self.weights, self.recipe, self.segments, self.average)
        if self.data is not None:
            return foreign.load(read_index(self.data).split.class_names)
        count = foreign.load_recipe().data.num_classes
        if count is None:
            raise InputError(
                f"data: got none, expected an index: {self.recipe} does not say how many classes there are"
            )
        return foreign.load(tuple(map(str, range(count))))


def run_predict(config: PredictConfig) -> None:
    """Do what the command line asks for. Raises InputError, VideoError."""
    for class_name, probability in predict(config.load(), config.files[-1], config.top):
        print(f"{probability:7.2%}  {class_name}")


class Prediction(NamedTuple):
    """A class and its probability."""

    class_name: str
    probability: float


@torch.inference_mode()
def predict(trained: TrainedNetwork, video: Path, top: int = 5) -> list[Prediction]:
    """The `top` most probable classes of `video`, best first, by the one view of a validation. Raises VideoError.

    The video is read in a process of its own, so that a decoder that hangs cannot hang this one.
    """
    recipe = trained.recipe
    split = Split("video", (Entry(video, 0),), trained.class_names)
    clips = EvaluationClips(split, recipe.sampling, recipe.validation, recipe.data.decoder)
    loader = evaluation_batches(clips, 1, Loading(workers=1))
    (batch,) = loader
    loader.close()
    if batch.missing:
        raise VideoError(*batch.failures[0])
    probabilities = logits_of(trained.network, batch.clips, torch.device("cpu")).softmax(1)[0]
    best = probabilities.topk(min(top, len(trained.class_names)))
    return [
        Prediction(trained.class_names[index], probability)
        for index, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
