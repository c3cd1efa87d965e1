"""Checkpoints: one file with all that is needed to use a trained network; no crash leaves half of one."""

import os
import pickle
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from train.dataset import ClipFormat
from train.errors import InputError
from train.networks import NetworkConfig, build_network

FORMAT = "tam_triton/train/1"


@dataclass(frozen=True)
class TrainedNetwork:
    """A network, and how to feed it and read its answer."""

    network: nn.Module
    config: NetworkConfig
    class_names: tuple[str, ...]
    clip_format: ClipFormat


def save_checkpoint(path: Path, trained: TrainedNetwork) -> None:
    """Write `trained` to `path`; whatever happens, `path` holds either what it held or all of the new checkpoint."""
    content = {
        "format": FORMAT,
        "network": asdict(trained.config),
        "class_names": list(trained.class_names),
        "clip_format": asdict(trained.clip_format),
        "state_dict": trained.network.state_dict(),
    }
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    try:
        with unfinished.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> TrainedNetwork:
    """The network saved at `path`, on the CPU, in evaluation mode. Nothing in the file is executed.

    Raises:
        InputError: no such file, damaged, written by something else, or with weights that do not fit its description.
    """
    content = _read(path)
    try:
        config = NetworkConfig(**content["network"])
        clip_format = ClipFormat(**content["clip_format"])
        class_names = tuple(content["class_names"])
        network = build_network(config)
        network.load_state_dict(content["state_dict"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{path}: the checkpoint does not fit the network it describes: {reason}") from error
    if len(class_names) != config.num_classes or clip_format.num_segments != config.num_segments:
        raise InputError(f"{path}: the checkpoint contradicts itself in its number of classes or of segments")
    return TrainedNetwork(network.eval(), config, class_names, clip_format)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise InputError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise InputError(f"{path}: is not a checkpoint, or a damaged one") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path}: is not a checkpoint of this program (format {FORMAT!r})")
    return content
