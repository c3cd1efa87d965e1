"""Parameters, MACs and activations of every system on every backbone, beside published figures; nothing is run.

Networks are built on torch's meta device and counted operator by operator as one clip passes. MACs are those of
convolutions, linears, products of matrices and this library's operators (K for each element of X), as in the figures
of the paper; counters that add BatchNorm give more. Activations are the elements of the results of the same, as fvcore
counts them (pycls: of convolutions alone). SlowFast has frames of its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import nn

from bench import report
from bench.machine import describe
from bench.options import check_least
from bench.published import PUBLISHED, Published, Setting
from tam_triton.nets import create_model, list_backbones, list_models
from tam_triton.nets.flops import Counts, count

Stage = Literal["res2", "res3", "res4", "res5"]

OF_THE_PAPER = ("resnet50", "resnext50_32x4d", "inception_v3", "mobilenet_v2", "shufflenet_v2_x1_0")


@dataclass(frozen=True)
class Cost:
    """What to count."""

    systems: tuple[str, ...] = ("*",)
    """Names of `list_models`, or patterns such as "tanet*"."""
    backbones: tuple[str, ...] = OF_THE_PAPER
    """Names of `list_backbones`, or patterns; "*" is all of torchvision's that are known."""
    stages: tuple[Stage, ...] = ()
    """Stages of a ResNet that get the module; all, if none is named."""
    frames: int = 8
    """T of a clip; SlowFast has its own."""
    pixels: int = 256
    """Frames are squares of this side."""
    num_classes: int = 400
    """Of the head."""
    out: Path | None = None
    """A JSON file for the results."""

    def __post_init__(self) -> None:
        check_least(self, frames=1, pixels=32, num_classes=1)
        for name, found in (("systems", chosen_systems), ("backbones", chosen_backbones)):
            patterns = getattr(self, name)
            if not patterns:
                raise ValueError(f"{name}: got none, expected at least one name or pattern")
            for pattern in patterns:
                if not found((pattern,)):
                    known = ", ".join(found(("*",)))
                    raise ValueError(f"{name}: got {pattern!r}, which no name matches, expected one of {known}")


@dataclass(frozen=True)
class Row:
    """One system on one backbone.

    Attributes:
        frames: of its clip.
        parameters: elements that are learned.
        counts: of one clip.
        published: to compare with; None where nothing is, or where other options were chosen.
        refusal: why there is no such network; None where there is one.
    """

    system: str
    backbone: str
    frames: int | None = None
    parameters: int | None = None
    counts: Counts | None = None
    published: Published | None = None
    refusal: str | None = None

    def __str__(self) -> str:
        start = f"{self.system:>17} {self.backbone:>18}"
        if self.counts is None or self.parameters is None:
            return f"{start}  refused: {self.refusal}"
        return (
            f"{start} {self.frames:>6} {self.parameters:>12,} {self.counts.macs / 1e9:>9.4f} "
            f"{self.counts.products / 1e9:>9.4f} {self.counts.aggregation / 1e9:>11.4f} "
            f"{self.counts.activations / 1e6:>13.2f} {self.beside}"
        ).rstrip()

    @property
    def beside(self) -> str:
        """What was published, the difference of each figure, and the source."""
        if self.published is None or self.counts is None or self.parameters is None:
            return ""
        known, share = self.published, self.published.of_macs(self.counts)
        figures = (
            f"{known.macs / 1e9:>7g} {share:>+z7.2%}" if known.macs and share is not None else f"{report.MISSING:>15}"
        )
        return (
            f"{known.parameters:>12,} {known.of_parameters(self.parameters):>10} {figures}  "
            f"{known.source}{known.remark}"
        )


HEADER = (
    f"{'system':>17} {'backbone':>18} {'frames':>6} {'parameters':>12} {'GMACs':>9} {'products':>9} "
    f"{'aggregation':>11} {'M activations':>13} {'published':>12} {'difference':>10} {'GMACs':>7} {'diff.':>7}  source"
)


def run(options: Cost) -> list[Row]:
    """Prints a table; a system that refuses a backbone, or a clip, is a line with the reason."""
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
    clip = f"{options.frames} × {options.pixels}² (SlowFast: frames of its own), {options.num_classes} classes"
    print(f"one clip of {clip}\n{HEADER}")
    rows = []
    for row in measure(options):
        print(row, flush=True)
        rows.append(row)
    print(
        "GMACs: products of matrices and the aggregation among them. TSM's shift and average pooling run as "
        "aggregations here;\nthe papers count none for them, nor is it in what is compared. difference: of a figure "
        "published in units, the units."
    )
    if options.out is not None:
        report.write_json(options.out, describe("cpu", torch.get_num_threads()), options, rows=rows)
    return rows


def measure(options: Cost) -> Iterator[Row]:
    """The rows, one after another."""
    for backbone in chosen_backbones(options.backbones):
        for system in chosen_systems(options.systems):
            yield row(system, backbone, options)


def row(system: str, backbone: str, options: Cost) -> Row:
    """One system on one backbone, or why there is none: the words of whoever refused it, torch for frames too small."""
    try:
        network = build(system, backbone, options)
        frames = int(network.num_segments)  # type: ignore[arg-type]
        counts = of_network(network, frames, options.pixels)
    except NotImplementedError:  # a RuntimeError too, but of what meta lacks: no refusal
        raise
    except (ValueError, RuntimeError) as error:
        return Row(system, backbone, refusal=" ".join(str(error).split()))
    stages = tuple(sorted(set(options.stages))) if set(options.stages) < set(get_args(Stage)) else ()
    setting = Setting(system, frames, options.num_classes, stages)
    return Row(
        system=system,
        backbone=backbone,
        frames=frames,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        counts=counts,
        published=PUBLISHED.get(setting) if (backbone, options.pixels) == ("resnet50", 256) else None,
    )


def build(system: str, backbone: str, options: Cost) -> nn.Module:
    """The network in evaluation, without values; raises ValueError as `create_model` does."""
    frames = None if system.startswith("slowfast") else options.frames

    def create() -> nn.Module:
        return create_model(system, backbone, options.num_classes, frames, stages=options.stages or None).eval()

    try:
        with torch.device("meta"):
            return create()
    except NotImplementedError:  # torchvision's RegNets compute their widths with tensors, and read these
        return create().to("meta")


@torch.no_grad()
def of_network(network: nn.Module, frames: int, pixels: int) -> Counts:
    """What one clip costs a network on meta."""
    clip = torch.empty(1, frames, 3, pixels, pixels, device="meta")
    return count(lambda: network(clip))


def chosen_systems(patterns: Sequence[str]) -> list[str]:
    """The systems that a name or pattern matches."""
    return [name for name in list_models() if any(fnmatchcase(name, pattern) for pattern in patterns)]


def chosen_backbones(patterns: Sequence[str]) -> list[str]:
    """The backbones that a name or pattern matches, in the order of the patterns; timm's are named as such."""
    return list(dict.fromkeys(name for pattern in patterns for name in list_backbones(pattern)))
