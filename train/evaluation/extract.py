"""Features of videos, a file for each: those that are there already are kept, so an interrupted command goes on."""

import itertools
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

import tam_triton
from tam_triton.clips import IMAGENET_MEAN, IMAGENET_STD
from tam_triton.features import record_features
from train.checkpoint import TrainedNetwork
from train.data.batches import evaluation_batches
from train.data.entries import Entry
from train.data.loader import Loading
from train.errors import InputError
from train.evaluation.extract_config import ExtractConfig
from train.evaluation.feature_files import read_metadata, write_features
from train.evaluation.places import absolute, find_videos, fingerprint, output_paths
from train.evaluation.predict import load_network
from train.evaluation.predictor import clips_of
from train.evaluation.protocols import choose_views
from train.fields import to_plain
from train.lock import Lock
from train.precision import computing, logits_of
from train.team import choose_device

INCIDENTAL = ("network", "library")
"""Metadata that may differ in files made by the same settings: where the network's file was, and which version ran."""


def run_extract(config: ExtractConfig) -> None:
    """Do what the command line asks for: a file of features for each video that has none yet.

    Raises InputError where there is nothing to look at, and before anything is written for files that are there by
    other settings; where features are no finite numbers, and at the end where videos cannot be read. Raises OSError for
    a file that cannot be written.
    """
    with Lock(config.out):
        found = find_videos(config.videos)
        outputs = output_paths(found, config.out, f".{config.format}")
        trained, device = load_network(config, config.data), choose_device(config.device)
        extractor = Extractor(trained, config, device)
        todo = extractor.missing(outputs)
        kept, written, failures = len(outputs) - len(todo), 0, 0
        try:
            with computing(device, config.threads), tqdm(total=len(todo), unit="video", disable=None) as bar:
                for path, reason in extractor.run(todo):
                    bar.update()
                    if reason is None:
                        written += 1
                        continue
                    failures += 1
                    bar.write(f"cannot be read: {todo[path].path}: {reason}", file=sys.stderr)
        finally:  # on a full disk too
            left = len(todo) - written - failures
            parts = [f"{written} of {len(outputs)} videos written to {config.out}", f"{kept} kept"]
            parts += [f"{failures} cannot be read"] if failures else []
            parts += [f"{left} left for the same command to go on with"] if left else []
            print(", ".join(parts))
    if failures:
        raise InputError(f"{failures} of {len(outputs)} videos cannot be read")


class Extractor:
    """A network, and which of its features are written."""

    def __init__(self, trained: TrainedNetwork, config: ExtractConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.trained, recipe = trained, trained.recipe
        validation = recipe.validation
        self.views = views = choose_views(config, validation if config.protocol == "validation" else recipe.test)
        self.network = trained.network.to(device).to(memory_format=torch.channels_last)
        self.settings: dict[str, Any] = {
            "network": str(absolute(config.network_path)),
            "fingerprint": fingerprint(config.network_path),
            "library": f"tam_triton {tam_triton.__version__}, torch {torch.__version__}",
            "recipe": recipe.name,
            "system": f"{recipe.model.system} on {recipe.model.backbone}",
            "weights": {"segments": config.segments, "average": config.average} if config.weights else None,
            "sampling": to_plain(recipe.sampling),
            "transforms": {
                "short_side": views.short_side,
                "crop_size": views.crop_size,
                "crop": "center",
                "mean": list(IMAGENET_MEAN),
                "std": list(IMAGENET_STD),
            },
            "precision": config.precision,
            "features": "per segment (T, D)" if config.per_segment else "mean over segments (D,)",
            "maps": list(config.maps),
            **({} if views.per_video == 1 and views.placement == "middle" else {"views": to_plain(views)}),
        }

    def metadata(self, entry: Entry) -> dict[str, Any]:
        """What a file says of the video of `entry` and of what made it."""
        path = entry.path
        sizes = [file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path]) if file.is_file()]
        size = sum(sizes) if sizes else None
        return {"video": str(absolute(path)), "video_bytes": size, **self.settings}

    def missing(self, outputs: Mapping[Path, Entry]) -> dict[Path, Entry]:
        """Of `outputs` those that are not there yet, or with `overwrite` are there by other settings.

        Raises InputError, without `overwrite`, where one is there that other settings made, or of another video.
        """
        todo: dict[Path, Entry] = {}
        for path, entry in outputs.items():
            if path.exists():
                try:
                    differences = _differences(read_metadata(path, self.config.format), self.metadata(entry))
                except InputError as error:
                    if not self.config.overwrite:
                        raise InputError(f"{error}; --overwrite makes it anew") from error
                    differences = "all"
                if not differences:
                    continue
                if not self.config.overwrite:
                    raise InputError(
                        f"{path}: was made otherwise: {differences}; take another folder for --out, or --overwrite"
                    )
            todo[path] = entry
        return todo

    def run(self, todo: Mapping[Path, Entry]) -> Iterator[tuple[Path, str | None]]:
        """Write the files of `todo`; gives each one's path and None, or why its video cannot be read.

        Raises InputError where the network gives no finite numbers.
        """
        clips = clips_of(self.trained, tuple(todo.values()), self.views)
        loading = Loading(workers=self.config.workers).for_device(self.device)
        with closing(evaluation_batches(clips, min(self.config.batch_size, self.views.per_video), loading)) as loader:
            batches = iter(loader)
            for path, entry in todo.items():
                of_entry = list(itertools.islice(batches, len(loader) // len(todo)))
                if failures := [failure for batch in of_entry for failure in batch.failures]:
                    yield path, failures[0].reason
                    continue
                parts = [self.arrays(batch.clips) for batch in of_entry]
                arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
                if bad := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
                    raise InputError(
                        f"{entry.path}: its {bad[0]} are no finite numbers in precision {self.config.precision}, so "
                        "they are not written"
                    )
                if self.views.per_video == 1:
                    arrays = {name: array[0] for name, array in arrays.items()}
                write_features(path, arrays, self.metadata(entry), self.config.format)
                yield path, None

    @torch.inference_mode()
    def arrays(self, clips: torch.Tensor) -> dict[str, NDArray[Any]]:
        """What is written of clips uint8 (V, T, S, S, 3), a row each. Raises InputError for unknown layers."""
        config, network = self.config, self.network

        def call() -> object:
            return logits_of(network, clips, self.device, config.precision)

        try:
            recorded = record_features(network, call, len(clips), config.maps)
        except ValueError as error:
            raise InputError(f"maps: {str(error).removeprefix('layers: ')}") from error
        segments = self.trained.recipe.sampling.num_segments if config.per_segment else None
        try:
            recorded = recorded._replace(features=recorded.features.float())
            features = torch.stack([recorded.of_clip(number, segments) for number in range(len(clips))])
        except ValueError as error:
            raise InputError(str(error)) from error
        maps = {f"maps.{name}": maps.float() for name, maps in recorded.maps.items()}
        return {name: array.contiguous().cpu().numpy() for name, array in {"features": features, **maps}.items()}


def _differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between the metadata of a file and those of today, both named; "" where nothing of consequence."""
    unknown = () if there.get("video_bytes") else ("video_bytes",)  # as older files have it of folders of pictures
    names = [name for name in now if name not in (*INCIDENTAL, *unknown) and there.get(name) != now[name]]
    return ", ".join(f"{name} {_short(there.get(name))} there, {_short(now[name])} now" for name in names)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else f"{text[:100]}…"
