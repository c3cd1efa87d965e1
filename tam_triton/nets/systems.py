"""Every system of the paper as a row of one table. Nothing here needs torchvision, which takes a second to import."""

import inspect
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from torch import nn

from tam_triton.nets import places as where
from tam_triton.nets.insertion import Place
from tam_triton.nets.slowfast_config import CONFIGS
from tam_triton.temporal import MODULES


@dataclass(frozen=True)
class System:
    """A row: what goes where into a 2D network.

    Attributes:
        module: a name in `tam_triton.temporal.MODULES`; None for nothing.
        source: in the paper.
        style: of the places, if the system is known on other backbones than ResNets and in single stages.
        places: from a ResNet to the places, otherwise.
        name: the module's in its block.
        options: of the module, where they are not its defaults.
    """

    module: str | None
    source: str
    style: str | None = None
    places: Callable[[nn.Module], list[Place]] | None = None
    name: str = "tam"
    options: dict[str, Any] = field(default_factory=dict)

    def places_in(self, network: nn.Module, stages: Collection[str] | None) -> list[Place]:
        """Where the module goes."""
        if self.places is not None:
            return self.places(network)
        assert self.style is not None
        return [replace(place, name=self.name) for place in where.known_places(network, self.style, stages=stages)]


SYSTEMS = {
    "c2d": System(None, "table 2: frame by frame, logits averaged"),
    "c2d_pool": System("avg_pool", "table 2: average pooling 3×1×1 in place of each TAM", "b", name="pool"),
    "c2d_tconv": System("conv", "table 2: dense 3×1×1 convolution in place of each TAM", "b", name="temporal_conv"),
    "tsm": System("shift", "section 4.3; arXiv 1811.08383", places=where.shifts),
    "teinet": System("tei", "section 4.3; arXiv 1911.09435", places=partial(where.block_inputs, name="tei")),
    "i3d": System("inflated_conv", "section 4.3: I3D 3×1×1 in every block", places=where.first_convs),
    "i3d_every_other": System(
        "inflated_conv", "arXiv 1711.07971, section 4.1", places=partial(where.first_convs, every_other=True)
    ),
    "nl_c2d": System("non_local", "section 4.3; arXiv 1711.07971", places=where.non_locals),
    "global": System("global", "table 2: the global branch alone", "b"),
    "local": System("local", "table 2: the local branch alone", "b"),
    "global_se": System("global_se", "table 2: the global branch and squeeze-and-excitation", "b"),
    "tanet_r": System("tanet_r", "table 2: excitation after the aggregation", "b"),
    "tanet_a": System("tam", "table 2: before conv1", "a"),
    "tanet_b": System("tam", "table 2: before conv2, which is TANet", "b"),
    "tanet_c": System("tam", "table 2: after conv2", "c"),
    "tanet_d": System("tam", "table 2: after conv3", "d"),
    "tanet": System("tam", "section 3.4", "b"),
}


def list_models(pattern: str = "*") -> list[str]:
    """The systems whose names match, as file names are matched ("tanet*"), sorted as people count."""
    if not isinstance(pattern, str):
        raise TypeError(f"pattern: got {type(pattern).__name__}, expected a str")
    return as_people_count(name for name in (*SYSTEMS, *CONFIGS) if fnmatchcase(name, pattern))


def list_options(system: str) -> tuple[str, ...]:
    """The options that a system's temporal module has: `kernel_size`, `alpha`, `beta`, `impl`, …

    Raises:
        TypeError, ValueError: an unknown name, with a list of what there is.
    """
    check_system(system)
    if system in CONFIGS:
        return ("impl",)
    module = SYSTEMS[system].module
    return () if module is None else tuple(inspect.signature(MODULES[module]).parameters)[2:]


def check_system(system: str) -> None:
    """Raises as `list_options` does."""
    if not isinstance(system, str):
        raise TypeError(f"system: got {type(system).__name__}, expected a name such as 'tanet'")
    if system not in (known := list_models()):
        raise ValueError(f"system: got {system!r}, expected one of {', '.join(known)}")


def as_people_count(names: Iterable[str]) -> list[str]:
    """Sorted with the numbers in them as numbers: tanet18 before tanet101."""
    return sorted(
        names, key=lambda name: [(part.isdigit(), int(part) if part.isdigit() else part) for part in _parts(name)]
    )


def _parts(name: str) -> list[str]:
    return [part for part in re.split(r"(\d+)", name) if part]
