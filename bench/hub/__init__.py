"""The kernels as Hugging Face's `kernels` package loads them: a folder for `get_local_kernel`, or for the Hub.

Functions, TAM and the modules beside it, and `layers.TAM` for `kernelize`, without the networks. Nothing is compiled
before a GPU asks for it, so a build is Python alone, one for each backend. Operators have a name of their own, of the
files' content, so that builds and the library live in one process.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.compare import refuse
from bench.hub.sources import LIBRARY, sources

NAME = LIBRARY.replace("_", "-")
LICENSE = "Apache-2.0"
BACKENDS = ("cuda", "cpu")
INIT = '''"""TAM: Temporal Adaptive Module for Video Recognition (arXiv 2005.06803), as Triton kernels for PyTorch."""

from . import layers
from .functional import aggregate, squeeze, squeeze_and_aggregate
from .temporal import TAM

__all__ = ["TAM", "aggregate", "layers", "squeeze", "squeeze_and_aggregate"]
'''
OPS = '''"""The operators' name, which no other build has."""

import torch

_OPS_NAME = "{id}"

ops = getattr(torch.ops, _OPS_NAME)


def add_op_namespace_prefix(op_name: str) -> str:
    """An operator's name with that of all."""
    return f"{{_OPS_NAME}}::{{op_name}}"
'''
# Older releases of `kernels` look for the package in a folder of its name.
INSIDE = '''"""The package around this folder, for older releases of `kernels`."""

import importlib.util
import sys
from pathlib import Path

if "{id}" not in sys.modules:
    _spec = importlib.util.spec_from_file_location("{id}", Path(__file__).parents[1] / "__init__.py")
    sys.modules["{id}"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["{id}"])
__all__ = sys.modules["{id}"].__all__
globals().update({{name: getattr(sys.modules["{id}"], name) for name in __all__}})
'''
BUILD = f"""[general]
name = "{NAME}"
version = {{version}}
edition = 5
license = "{LICENSE}"
backends = [{", ".join(f'"{backend}"' for backend in BACKENDS)}]

[torch-noarch]
"""


@dataclass(frozen=True)
class Hub:
    """Where to write it."""

    out: Path
    """A folder that is not there yet, or is empty."""
    version: int = 1
    """Of the functions' and layers' signatures: another one where these change or there are more."""

    def __post_init__(self) -> None:
        if self.version < 0:
            raise ValueError(f"version: got {self.version}, expected 0 or more")


def run(options: Hub) -> None:
    """Writes the builds and prints their names.

    Raises:
        SystemExit: 2 if the folder holds anything or cannot be written.
    """
    out: Path = options.out
    files = {"__init__.py": INIT, **sources()}
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            refuse(f"out: got {out}, which holds something, expected a new folder")
        for backend in BACKENDS:
            folder = out / "build" / f"torch-{backend}"
            write(folder, files, backend, options.version)
            print(folder)
        (out / "build.toml").write_text(BUILD.format(version=options.version), encoding="utf-8")
    except OSError as error:
        refuse(f"out: {out} cannot be written: {error}")


def write(folder: Path, files: Mapping[str, str], backend: str, version: int) -> None:
    """One build: the files, the operators' name, and what the loader wants to know of them."""
    content = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    identity = f"_{LIBRARY}_{backend}_{content[:12]}"
    texts = {**files, "_ops.py": OPS.format(id=identity), f"{LIBRARY}/__init__.py": INSIDE.format(id=identity)}
    digests = {}
    for place, text in texts.items():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
        digests[place] = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    metadata = {
        "name": NAME,
        "id": identity,
        "version": version,
        "license": LICENSE,
        "python-depends": [],
        "backend": {"type": backend},
        "digest": {"algorithm": "sha256", "files": dict(sorted(digests.items()))},
    }
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
