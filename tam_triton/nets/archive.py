"""Opening a checkpoint: the one place where files of weights are read, and never without a look at their checksums.

`torch.load` looks only whether all parts of a file are there: weights of which bits have flipped load without a word.
"""

import hashlib
import os
import pickle
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torchvision.models import WeightsEnum

_ZIP = b"PK\x03\x04"  # by these torch.load too tells archives from the format before them


def read_checkpoint(path: str | os.PathLike[str]) -> Any:
    """What `torch.save` wrote at `path`, on the CPU, read with `weights_only=True`.

    The CRC-32 of every part is verified. There is none in the format that torch wrote before 1.6, nor in files saved
    under `torch.serialization.set_crc32_options(False)`: these are read as they are.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is no checkpoint, is damaged, or holds more than tensors and plain containers; in the last case,
            and for some damage, `__cause__` is a `pickle.UnpicklingError`.
    """
    name = os.fspath(path)
    with Path(path).open("rb") as file:
        zipped = file.read(len(_ZIP)) == _ZIP
        try:
            damaged = _damaged_part(file) if zipped else None
        except Exception as error:  # a directory of which bits have flipped can raise anything
            raise ValueError(f"{name}: is not a checkpoint, or a damaged one") from error
        if damaged is not None:
            raise ValueError(f"{name}: is damaged: the checksum of its part {damaged} is not that of what it holds")
        file.seek(0)
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{name}: is not a checkpoint, or a damaged one, or holds more than tensors and plain containers"
            ) from error
        except Exception as error:  # bytes that are no pickle can raise anything
            raise ValueError(f"{name}: is not a checkpoint, or a damaged one") from error


def check_download(weights: WeightsEnum) -> None:
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


def _damaged_part(file: IO[bytes]) -> str | None:
    """The name of the first part of a zip archive that does not have the CRC-32 written with it."""
    with zipfile.ZipFile(file) as archive:
        # Torch can be told to write no checksums and then leaves zeros, in all parts.
        if all(part.CRC == 0 for part in archive.infolist()):
            return None
        return archive.testzip()
