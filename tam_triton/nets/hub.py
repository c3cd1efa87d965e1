"""Networks as folders of a configuration and weights, here and on the Hugging Face Hub."""

import json
import os
from pathlib import Path
from typing import Any

from torch import nn

from tam_triton.nets.registry import config_of, create_model

CONFIG, WEIGHTS = "config.json", "model.safetensors"  # the Hub's own names


def save_pretrained(network: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Write what made a network and its weights into a folder, which is made where it lacks.

    Raises:
        ValueError: it was not made by `create_model` from names.
        ImportError: safetensors is not installed.
        OSError: the folder cannot be written.
    """
    save = _safetensors().save_file
    config = config_of(network)
    Path(folder).mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    save(state, Path(folder, WEIGHTS), metadata={"format": "pt"})
    Path(folder, CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def from_pretrained(name: str | os.PathLike[str], **download: Any) -> nn.Module:
    """The network of a folder, or of a repository of the Hub, in evaluation mode.

    Args:
        name: a folder that `save_pretrained` wrote, or the name of a repository: "owner/name".
        download: further arguments of `huggingface_hub.snapshot_download`, such as `revision`.

    Raises:
        ValueError: the folder lacks a file, or its configuration is none.
        ImportError: safetensors, or for a repository huggingface_hub, is not installed.
        RuntimeError: the weights are not those of the network.
    """
    load = _safetensors().load_file
    folder = Path(name)
    if not folder.is_dir():
        folder = Path(_hub().snapshot_download(os.fspath(name), allow_patterns=[CONFIG, WEIGHTS], **download))
    if missing := [file for file in (CONFIG, WEIGHTS) if not (folder / file).is_file()]:
        raise ValueError(f"name: got {folder} without {missing}, expected a folder of save_pretrained")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # the latter where it is too deep
        raise ValueError(f"name: got {folder / CONFIG}, which is no JSON") from error
    if not isinstance(config, dict) or "system" not in config:
        raise ValueError(f"name: got {folder / CONFIG} without a system, expected one of save_pretrained")
    network = create_model(**config)
    network.load_state_dict(load(folder / WEIGHTS), strict=True)
    return network.eval()


def push_to_hub(network: nn.Module, repository: str, folder: str | os.PathLike[str], **upload: Any) -> None:
    """Write a network into a folder and upload that to a repository of the Hub, which is made where it lacks.

    Args:
        network: of `create_model`.
        repository: "owner/name".
        folder: for the files on this machine.
        upload: further arguments of `huggingface_hub.upload_folder`, such as `commit_message`.

    Raises:
        ValueError, ImportError, OSError: as `save_pretrained`, and as huggingface_hub.
    """
    hub = _hub()
    save_pretrained(network, folder)
    hub.create_repo(repository, exist_ok=True)
    hub.upload_folder(repo_id=repository, folder_path=folder, allow_patterns=[CONFIG, WEIGHTS], **upload)


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("networks in folders need safetensors: pip install safetensors") from error
    return safetensors.torch


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError("the Hugging Face Hub needs huggingface_hub: pip install huggingface_hub") from error
    return huggingface_hub
