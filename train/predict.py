"""What a trained network sees in a video."""

from pathlib import Path
from typing import NamedTuple

import torch

from train.checkpoint import TrainedNetwork
from train.dataset import EvaluationClips, evaluation_batches
from train.lists import VideoEntry
from train.reader import VideoError
from train.transforms import normalise


class Prediction(NamedTuple):
    """A class and its probability."""

    class_name: str
    probability: float


@torch.inference_mode()
def predict(trained: TrainedNetwork, video: Path, top: int = 5) -> list[Prediction]:
    """The `top` most probable classes of `video`, best first. Raises VideoError.

    The video is read in a process of its own, so that a decoder that hangs cannot hang this one.
    """
    clips = EvaluationClips([VideoEntry(video, 0)], trained.clip_format)
    (batch,) = evaluation_batches(clips, batch_size=1, workers=1)
    if batch.missing:
        raise VideoError(*batch.failures[0])
    probabilities = trained.network(normalise(batch.clips)).softmax(1)[0]
    best = probabilities.topk(min(top, len(trained.class_names)))
    return [
        Prediction(trained.class_names[index], probability)
        for index, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
