"""Which videos are looked at, and what the chosen TAMs make of each: V, Θ, and how much moves in it."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from glob import has_magic
from pathlib import Path
from types import MappingProxyType

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from tam_triton import inspect
from tam_triton.classifier import Prediction, most_probable
from tam_triton.clips import resize
from tam_triton.inspect import Weights
from train.checkpoint import TrainedNetwork
from train.data.batches import Batch, evaluation_batches
from train.data.dataset import Failure
from train.data.entries import Entry
from train.data.index import read_index, require_some
from train.data.loader import GuardedLoader, Loading
from train.data.sources.files import VIDEO_SUFFIXES
from train.errors import InputError
from train.evaluation.places import find_videos, spread
from train.evaluation.predictor import clips_of
from train.precision import logits_of
from train.visualize.config import GIVEN

LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G and B in the luma Y′ of ITU-R BT.601."""
THUMBNAIL = 112
"""Pixels, at most, of the side of a frame in a filmstrip."""


@dataclass(frozen=True)
class Listed:
    """A video that is to be looked at."""

    data_set: str
    entry: Entry
    class_name: str | None
    """As its index says; None for videos without one."""


@dataclass(frozen=True)
class Seen:
    """A video that was looked at."""

    data_set: str
    path: Path
    class_name: str | None
    prediction: Prediction
    """The network's most probable class."""
    motion: float
    """As `motion_of` has it."""
    strip: bytes
    """The frames of the clip side by side, a JPEG of T squares."""

    @property
    def about(self) -> str:
        """Its classes in words."""
        predicted = f"predicted {self.prediction.class_name} ({self.prediction.probability:.0%})"
        return predicted if self.class_name is None else f"{self.class_name}, {predicted}"


@dataclass(frozen=True)
class Collected:
    """What there is to draw: N videos, and of every TAM its weights for them."""

    videos: tuple[Seen, ...]
    num_segments: int
    """T, frames of a clip; a TAM of SlowFast's slow pathway sees a part of them."""
    weights: dict[str, Weights]
    """By the TAM's name: V (N, C, T), if it has one, and Θ (N, C, K)."""
    failures: tuple[Failure, ...]
    """Videos that could not be read, which are in none of the above."""

    def name_of(self, video: Seen) -> str:
        """Its file's name, with its folder's before it where another video's is the same."""
        path = video.path
        same = sum(other.path.name == path.name for other in self.videos)
        return path.name if same == 1 else f"{path.parent.name}/{path.name}"

    @property
    def data_sets(self) -> dict[str, list[int]]:
        """The numbers of the videos of each data set."""
        sets: dict[str, list[int]] = {}
        for number, video in enumerate(self.videos):
            sets.setdefault(video.data_set, []).append(number)
        return sets


def list_videos(
    places: Mapping[str, Sequence[Path]], most: int, roots: Mapping[str, Path] = MappingProxyType({})
) -> tuple[list[Listed], list[str]]:
    """At most `most` videos of each data set, and a line on each; `roots` are folders that indices' videos moved to.

    Raises InputError for places that hold none, and for a root of a place that is no index.
    """
    listed, lines = list[Listed](), list[str]()
    for name, where in places.items():
        found = [video for place in where for video in _at(name, place, roots.get(name))]
        taken = [found[number] for number in spread(len(found), most)]
        lines.append(f"{name}: {len(taken)} of {len(found)} videos{', evenly spread' * (len(taken) < len(found))}")
        listed += taken
    return listed, lines


def _at(name: str, place: Path, root: Path | None) -> Iterator[Listed]:
    if name == GIVEN or not is_index(place):
        if root is not None:
            raise InputError(f"root: got {root} for {name}, which is {place}, expected an index")
        yield from (Listed(name, entry, None) for entry in find_videos([str(place)]))
        return
    split = read_index(place, root).split
    require_some(split, f"--root {name}=FOLDER takes the folder that they were moved to")
    yield from (Listed(name, replace(entry, label=0), split.class_names[entry.label]) for entry in split.entries)


