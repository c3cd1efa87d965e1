"""`python -m train export`: a file for other programs, there once it was seen to do what the checkpoint does."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from train.atomic import replacing
from train.checkpoint import TrainedNetwork
from train.data.batches import evaluation_batches
from train.data.loader import Loading
from train.errors import InputError
from train.evaluation.places import find_videos, spread
from train.evaluation.predict import load_network
from train.evaluation.predictor import clips_of
from train.export.config import ExportConfig
from train.export.writers import check_tools, write_network
from train.exported.network import load_exported
from train.exported.settings import Settings, settings_of, with_crop_size
from train.lock import Lock
from train.metrics import evaluation_mode
from train.precision import computing, logits_of
from train.team import choose_device

RANDOM_CLIPS, BATCH = 3, 8


@dataclass(frozen=True)
class Difference:
    """How far the logits of a file are from the checkpoint's, over all clips that it was checked on."""

    largest: float
    """The largest difference of a logit."""
    magnitude: float
    """The largest magnitude of the checkpoint's."""
    same_class: int
    """Of how many clips the most probable class is the same."""
    clips: int

    def __str__(self) -> str:
        return (
            f"largest difference {self.largest:.2g} of logits up to {self.magnitude:.3g}, the same class first for "
            f"{self.same_class} of {self.clips} clips"
        )


def run_export(config: ExportConfig) -> Difference:
    """Do what the command line asks for: write the file, load it again, compare, and only then give it its name.

    Raises:
        InputError: a checkpoint, video or option that cannot be used; what it takes is not installed; or the file does
            not do what the checkpoint does. Then there is no file, or the one that was there before.
        OSError: the file cannot be written.
    """
    with Lock(config.out, is_file=True):
        if config.out.exists() and not config.overwrite:
            raise InputError(f"{config.out}: is there already; --overwrite writes over it")
        check_tools(config.format, config.opset)
        on_cpu = config.format == "onnx" and config.device == "auto"
        device = choose_device("cpu" if on_cpu else config.device)
        trained = load_network(config, config.data)
        view = with_crop_size(trained.recipe.validation, config.crop_size)
        trained = replace(trained, recipe=replace(trained.recipe, validation=view))
        settings = settings_of(config.format, trained.recipe, trained.class_names, device)
        with computing(device, config.threads):
            clips, described = _clips(config, trained, settings, device)
            network = trained.network.to(device).to(memory_format=torch.channels_last)
            expected = _expected(network, clips, device)
            with replacing(config.out) as unfinished:
                write_network(unfinished, network, settings, config.opset)
                difference = _compare(load_exported(unfinished, device, config.threads), clips, expected, device)
                _check(config, difference, described)
                size = unfinished.stat().st_size
        shape = ", ".join(map(str, settings.clip_shape))
        print(
            f"{config.out}: {config.format}, {size / 1e6:.1f} MB, {len(settings.class_names)} classes, takes uint8 "
            f"(N, {shape})\nchecked on {described}: {difference}"
        )
    return difference


def _clips(
    config: ExportConfig, trained: TrainedNetwork, settings: Settings, device: torch.device
) -> tuple[Tensor, str]:
    """What the file is checked on, uint8 (n, T, S, S, 3), and what that is. Raises InputError."""
    if not config.videos:
        generator = torch.Generator().manual_seed(0)
        shape = (RANDOM_CLIPS, *settings.clip_shape)
        clips = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        return clips, f"{RANDOM_CLIPS} clips of random bytes, as no --videos are named"
    found = find_videos(config.videos)
    entries = [found[number] for number in spread(len(found), config.most)]
    videos = clips_of(trained, entries, trained.recipe.validation)
    with closing(evaluation_batches(videos, BATCH, Loading(workers=1).for_device(device))) as loader:
        batches = list(loader)
    if failures := [failure for batch in batches for failure in batch.failures]:
        path, reason = failures[0]
        raise InputError(f"videos: {len(failures)} of {len(entries)} cannot be read: {path}: {reason}")
    evenly = ", spread evenly" if len(entries) < len(found) else ""
    return torch.cat([batch.clips for batch in batches]), f"{len(entries)} of {len(found)} videos{evenly}"


@torch.inference_mode()
def _expected(network: nn.Module, clips: Tensor, device: torch.device) -> Tensor:
    """The checkpoint's logits, as `predict` computes them. Raises InputError where they are no finite numbers."""
    with evaluation_mode(network):
        logits = torch.cat([logits_of(network, part, device).cpu() for part in clips.split(BATCH)])
    if not logits.isfinite().all():
        raise InputError("the checkpoint gives logits that are no finite numbers, so that nothing can be compared")
    return logits


@torch.inference_mode()
def _compare(exported: TrainedNetwork, clips: Tensor, expected: Tensor, device: torch.device) -> Difference:
    """How the file does: on the first clip alone, and on all of them, several at a time."""
    got = [logits_of(exported.network, part, device).cpu() for part in _parts(clips)]
    wanted = list(_parts(expected))
    largest = max(float((one - other).abs().max()) for one, other in zip(got, wanted, strict=True))
    if any(not part.isfinite().all() for part in got):
        largest = float("nan")
    of_all = torch.cat(got[1:])[: len(clips)]
    same = int((of_all.argmax(1) == expected.argmax(1)).sum())
    return Difference(largest, float(expected.abs().max()), same, len(clips))


def _parts(rows: Tensor) -> Iterator[Tensor]:
    """The first row alone, then all, `BATCH` or less at a time; a single one twice, so that a batch has two."""
    yield rows[:1]
    yield from (rows if len(rows) > 1 else rows.repeat(2, *[1] * (rows.dim() - 1))).split(BATCH)


def _check(config: ExportConfig, difference: Difference, described: str) -> None:
    if not difference.largest <= config.tolerance * difference.magnitude:
        raise InputError(
            f"{config.out}: is not written, as it differs from {config.network_path} on {described}: {difference}; "
            f"expected at most {config.tolerance:g} of the magnitude, or another --tolerance"
        )
