"""A trained network at work: from the views of a video, or of a window of it, to the probabilities of classes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tam_triton.classifier import Prediction, most_probable
from train.checkpoint import TrainedNetwork
from train.data.dataset import EvaluationClips, Views, choose_frames, crop_views
from train.data.entries import Entry, Split
from train.errors import InputError
from train.evaluation.windows import Window
from train.metrics import evaluation_mode
from train.precision import Precision, logits_of


def clips_of(trained: TrainedNetwork, entries: Sequence[Entry], views: Views) -> EvaluationClips:
    """The clips of videos of no data set, as `trained` sees them."""
    recipe = trained.recipe
    split = Split("videos", tuple(entries), trained.class_names)
    return EvaluationClips(split, recipe.sampling, views, recipe.data.decoder)


class Predictor:
    """A network on `device`, and as how many `views` it sees a video; `batch_size` of them are computed at a time."""

    def __init__(
        self,
        trained: TrainedNetwork,
        views: Views,
        device: torch.device | None = None,
        precision: Precision = "fp32",
        batch_size: int = 32,
    ) -> None:
        self.trained, self.views, self.precision, self.batch_size = trained, views, precision, batch_size
        self.device = device or torch.device("cpu")
        self.network = trained.network.to(self.device).to(memory_format=torch.channels_last)

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the scores."""
        return self.trained.class_names

    @torch.inference_mode()
    def scores(self, clips: Tensor) -> Tensor:
        """What is averaged over views, (V, classes) float64 on the CPU, of clips uint8 (V, T, S, S, 3)."""
        rows = []
        with evaluation_mode(self.network):
            for part in clips.split(self.batch_size):
                logits = logits_of(self.network, part, self.device, self.precision)
                rows.append((logits.softmax(1) if self.views.average == "probabilities" else logits).double().cpu())
        return torch.cat(rows)

    def logits_of_window(self, window: Window) -> Tensor:
        """`mean_logits` of a window, (classes,), which is seen as a video of its length would be."""
        chosen = choose_frames(self.trained.recipe.sampling, self.views, len(window.frames))
        clips = [crop_views(torch.stack([window.frames[i] for i in clip]), self.views) for clip in chosen.tolist()]
        return self.mean_logits(self.scores(torch.cat(clips)))

    def mean_logits(self, scores: Tensor) -> Tensor:
        """Logits (classes,), of which softmax gives the probabilities, of the scores (V, classes) of all views."""
        mean = scores.mean(0)
        return mean.log() if self.views.average == "probabilities" else mean

    def best(self, logits: Tensor, top: int, video: str) -> list[Prediction]:
        """The `top` most probable classes by `mean_logits`, best first.

        Raises InputError, which names the `video`, where these are no numbers.
        """
        if not logits.softmax(0).isfinite().all():
            raise InputError(f"{video}: the network gives it no finite numbers in precision {self.precision}")
        return most_probable(logits.float(), self.class_names, top)
