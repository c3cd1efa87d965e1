"""What an exported file says of itself, for whatever program runs it: its classes and how it is fed."""

import json
import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

import tam_triton
from tam_triton.clips import IMAGENET_MEAN, IMAGENET_STD
from train.data.dataset import Views
from train.errors import InputError
from train.fields import check_types, from_plain, parse_json, require, to_plain
from train.recipe import Data, Recipe

Kind = Literal["pt2", "onnx", "aoti"]

FORMAT = "tam_triton/export/1"
PART = "tam_triton.json"
"""The part of a pt2 archive, or the entry of ONNX's metadata, that holds the settings."""
CLIPS, LOGITS = "clips", "logits"
"""How the input and the output are called."""


@dataclass(frozen=True)
class Settings:
    """What this program needs to run an exported file. Raises InputError for a part of another type."""

    kind: Kind
    class_names: tuple[str, ...]
    """In the order of the logits."""
    recipe: Recipe
    """How the network was trained and is fed, without the paths of the machine that did; its `validation` is the one
    view that the file is for."""
    device: str
    """Of which type it was exported on: cpu or cuda."""
    machine: str
    """What `machine` says of that."""
    made_by: str
    """Versions of what exported it."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self, "class_names", len(self.class_names) > 0, "at least one name")

    @property
    def clip_shape(self) -> tuple[int, int, int, int]:
        """(T, S, S, 3) of the clips that the file takes."""
        size = self.recipe.validation.crop_size
        return self.recipe.sampling.num_segments, size, size, 3

    def to_text(self) -> str:
        """All of it as JSON, and beside it, by plain names, what other programs need."""
        sampling, views = self.recipe.sampling, self.recipe.validation
        described = {
            "format": FORMAT,
            "input": {"name": CLIPS, "type": "uint8", "shape": ["N", *self.clip_shape], "colors": "RGB"},
            "output": {"name": LOGITS, "type": "float32", "shape": ["N", len(self.class_names)]},
            "frames": sampling.num_segments,
            "sampling": sampling.kind,
            "reach": sampling.reach if sampling.kind == "dense" else None,
            "short_side": views.short_side,
            "crop_size": views.crop_size,
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
        }
        return json.dumps({**described, **to_plain(self)})

    @staticmethod
    def from_text(text: str | None, path: Path, kind: Kind) -> "Settings":
        """What `to_text` wrote, as found in the file at `path`, which is of that kind. Raises InputError."""
        if text is None:
            raise InputError(f"{path}: was not exported by `python -m train export`: it has no {PART}")
        plain = parse_json(text)
        found = plain.get("format") if isinstance(plain, dict) else None
        if found != FORMAT:
            raise InputError(f"{path}: is of format {found!r}, expected {FORMAT!r}, which this version reads")
        try:
            settings = from_plain(Settings, plain, PART, newer=True)
            require(settings, "kind", settings.kind == kind, f"{kind!r}, which the file is")
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        return settings


def settings_of(kind: Kind, recipe: Recipe, class_names: tuple[str, ...], device: torch.device) -> Settings:
    """The settings of what is exported now on `device`, for clips as `recipe.validation` crops them."""
    data = Data(num_classes=recipe.data.num_classes, decoder=recipe.data.decoder)
    augmentation = replace(recipe.augmentation, mirrored=None)
    optimization = replace(recipe.optimization, class_weights=None)
    model = recipe.model
    if model.starts_from_file:
        model = replace(model, weights=None, weights_segments=None, weights_average=False)
    return Settings(
        kind=kind,
        class_names=class_names,
        recipe=replace(recipe, data=data, optimization=optimization, augmentation=augmentation, model=model),
        device=device.type,
        machine=machine(device),
        made_by=f"tam_triton {tam_triton.__version__}, torch {torch.__version__}",
    )


def with_crop_size(views: Views, size: int | None) -> Views:
    """One view, the center's, of `size` pixels, or of as many as `views` has; frames are then no smaller than that."""
    size = size or views.crop_size
    return Views(short_side=max(views.short_side, size), crop_size=size)


def machine(device: torch.device) -> str:
    """What code that is compiled for `device` needs, in words."""
    cpu = f"{platform.system()} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    if device.type != "cuda":
        return cpu
    major, minor = torch.cuda.get_device_capability(device)
    return f"{cpu}, GPU of compute capability {major}.{minor}"
