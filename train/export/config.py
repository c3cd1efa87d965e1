"""What `python -m train export` is asked for, apart from what does it, so that its help is there at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from train.errors import InputError
from train.evaluation.network_config import CheckpointOrWeights
from train.fields import check_types, require

OPSET, LEAST_OPSET = 20, 18
"""By default what TensorRT 10 and OpenVINO read, and the least that torch writes."""


@dataclass(frozen=True)
class ExportConfig(CheckpointOrWeights):
    """Write a trained network with its classes, sampling and normalization as one file, checked against the checkpoint.

    The file takes clips uint8 (N, T, S, S, 3), RGB, as many at a time as there are, and gives logits (N, classes).
    """

    files: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="CHECKPOINT")]
    """Checkpoint of a training run. Where the run kept an average of its weights, these are it. None with --weights."""
    format: Literal["pt2", "onnx", "aoti"]
    """pt2: a program of torch.export, for torch on any machine. onnx: for ONNX Runtime, TensorRT, OpenVINO. aoti:
    compiled by AOTInductor with this machine's C++ compiler, for its kind of processor, or of GPU, alone."""
    out: Path
    """File to write."""
    videos: tuple[str, ...] = ()
    """Videos that it is checked on: files, folders of them, or quoted patterns. By default clips of random bytes."""
    most: int = 16
    """Of these videos, how many are taken, spread evenly over them."""
    tolerance: float = 1e-3
    """How much logits may differ from the checkpoint's, as a share of the largest one's magnitude. Otherwise no file is
    written."""
    crop_size: int | None = None
    """Height and width, S, of the squares that the file takes; by default as the recipe validates."""
    opset: int | None = None
    """Version of ONNX's operators; by default 20."""
    overwrite: bool = False
    """Write over `out`."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network is exported and checked. auto: a GPU where there is one, but for onnx the CPU."""
    threads: int | None = None
    """Threads that are computed with on the CPU; by default as many as torch takes."""
    weights: Path | None = None
    """Instead of a checkpoint: weights of another program, such as the authors' code and mmaction2, with --recipe."""
    recipe: str | None = None
    """What `weights` belong to: the name of a recipe, such as k400-8f, or the recipe.json of a run."""
    segments: Literal["interpolate", "draw"] | None = None
    """Where `weights` are of another number of frames: make TAM's global branches of them, or draw them anew."""
    average: bool = False
    """Take the moving average (EMA) that lies beside `weights` in their file."""
    data: Path | None = None
    """Index of the data set of `weights`, for the names of its classes; without one they are numbers."""

    def __post_init__(self) -> None:
        check_types(self)
        self.check_network()
        require(self, "data", self.data is None or self.weights is not None, "None without weights")
        if len(self.files) != (1 if self.weights is None else 0):
            expected = "one CHECKPOINT" if self.weights is None else "none, as there are weights"
            raise InputError(f"files: got {' '.join(self.files) or 'none'}, expected {expected}")
        for name in ("most", "crop_size", "threads"):
            require(self, name, getattr(self, name) is None or getattr(self, name) >= 1, "at least 1")
        require(self, "tolerance", self.tolerance > 0, "a share above 0")
        if self.opset is not None:
            require(self, "opset", self.format == "onnx", f"None for {self.format}, as only onnx has one")
            require(self, "opset", self.opset >= LEAST_OPSET, f"at least {LEAST_OPSET}, which is what torch writes")
