"""Where in a checkpoint its weights are, and whether there are averaged ones beside them."""

import os
import pickle
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from tam_triton.nets.archive import read_checkpoint
from tam_triton.nets.stand_ins import stood_for

CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model")
AVERAGES = ("ema_state_dict", "state_dict_ema", "model_ema")


class Weights(NamedTuple):
    """A state dict, and what a reader should know of where it was."""

    state: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def weights_of(checkpoint: Any, average: bool = False) -> Weights:
    """The state dict in `checkpoint`, which is one, a container of one, or the path of a file with either.

    Args:
        checkpoint: as in `load_published`.
        average: take the moving average of the weights that lies beside them.

    Raises:
        TypeError, OSError, ValueError: as `load_published`.
    """
    if isinstance(checkpoint, str | os.PathLike):
        checkpoint = _read(checkpoint)
    name, state = _find(checkpoint, CONTAINERS)
    notes: tuple[str, ...] = ()
    if isinstance(checkpoint, Mapping):
        beside, averaged = _find(checkpoint, AVERAGES)
        if beside and "message_hub" in checkpoint:  # mmengine exchanges the two as it writes them
            notes = (f"these are averaged weights (EMA), as mmengine writes them; those of before under {beside!r}",)
        elif beside and average:
            name, state, notes = beside, averaged, (f"averaged weights (EMA), from {beside!r}",)
        elif beside:
            notes = (f"averaged weights (EMA) are there too, under {beside!r}; average=True takes them",)
        elif average:
            raise ValueError(f"average: got True, but the checkpoint has none of {', '.join(AVERAGES)}")
    if kind := stood_for(state):
        where = f" under {name!r}" if name else ""
        raise TypeError(
            f"checkpoint: got a whole {kind}{where}, expected a state dict. Code that a file names is never run: where "
            "that class can be imported, load the object and write `torch.save(network.state_dict(), path)`"
        )
    if not isinstance(state, Mapping):
        raise TypeError(f"checkpoint: got {type(state).__name__}, expected a path, a state dict or a container of one")
    return Weights(state, notes)


def _find(checkpoint: Any, names: tuple[str, ...]) -> tuple[str, Any]:
    """The first of the entries with these names that is no tensor; otherwise "" and the checkpoint itself."""
    if isinstance(checkpoint, Mapping):
        found = {name: checkpoint[name] for name in names if not isinstance(checkpoint.get(name), Tensor | None)}
        found = {name: value for name, value in found.items() if isinstance(value, Mapping)} or found
        for name, value in found.items():
            return name, value
    return "", checkpoint


def _read(path: str | os.PathLike[str]) -> Any:
    try:
        return read_checkpoint(path, foreign=True)
    except ValueError as error:
        more = isinstance(error.__cause__, pickle.UnpicklingError)
        advice = "; if you trust its source, load it yourself and pass its state dict" if more else ""
        raise ValueError(f"checkpoint: {error}{advice}") from error
