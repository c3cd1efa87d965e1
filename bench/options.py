"""What `ops`, `model` and `train` have in common: where to run, how long to measure, where to write."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from bench.shapes import DTYPES
from tam_triton.kernels import tuned
from train.allocator import keep_freed_memory

DType = Literal["float32", "float16", "bfloat16"]
Layout = Literal["nchw", "channels_last"]


def check_least(options: object, **least: int) -> None:
    """Raises ValueError, with its name, for a number among the options that is less than it may be."""
    for name, value in least.items():
        if getattr(options, name) < value:
            raise ValueError(f"{name}: got {getattr(options, name)}, expected at least {value}")


def check_device(name: str) -> torch.device:
    """The device; raises ValueError for one that torch does not find, or that nothing is measured on."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: got {name!r}, expected cpu, cuda or cuda:INDEX")
    beyond = device.index is not None and device.index >= torch.cuda.device_count()
    if device.type == "cuda" and (beyond or not torch.cuda.is_available()):
        raise ValueError(f"device: got {name!r}, but torch finds no such device here")
    return device


def check_taps(kernel_size: int) -> None:
    """Raises ValueError for a K that is no odd number above 0."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size: got {kernel_size}, expected an odd number above 0")


@dataclass(frozen=True)
class Options:
    """Raises ValueError for what cannot be measured, before anything is."""

    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """A torch device."""
    dtype: DType = "float32"
    """Of the feature maps; parameters stay in float32 under autocast."""
    clips: int = 2
    """N, the clips of a call."""
    segments: int = 8
    """T, the frames of a clip."""
    rounds: int = 15
    """At least this many rounds, in each of which every candidate is timed once."""
    seconds: float = 0.5
    """At least this long for the candidates of one comparison together: more rounds where they are short."""
    threads: int = 2
    """torch.set_num_threads, on the CPU."""
    tuned: Path | None = None
    """On a GPU: a file of launches that `bench tune` wrote for it, used in place of the launch rules'."""
    out: Path | None = None
    """A JSON file for the results."""
    profile: Path | None = None
    """A JSON file for a Chrome trace (chrome://tracing, Perfetto) of one call of everything that is measured."""

    def __post_init__(self) -> None:
        check_least(self, clips=1, segments=1, rounds=1, threads=1)
        device = check_device(self.device)
        if self.tuned is not None:
            if device.type != "cuda":
                raise ValueError(f"tuned: got device {self.device!r}, expected a GPU: elsewhere nothing is launched")
            with torch.cuda.device(device):
                tuned.read(self.tuned)
        if self.seconds < 0:
            raise ValueError(f"seconds: got {self.seconds}, expected 0 or more")

    def autocast(self) -> AbstractContextManager[object]:
        """Mixed precision as in training; nothing for float32."""
        if self.dtype == "float32":
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, DTYPES[self.dtype])

    def prepare(self, *files: Path | None) -> bool:
        """Sets threads, device and tuned launches, and makes the files' folders, so that no finished run is lost.

        Returns whether the process keeps what tensors on the CPU free, which it is asked to there.
        """
        torch.set_num_threads(self.threads)
        device = torch.device(self.device)
        if device.type == "cuda" and device.index is not None:  # older releases of torch refuse a device without one
            torch.cuda.set_device(device)
        tuned.use(self.tuned)
        for file in (self.out, self.profile, *files):
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
        return device.type == "cpu" and keep_freed_memory()