def is_index(place: Path) -> bool:
    """Whether the place of a data set can but be an index."""
    is_video = place.is_dir() or place.suffix.lower() in VIDEO_SUFFIXES
    return not is_video and (place.exists() or not has_magic(str(place)))


@torch.inference_mode()
def collect(
    trained: TrainedNetwork, listed: Sequence[Listed], blocks: Sequence[str], batch_size: int, device: torch.device
) -> Collected:
    """What the TAMs `blocks` give for one view of each video, as a validation takes it.

    Raises:
        InputError: none of the videos can be read, or V or Θ of one are no numbers.
    """
    network, names = trained.network.to(device), trained.class_names
    videos, failures = list[Seen](), list[Failure]()
    with (
        inspect.collecting(network, blocks) as parts,
        closing(_loader(trained, listed, batch_size, device)) as loader,
        tqdm(total=len(listed), unit="video", disable=None) as bar,
    ):
        for batch in loader:
            bar.update(len(batch) + len(batch.missing))
            failures += batch.failures
            if len(batch) == 0:
                continue
            logits = logits_of(network, batch.clips, device).cpu()
            for number, clip, row in zip(batch.indices.tolist(), batch.clips, logits, strict=True):
                video, (prediction,) = listed[number], most_probable(row, names, 1)
                about = (video.data_set, video.entry.path, video.class_name, prediction)
                videos.append(Seen(*about, motion_of(clip), strip_of(clip)))
    if not videos:
        raise InputError(f"none of the {len(listed)} videos can be read; the last is {': '.join(failures[-1])}")
    weights = {name: _join(seen) for name, seen in parts.items()}
    for name, values in weights.items():
        for tensor in values:
            if tensor is not None and not bool((good := tensor.isfinite().flatten(1).all(1)).all()):
                bad = videos[int(good.logical_not().nonzero()[0])].path
                raise InputError(f"{name}: gives no finite numbers for {bad}, so the network is of no use")
    return Collected(tuple(videos), trained.recipe.sampling.num_segments, weights, tuple(failures))


def _loader(
    trained: TrainedNetwork, listed: Sequence[Listed], batch_size: int, device: torch.device
) -> GuardedLoader[Batch]:
    views = replace(trained.recipe.validation, placement="middle", clips=1, crops=1)
    clips = clips_of(trained, [video.entry for video in listed], views)
    return evaluation_batches(clips, batch_size, Loading().for_device(device))


def _join(forwards: Sequence[Weights]) -> Weights:
    importance = [weights.importance for weights in forwards if weights.importance is not None]
    kernel = torch.cat([weights.kernel for weights in forwards])
    return Weights(torch.cat(importance) if importance else None, kernel)


def motion_of(clip: Tensor) -> float:
    """How much moves in a clip uint8 (T, H, W, 3): the mean of |Y′(t+1) − Y′(t)| over its pixels and frames.

    Y′ is the luma of ITU-R BT.601 in levels from 0 to 255. The frames are those that the network sees, so those of
    segments of a long video are further apart than those of a short one. One frame alone has no motion, 0.
    """
    luma = clip.float() @ clip.new_tensor(LUMA, dtype=torch.float32)
    return float((luma[1:] - luma[:-1]).abs().mean()) if len(luma) > 1 else 0.0


def strip_of(clip: Tensor) -> bytes:
    """The frames of a clip uint8 (T, S, S, 3) side by side, as a JPEG."""
    side = min(THUMBNAIL, clip.shape[1])
    row = resize(clip, (side, side)).permute(1, 0, 2, 3).flatten(1, 2)  # (side, T·side, 3)
    file = io.BytesIO()
    Image.fromarray(row.numpy()).save(file, "JPEG", quality=85)
    return file.getvalue()
