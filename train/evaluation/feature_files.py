"""Files of features, and what they say of how they were made."""

import json
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from train.atomic import replacing
from train.errors import InputError
from train.fields import parse_json

Format = Literal["safetensors", "npz"]
_METADATA = "metadata"
_UNREADABLE = (OSError, ValueError, KeyError, SafetensorError, zipfile.BadZipFile, struct.error, EOFError)


def write_features(path: Path, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, Any], form: Format) -> None:
    """Let `path` hold `arrays` and `metadata`, which JSON can hold; complete or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        if form == "safetensors":
            texts = {key: json.dumps(value, ensure_ascii=False) for key, value in metadata.items()}
            unfinished.write_bytes(save({name: np.ascontiguousarray(a) for name, a in arrays.items()}, texts))
        else:
            every: dict[str, Any] = {_METADATA: np.array(json.dumps(dict(metadata))), **arrays}
            with unfinished.open("wb") as file:
                np.savez(file, **every)


def read_metadata(path: Path, form: Format) -> dict[str, Any]:
    """What `write_features` was given as metadata. Raises InputError for what is no such file, or a damaged one."""
    try:
        if form == "safetensors":
            with safe_open(path, framework="numpy") as file:
                return {key: parse_json(text) for key, text in (file.metadata() or {}).items()}
        with np.load(path, allow_pickle=False) as file:
            found = parse_json(str(file[_METADATA]))
    except _UNREADABLE as error:
        raise InputError(f"{path}: is no file of features, or is damaged") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: is no file of features")
    return found
