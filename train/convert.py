"""`python -m train convert`: a trained network's weights as the public implementations of TANet read them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tam_triton.nets import published_state
from train.checkpoint import load_checkpoint, write_tensors
from train.errors import InputError
from train.fields import check_types
from train.lock import Lock


@dataclass(frozen=True)
class ConvertConfig:
    """Write the weights of a checkpoint for the authors' code or for mmaction2."""

    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CHECKPOINT")]
    """Checkpoint of a training run. Where the run kept an average of its weights, these are it."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """File to write."""
    to: Literal["authors", "mmaction2"] = "mmaction2"
    """authors: liu-zhy/temporal-adaptive-module. mmaction2: a Recognizer2D of open-mmlab/mmaction2."""
    overwrite: bool = False
    """Write over `out`."""

    def __post_init__(self) -> None:
        check_types(self)


def run_convert(config: ConvertConfig) -> None:
    """Do what the command line asks for. Raises InputError, and OSError where the file cannot be written."""
    with Lock(config.out, is_file=True):
        if config.out.exists() and not config.overwrite:
            raise InputError(f"{config.out}: is there already; --overwrite writes over it")
        trained = load_checkpoint(config.checkpoint)
        try:
            state = published_state(trained.network, config.to)
        except (ValueError, TypeError) as error:
            raise InputError(f"{config.checkpoint}: {error}") from error
        write_tensors(config.out, {"state_dict": state, "meta": {"classes": list(trained.class_names)}})
        print(f"{config.out}: {len(state)} tensors for {config.to}")
