"""What a trained network sees in a video."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import tyro
from tqdm import tqdm

from train.checkpoint import TrainedNetwork, load_checkpoint
from train.data.batches import evaluation_batches
from train.data.dataset import EvaluationClips
from train.data.entries import Entry, Split
from train.data.index import read_index
from train.data.loader import Loading
from train.data.reader import VideoError
from train.data.sources.files import VIDEO_SUFFIXES
from train.errors import InputError
from train.fields import check_types, require
from train.precision import logits_of
from train.team import choose_device
from train.weights import Foreign


@dataclass(frozen=True)
class PredictConfig:
    """Name what is in videos: the most probable classes of a trained network, with their probabilities."""

    files: tyro.conf.Positional[tuple[Path, ...]]
    """CHECKPOINT VIDEO …, where the checkpoint is of a training run; with --weights videos alone. Videos are files of
    any format and size, or folders of them."""
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
    """Do what the command line asks for: print what is seen in each video, as it is known.

    Raises InputError where there is nothing to look at; at its end, with the number of them, where videos cannot be
    read, each of which has been named.
    """
    entries = find_videos(config.files if config.weights is not None else config.files[1:])
    trained, failed = config.load(), 0
    with tqdm(total=len(entries), unit="video", disable=True if len(entries) == 1 else None) as bar:
        for entry, outcome in predict_videos(trained, entries, config.top, choose_device(config.device)):
            bar.update()
            if isinstance(outcome, VideoError):
                failed += 1
                bar.write(f"cannot be read: {outcome}", file=sys.stderr)
                lines = [json.dumps({"video": str(entry.path), "error": outcome.reason})] if config.json else []
            elif config.json:
                seen = [prediction._asdict() for prediction in outcome]
                lines = [json.dumps({"video": str(entry.path), "predictions": seen}, ensure_ascii=False)]
            else:
                lines = [str(entry.path)] if len(entries) > 1 else []
                lines += [f"{probability:7.2%}  {class_name}" for class_name, probability in outcome]
            for line in lines:
                bar.write(line)
    if failed:
        raise InputError(f"{failed} of {len(entries)} videos cannot be read")


def find_videos(places: Sequence[Path]) -> tuple[Entry, ...]:
    """The videos at `places`: files, folders of such, at any depth, and folders of the frames of one video.

    Raises InputError for a folder that holds neither; what is no folder is taken for a video.
    """
    entries: list[Entry] = []
    for place in places:
        if not place.is_dir():
            entries.append(Entry(place, 0))
            continue
        files = sorted(file for file in place.rglob("*") if not file.name.startswith("."))
        videos = [Entry(file, 0) for file in files if file.suffix.lower() in VIDEO_SUFFIXES]
        if not videos and not any(file.suffix.lower() in (".jpg", ".jpeg", ".png") for file in files):
            raise InputError(f"{place}: holds no videos ({', '.join(VIDEO_SUFFIXES)}) and no frames (.jpg, .png)")
        entries += videos or [Entry(place, 0, "frames")]
    return tuple(entries)


class Prediction(NamedTuple):
    """A class and its probability."""

    class_name: str
    probability: float


def predict(trained: TrainedNetwork, video: Path, top: int = 5) -> list[Prediction]:
    """The `top` most probable classes of `video`, best first, by the one view of a validation. Raises VideoError."""
    ((_, outcome),) = predict_videos(trained, [Entry(video, 0)], top)
    if isinstance(outcome, VideoError):
        raise outcome
    return outcome


@torch.inference_mode()
def predict_videos(
    trained: TrainedNetwork, entries: Sequence[Entry], top: int = 5, device: torch.device | None = None
) -> Iterator[tuple[Entry, list[Prediction] | VideoError]]:
    """`predict` for one video after the other, or why it cannot be read.

    They are read in a process of its own, so that a decoder that hangs cannot hang this one.
    """
    recipe, device = trained.recipe, device or torch.device("cpu")
    network, names = trained.network.to(device), trained.class_names
    clips = EvaluationClips(
        Split("videos", tuple(entries), names), recipe.sampling, recipe.validation, recipe.data.decoder
    )
    with closing(evaluation_batches(clips, 1, Loading(workers=1).for_device(device))) as loader:
        for entry, batch in zip(entries, loader, strict=True):
            if batch.missing:
                yield entry, VideoError(*batch.failures[0])
                continue
            probabilities = logits_of(network, batch.clips, device).softmax(1)[0]
            best = probabilities.topk(min(top, len(names)))
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            yield entry, [Prediction(names[index], probability) for index, probability in pairs]
