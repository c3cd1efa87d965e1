"""What a trained network sees in a video."""

import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import torch
from tqdm import tqdm

from tam_triton.classifier import Prediction
from train.checkpoint import TrainedNetwork, load_checkpoint
from train.data.batches import evaluation_batches
from train.data.entries import Entry
from train.data.index import read_index
from train.data.loader import Loading
from train.data.reader import VideoError
from train.errors import InputError
from train.evaluation.network_config import CheckpointOrWeights
from train.evaluation.places import find_videos
from train.evaluation.predict_config import PredictConfig
from train.evaluation.predict_windows import run_windows
from train.evaluation.predictor import Predictor, clips_of
from train.evaluation.protocols import choose_views
from train.exported.network import ExportedNetwork, load_trained, refuse_exported
from train.precision import computing
from train.team import choose_device
from train.weights import Foreign


def run_predict(config: PredictConfig) -> None:
    """Do what the command line asks for: print what is seen in each video or window, as it is known.

    Raises InputError where there is nothing to look at, or the network gives no numbers; at its end, with the number of
    them, where videos cannot be read, each of which has been named.
    """
    entries = () if config.in_windows else find_videos(config.videos)
    device = choose_device(config.device)
    if config.weights is None:
        trained = load_trained(config.network_path, device, config.threads)
    else:
        trained = load_network(config, config.data)
    recipe = trained.recipe
    views = choose_views(config, recipe.validation if config.protocol == "validation" else recipe.test)
    if isinstance(trained.network, ExportedNetwork):
        trained.network.check_asked(views, config.precision)
    predictor = Predictor(trained, views, device, config.precision, config.batch_size)
    with computing(device, config.threads):
        if config.in_windows:
            run_windows(config, predictor)
        else:
            _run_videos(config, predictor, entries)


def _run_videos(config: PredictConfig, predictor: Predictor, entries: Sequence[Entry]) -> None:
    failed = 0
    with tqdm(total=len(entries), unit="video", disable=True if len(entries) == 1 else None) as bar:
        for entry, outcome in predict_videos(predictor, entries, config.top or 5):
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


def load_network(config: CheckpointOrWeights, data: Path | None) -> TrainedNetwork:
    """The network of a checkpoint or weights; what these call their classes, the index at `data` says.

    Raises InputError, for an exported file too.
    """
    if config.weights is None or config.recipe is None:
        refuse_exported(config.network_path)
        return load_checkpoint(config.network_path)
    foreign = Foreign(config.weights, config.recipe, config.segments, config.average)
    if data is not None:
        return foreign.load(read_index(data).split.class_names)
    count = foreign.load_recipe().data.num_classes
    if count is None:
        raise InputError(f"data: got none, expected an index: {config.recipe} does not say how many classes there are")
    return foreign.load(tuple(map(str, range(count))))


def predict(trained: TrainedNetwork, video: Path, top: int = 5) -> list[Prediction]:
    """The `top` most probable classes of `video`, best first, by the one view of a validation. Raises VideoError."""
    ((_, outcome),) = predict_videos(Predictor(trained, trained.recipe.validation), [Entry(video, 0)], top)
    if isinstance(outcome, VideoError):
        raise outcome
    return outcome


def predict_videos(
    predictor: Predictor, entries: Sequence[Entry], top: int = 5
) -> Iterator[tuple[Entry, list[Prediction] | VideoError]]:
    """For one video after the other its `top` most probable classes, over all views, or why it cannot be read.

    They are read in a process of its own, so that a decoder that hangs cannot hang this one.
    """
    views = predictor.views
    clips = clips_of(predictor.trained, entries, views)
    loading = Loading(workers=1).for_device(predictor.device)
    # A batch is a video, or a part of one where its views are many.
    with closing(evaluation_batches(clips, min(predictor.batch_size, views.per_video), loading)) as loader:
        batches = iter(loader)
        for entry in entries:
            of_entry = list(itertools.islice(batches, len(loader) // len(entries)))
            failure = next((failure for batch in of_entry for failure in batch.failures), None)
            if failure is not None:
                yield entry, VideoError(*failure)
                continue
            scores = torch.cat([predictor.scores(batch.clips) for batch in of_entry])
            yield entry, predictor.best(predictor.mean_logits(scores), top, str(entry.path))
