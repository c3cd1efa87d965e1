"""TA-Blocks on torchvision's residual blocks (paper §3.4, figure 2)."""

from collections.abc import Collection, Sequence
from typing import TypeVar

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from tam_triton.temporal.tam import TAM

# The paper's names of the residual stages and torchvision's attributes for them.
STAGES = {"res2": "layer1", "res3": "layer2", "res4": "layer3", "res5": "layer4"}

Network = TypeVar("Network", bound=nn.Module)


class TABasicBlock(nn.Module):
    """A basic residual block with a TAM after its first conv-BN-ReLU.

    `block`'s submodules are taken over under their own names, so the state dict is the block's plus `tam.*`.
    A basic block carries its stride in `conv1`: the TAM runs at the resolution after it.

    Args:
        block: torchvision's `BasicBlock`.
        tam: a TAM of `block.conv1.out_channels` channels.

    Raises:
        TypeError: `block` or `tam` is something else.
        ValueError: `tam` has another number of channels.
    """

    def __init__(self, block: BasicBlock, tam: TAM) -> None:
        super().__init__()
        _check_block(block, tam, BasicBlock)
        self.conv1, self.bn1 = block.conv1, block.bn1
        self.conv2, self.bn2 = block.conv2, block.bn2
        self.relu = block.relu
        self.downsample = block.downsample
        self.stride = block.stride
        self.tam = tam
        self.training = block.training

    def forward(self, x: Tensor) -> Tensor:
        """(N·T, C_in, H, W) → (N·T, C, H/stride, W/stride)."""
        out = self.tam.activated(self.conv1(x), self.bn1, self.relu)
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class TABottleneck(nn.Module):
    """A bottleneck block, plain, wide or ResNeXt, with a TAM after its first conv-BN-ReLU.

    `block`'s submodules are taken over under their own names, so the state dict is the block's plus `tam.*`.
    A bottleneck carries its stride in `conv2`: the TAM runs at the resolution before it.

    Args:
        block: torchvision's `Bottleneck`.
        tam: a TAM of `block.conv1.out_channels` channels.

    Raises:
        TypeError: `block` or `tam` is something else.
        ValueError: `tam` has another number of channels.
    """

    def __init__(self, block: Bottleneck, tam: TAM) -> None:
        super().__init__()
        _check_block(block, tam, Bottleneck)
        self.conv1, self.bn1 = block.conv1, block.bn1
        self.conv2, self.bn2 = block.conv2, block.bn2
        self.conv3, self.bn3 = block.conv3, block.bn3
        self.relu = block.relu
        self.downsample = block.downsample
        self.stride = block.stride
        self.tam = tam
        self.training = block.training

    def forward(self, x: Tensor) -> Tensor:
        """(N·T, C_in, H, W) → (N·T, C, H/stride, W/stride)."""
        out = self.tam.activated(self.conv1(x), self.bn1, self.relu)
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


def insert_tam(
    resnet: Network,
    num_segments: int,
    *,
    stages: Sequence[str] = tuple(STAGES),
    kernel_size: int = 3,
    alpha: int = 2,
    beta: int = 4,
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
        impl: the implementation that every TAM is tied to; None chooses by device.

    Returns:
        `resnet` itself.

    Raises:
        TypeError: `resnet` lacks a stage, a block is neither `BasicBlock` nor `Bottleneck`, `stages` is no sequence,
            or TAM refuses its arguments.
        ValueError: `stages` is empty, unknown or repeated; a block already has a TAM; or TAM refuses its arguments.
    """
    new = {}
    for layer, stage in _stages(resnet, stages).items():
        blocks = [_ta_block(block, num_segments, kernel_size, alpha, beta, impl) for block in stage]
        # A Sequential of its own: whoever shares the old one keeps plain blocks.
        new[layer] = nn.Sequential(*blocks)
        new[layer].training = stage.training
    for layer, stage in new.items():
        setattr(resnet, layer, stage)
    return resnet


def _stages(resnet: nn.Module, names: Sequence[str]) -> dict[str, nn.Sequential]:
    """The chosen stages in the network's order, so that a seed gives the same TAMs whatever the order of `names`."""
    if isinstance(names, str):
        raise TypeError(f"stages: got the string {names!r}, expected a sequence such as ('res4', 'res5')")
    if not isinstance(names, Collection) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"stages: got {names!r}, expected a sequence of names such as ('res4', 'res5')")
    if not names or len(set(names)) != len(names) or not set(names) <= set(STAGES):
        raise ValueError(f"stages: got {tuple(names)}, expected one or more different names out of {tuple(STAGES)}")
    chosen = {}
    for layer in (layer for name, layer in STAGES.items() if name in names):
        stage = getattr(resnet, layer, None)
        if not isinstance(stage, nn.Sequential):
            raise TypeError(f"resnet: got {type(resnet).__name__} without a Sequential {layer}, expected a ResNet")
        chosen[layer] = stage
    return chosen


def _check_block(block: nn.Module, tam: TAM, expected: type[BasicBlock] | type[Bottleneck]) -> None:
    if not isinstance(block, expected):
        raise TypeError(f"block: got {type(block).__name__}, expected torchvision's {expected.__name__}")
    if not isinstance(tam, TAM):
        raise TypeError(f"tam: got {type(tam).__name__}, expected a TAM")
    if tam.channels != block.conv1.out_channels:
        raise ValueError(
            f"tam: got one of {tam.channels} channels, expected block.conv1.out_channels = {block.conv1.out_channels}"
        )


def _ta_block(
    block: nn.Module, num_segments: int, kernel_size: int, alpha: int, beta: int, impl: str | None
) -> TABasicBlock | TABottleneck:
    if isinstance(block, TABasicBlock | TABottleneck):
        raise ValueError("resnet: got TA-Blocks in the chosen stages, expected plain residual blocks")
    if not isinstance(block, BasicBlock | Bottleneck):
        raise TypeError(f"resnet: got a {type(block).__name__}, expected torchvision's BasicBlock or Bottleneck")
    weight = block.conv1.weight
    tam = TAM(block.conv1.out_channels, num_segments, kernel_size, alpha, beta, impl=impl)
    tam.to(device=weight.device, dtype=weight.dtype).train(block.training)
    return TABottleneck(block, tam) if isinstance(block, Bottleneck) else TABasicBlock(block, tam)
