"""TA-Blocks in the stages of a ResNet (paper §3.4)."""

from collections.abc import Sequence
from typing import Any, TypeVar

from torch import nn

from tam_triton.checks import check_clip_length
from tam_triton.nets.places import STAGES, check_stages
from tam_triton.nets.ta_block import TABlock, check_block
from tam_triton.temporal import TAM

Network = TypeVar("Network", bound=nn.Module)


def insert_tam(
    resnet: Network,
    num_segments: int,
    *,
    stages: Sequence[str] = tuple(STAGES),
    kernel_size: int = 3,
    alpha: int = 2,
    beta: int = 4,
    local_kernel_size: int = 3,
    impl: str | None = None,
) -> Network:
    """Turn every residual block of the chosen stages into a TA-Block, in place.

    All weights stay as they are. Each new TAM is on the device, in the dtype and in the mode (training or
    evaluation) of its block. Nothing is changed if an error is raised.

    Args:
        resnet: a network with torchvision's attributes `layer1` … `layer4` of `BasicBlock`s or `Bottleneck`s.
        num_segments: frames of a clip, T. The network then takes (N·T, C, H, W) and its TAMs take T for granted.
        stages: any of "res2" (`layer1`) … "res5" (`layer4`), in any order.
        kernel_size: taps of the adaptive kernel, K; odd.
        alpha: width of the global branch, in multiples of T.
        beta: reduction of the channels in the local branch.
        local_kernel_size: taps of the local branch's first Conv1d; odd.
        impl: the implementation that every TAM is tied to; None chooses by device.

    Returns:
        `resnet` itself.

    Raises:
        TypeError: `resnet` lacks a stage, a block is neither `BasicBlock` nor `Bottleneck` or has hooks or a forward of
            its own, `stages` is no sequence, or TAM refuses its arguments.
        ValueError: `stages` is empty, unknown or repeated; a block already has a TAM; `resnet` is for clips of another
            T; or TAM refuses its arguments.
    """
    options = {
        "kernel_size": kernel_size,
        "alpha": alpha,
        "beta": beta,
        "local_kernel_size": local_kernel_size,
        "impl": impl,
    }
    new = {}
    for layer, stage in _stages(resnet, stages).items():
        blocks = [_ta_block(block, num_segments, options) for block in stage]
        # A Sequential of its own: whoever shares the old one keeps plain blocks.
        new[layer] = nn.Sequential(*blocks)
        new[layer].training = stage.training
    check_clip_length(resnet, num_segments)
    for layer, stage in new.items():
        setattr(resnet, layer, stage)
    return resnet


def _stages(resnet: nn.Module, names: Sequence[str]) -> dict[str, nn.Sequential]:
    chosen = {}
    for layer in (STAGES[name] for name in check_stages(names)):
        stage = getattr(resnet, layer, None)
        if not isinstance(stage, nn.Sequential):
            raise TypeError(f"resnet: got {type(resnet).__name__} without a Sequential {layer}, expected a ResNet")
        chosen[layer] = stage
    return chosen


def _ta_block(block: nn.Module, num_segments: int, options: dict[str, Any]) -> TABlock:
    if isinstance(block, TABlock):
        raise ValueError("resnet: got TA-Blocks in the chosen stages, expected plain residual blocks")
    residual = check_block("resnet", block)
    weight = residual.conv1.weight
    tam = TAM(residual.conv1.out_channels, num_segments, **options)
    tam.to(device=weight.device, dtype=weight.dtype).train(residual.training)
    return TABlock(residual, tam)
