"""Opening a checkpoint: the one place where files of weights are read, and never without a look at their checksums.

`torch.load` looks only whether all parts of a file are there: weights of which bits have flipped load without a word.
"""

import hashlib
import os
import pickle
import zipfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch

from tam_triton.nets.stand_ins import standing_in, unknown_names

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

_ZIP = b"PK\x03\x04"  # by these torch.load too tells archives from the format before them
_SAFETENSORS = b"{"  # of the header, after its length in 8 bytes


def read_checkpoint(path: str | os.PathLike[str], *, foreign: bool = False) -> Any:
    """What `torch.save` wrote at `path`, or safetensors did, on the CPU, read with `weights_only=True`.

    The CRC-32 of every part is verified. There is none in the format that torch wrote before 1.6, in files saved under
    `torch.serialization.set_crc32_options(False)` and in those of safetensors: these are read as they are.

    Args:
        path: of the file.
        foreign: written by another program, of which only the weights are wanted: what else it holds, such as its
            options and logs, becomes `StandIn`s, and no code that the file names is run.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is no checkpoint, is damaged, holds more than tensors and plain containers, or for `foreign` such
            as no stand-in can be made for; or safetensors is not installed.
    """
    name = os.fspath(path)
    with Path(path).open("rb") as file:
        start = file.read(len(_ZIP) + 5)
        if start[8:] == _SAFETENSORS:
            return _read_safetensors(name)
        zipped = start.startswith(_ZIP)
        try:
            damaged = damaged_part(file) if zipped else None
        except Exception as error:  # a directory of which bits have flipped can raise anything
            raise ValueError(f"{name}: is not a checkpoint, or a damaged one") from error
        if damaged is not None:
            raise ValueError(f"{name}: is damaged: the checksum of its part {damaged} is not that of what it holds")
        names: list[str] = []
        try:
            try:
                return _load(file, names)
            except pickle.UnpicklingError:
                if not foreign:
                    raise
                file.seek(0)
                names = unknown_names(file, zipped)
                return _load(file, names)
        except pickle.UnpicklingError as error:
            named = f", of {', '.join(names)}" if names else ""
            raise ValueError(
                f"{name}: is not a checkpoint, or a damaged one, or holds more than tensors and plain containers{named}"
            ) from error
        except Exception as error:  # bytes that are no pickle can raise anything
            raise ValueError(f"{name}: is not a checkpoint, or a damaged one") from error


def _load(file: IO[bytes], names: list[str]) -> Any:
    file.seek(0)
    with standing_in(names):
        return torch.load(file, map_location="cpu", weights_only=True)


def _read_safetensors(name: str) -> dict[str, torch.Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ValueError(f"{name}: is of safetensors, which is not installed: pip install safetensors") from error
    try:
        return load_file(name)
    except SafetensorError as error:
        raise ValueError(f"{name}: is not a checkpoint, or a damaged one") from error


def check_download(weights: "WeightsEnum") -> None:
    """Raise ValueError if torch's cache holds a damaged file of torchvision's `weights`.

    Torchvision compares a file with the SHA-256 in its name when it has downloaded it, and never again.
    """
    path = Path(torch.hub.get_dir(), "checkpoints", weights.url.rsplit("/", 1)[-1])
    _, dash, expected = path.stem.rpartition("-")
    if not dash or not path.exists():
        return
    with path.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if not got.startswith(expected):
        raise ValueError(
            f"weights: {path} is damaged: its SHA-256 begins with {got[: len(expected)]}, its name says {expected}; "
            "delete it to have it downloaded anew"
        )


def damaged_part(file: IO[bytes]) -> str | None:
    """The name of the first part of a zip archive that does not have the CRC-32 written with it."""
    with zipfile.ZipFile(file) as archive:
        # Torch can be told to write no checksums and then leaves zeros, in all parts.
        if all(part.CRC == 0 for part in archive.infolist()):
            return None
        return archive.testzip()
