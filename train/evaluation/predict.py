"""What a trained network sees in a video."""

from pathlib import Path
from typing import NamedTuple

import torch

from train.checkpoint import TrainedNetwork
from train.data.batches import evaluation_batches
from train.data.dataset import EvaluationClips
from train.data.entries import Entry, Split
from train.data.loader import Loading
from train.data.reader import VideoError
from train.precision import logits_of


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
