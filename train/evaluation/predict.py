"""What a trained network sees in a video."""

import glob
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import torch
from tqdm import tqdm

from tam_triton.classifier import Prediction, most_probable
from train.checkpoint import TrainedNetwork, load_checkpoint
from train.data.batches import evaluation_batches
from train.data.dataset import EvaluationClips
from train.data.entries import Entry, Split
from train.data.index import read_index
from train.data.loader import Loading
from train.data.reader import VideoError
from train.data.sources.files import VIDEO_SUFFIXES
from train.errors import InputError
from train.evaluation.predict_config import PredictConfig
from train.precision import logits_of
from train.team import choose_device
from train.weights import Foreign


def run_predict(config: PredictConfig) -> None:
    """Do what the command line asks for: print what is seen in each video, as it is known.

    Raises InputError where there is nothing to look at; at its end, with the number of them, where videos cannot be
    read, each of which has been named.
    """
    entries = find_videos(config.files if config.weights is not None else config.files[1:])
    trained, failed = load_network(config), 0
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


def load_network(config: PredictConfig) -> TrainedNetwork:
    """The network. Raises InputError."""
    if config.weights is None or config.recipe is None:
        return load_checkpoint(config.files[0])
    foreign = Foreign(config.weights, config.recipe, config.segments, config.average)
    if config.data is not None:
        return foreign.load(read_index(config.data).split.class_names)
    count = foreign.load_recipe().data.num_classes
    if count is None:
        raise InputError(f"data: got none, expected an index: {config.recipe} does not say how many classes there are")
    return foreign.load(tuple(map(str, range(count))))


def find_videos(places: Sequence[Path]) -> tuple[Entry, ...]:
    """The videos at `places`: files, folders of such, at any depth, and folders of the frames of one video.

    A place that is not there may be a pattern, such as `videos/*.mp4`, in which `**` stands for folders at any depth.
    Raises InputError for a pattern that nothing matches, and for a folder that holds neither videos nor frames; what is
    no folder is taken for a video.
    """
    entries: list[Entry] = []
    for place in (found for given in places for found in _matching(given)):
        if not place.is_dir():
            entries.append(Entry(place, 0))
            continue
        files = sorted(file for file in place.rglob("*") if not file.name.startswith("."))
        videos = [Entry(file, 0) for file in files if file.suffix.lower() in VIDEO_SUFFIXES]
        if not videos and not any(file.suffix.lower() in (".jpg", ".jpeg", ".png") for file in files):
            raise InputError(f"{place}: holds no videos ({', '.join(VIDEO_SUFFIXES)}) and no frames (.jpg, .png)")
        entries += videos or [Entry(place, 0, "frames")]
    return tuple(entries)


def _matching(place: Path) -> list[Path]:
    if not glob.has_magic(str(place)) or place.exists():
        return [place]
    if found := sorted(glob.glob(str(place), recursive=True)):  # noqa: PTH207 — pathlib's has no pattern that is absolute
        return [Path(name) for name in found]
    raise InputError(f"{place}: there is no such file, and nothing matches it as a pattern")


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
            yield entry, most_probable(logits_of(network, batch.clips, device)[0], names, top)
