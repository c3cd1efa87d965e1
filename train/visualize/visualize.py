"""`python -m train visualize`: what the TAMs of a trained network make of videos, as figures, a page and tensors."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tam_triton import inspect
from train.atomic import replacing
from train.checkpoint import TrainedNetwork
from train.errors import InputError
from train.evaluation.predict import load_network
from train.lock import Lock
from train.log import say
from train.precision import computing
from train.team import choose_device
from train.visualize import pictures
from train.visualize.collect import Collected, collect, is_index, list_videos
from train.visualize.config import GIVEN, VisualizeConfig
from train.visualize.filters import read_filters
from train.visualize.page import write_page

TENSORS, PAGE = "kernels.npz", "index.html"
FORMAT = "tam_triton/train/kernels/1"
FIGURES = {
    "kernels.png": "Kernels Θ over channels, at each offset, with least, middle and greatest value (paper, figure 4)",
    "distributions.png": "Importance maps V and kernels Θ over clips and channels, by data set (figures 5 and 6)",
    "motion.png": "Θ at frame t against how much moves: a dot for each clip, and by thirds of clips (figures 7 and 8)",
    "filmstrips.png": "Sampled frames, and V below: its mean over channels, and 10 to 90 % of them",
}
_SHOWN = 10  # failures that are named on the console; the file of tensors has them all


def run_visualize(config: VisualizeConfig) -> None:
    """Do what the command line asks for: look, draw, and say where it is.

    Raises:
        InputError: a checkpoint without TAM, or with others than the blocks asked for; filters that are none; places
            without videos; none that can be read; or a folder that cannot be written to or is in use.
        OSError: a file cannot be written; those before it are there.
    """
    device, trained = choose_device(config.device), _load(config)
    blocks = choose_blocks(trained, config)
    filters = read_filters(config.i3d, blocks) if config.i3d else {}
    listed, lines = list_videos(config.places, config.most, config.roots)
    with Lock(config.out), computing(device):
        if (config.out / TENSORS).exists() and not config.overwrite:
            raise InputError(f"out: {config.out} holds kernels already; take another folder, or --overwrite")
        say(f"{trained.recipe.model.system}, {', '.join(map(pictures.label, blocks))}", *lines)
        seen = collect(trained, listed, blocks, config.batch_size, device)
        say(*_describe_failures(seen))
        made_of = _made_of(config, trained, seen, {name: found.name for name, found in filters.items()})
        save_tensors(config.out / TENSORS, seen, made_of)
        drawn = {config.out / name: text for name, text in FIGURES.items()}
        for path in drawn:
            if path.name == "kernels.png":
                pictures.plot_kernels(path, seen, filters)
            else:
                getattr(pictures, f"plot_{path.stem}")(path, seen)
        write_page(config.out / PAGE, seen, filters, made_of, drawn, config.shown)
        say(f"written to {config.out}: {', '.join((PAGE, *FIGURES, TENSORS))}")


def _load(config: VisualizeConfig) -> TrainedNetwork:
    """As `predict` does; what weights call their classes, the first of the indices says."""
    named = (place for name, places in config.places.items() if name != GIVEN for place in places)
    return load_network(config, next((place for place in named if is_index(place)), None))


def choose_blocks(trained: TrainedNetwork, config: VisualizeConfig) -> tuple[str, ...]:
    """The TAMs that are looked at. Raises InputError where there is none, or none of a name."""
    network, system = trained.network, trained.recipe.model.system
    if not inspect.find_tams(network):
        raise InputError(
            f"{config.network_path}: is of {system}, in which there is no TAM; expected one of TANet, of its parts or "
            "of SlowFast with TAM"
        )
    try:
        return inspect.choose_tams(network, config.blocks) if config.blocks else inspect.last_tams(network)
    except ValueError as error:
        raise InputError(f"blocks: {str(error).removeprefix('names: ')}") from error


def save_tensors(path: Path, seen: Collected, made_of: dict[str, Any]) -> None:
    """Write what was collected, for NumPy to load without pickle. Raises OSError.

    `TAM.importance` (N, C, T) and `TAM.kernel` (N, C, K) of each TAM, and of the N videos `paths`, `data_sets`,
    `classes` ("" where no index says one), `predicted`, `probabilities` and `motion`; of what all this is `made_of`
    says, as JSON.
    """
    videos = seen.videos
    arrays: dict[str, Any] = {
        "format": FORMAT,
        "made_of": json.dumps(made_of),
        "paths": [_text(video.path) for video in videos],
        "data_sets": [video.data_set for video in videos],
        "classes": [video.class_name or "" for video in videos],
        "predicted": [video.prediction.class_name for video in videos],
        "probabilities": np.array([video.prediction.probability for video in videos], np.float32),
        "motion": np.array([video.motion for video in videos], np.float32),
        "failures": np.array([list(map(_text, failure)) for failure in seen.failures], np.str_).reshape(-1, 2),
    }
    for name, (importance, kernel) in seen.weights.items():
        arrays[f"{name}.kernel"] = kernel.numpy()
        if importance is not None:
            arrays[f"{name}.importance"] = importance.numpy()
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        np.savez_compressed(file, **arrays)


def _made_of(
    config: VisualizeConfig, trained: TrainedNetwork, seen: Collected, filters: dict[str, str]
) -> dict[str, Any]:
    """What the pictures are of, by names for people."""
    recipe = trained.recipe
    sets = [f"{name}: {len(numbers)}" for name, numbers in seen.data_sets.items()]
    return {
        "checkpoint": _text(config.network_path.absolute()),
        "network": f"{recipe.model.system}, {recipe.model.backbone}, {recipe.sampling.num_segments} frames",
        "TAMs": list(seen.weights),
        "videos": [*sets, f"could not be read: {len(seen.failures)}"],
        **({"I3D": f"{_text(config.i3d.absolute())}, {', '.join(filters.values())}"} if config.i3d else {}),
        "motion": "mean over pixels and frames of |Y′(t+1) − Y′(t)| of the sampled frames; Y′: luma of BT.601, 0 … 255",
    }


def _describe_failures(seen: Collected) -> Sequence[str]:
    if not seen.failures:
        return [f"{pictures.count(len(seen.videos))} looked at"]
    total = len(seen.videos) + len(seen.failures)
    lines = [f"{len(seen.videos)} of {total} videos looked at; {len(seen.failures)} cannot be read and are left out:"]
    lines += [f"  {path}: {reason}" for path, reason in seen.failures[:_SHOWN]]
    if len(seen.failures) > _SHOWN:
        lines.append(f"  and {len(seen.failures) - _SHOWN} more, all of them in {TENSORS}")
    return lines


def _text(value: object) -> str:
    """`value` as text, with bytes of a file's name that are none escaped."""
    return str(value).encode(errors="backslashreplace").decode()
