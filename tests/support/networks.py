"""Small modules with random weights and statistics, for tests of what torch does with them."""

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from bench.networks import EagerTAM
from tam_triton import TAM
from tam_triton.nets import TANet
from tam_triton.nets.small_resnet import SmallResNet

FRAMES, CHANNELS, CLASSES = 3, 8, 6

Module = TypeVar("Module", bound=nn.Module)


def small_tam(impl: str, training: bool = False) -> TAM:
    """C = 8, T = 3, K = 3."""
    return randomised(TAM(CHANNELS, FRAMES, impl=impl)).train(training)


def small_tanet(impl: str, training: bool = False, stages: Sequence[str] = ("res3", "res5")) -> TANet:
    """Four basic blocks, a TAM in those of the stages; no dropout, so that two runs agree."""
    network = TANet(SmallResNet(CLASSES), FRAMES, dropout=0.0, stages=stages, impl=impl)
    return randomised(network).train(training)


def randomised(module: Module) -> Module:
    """Each weight and statistic away from its initial value, by the same numbers every time."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator)
            weight = noise - 0.5 if tensor.dim() == 1 else (2 * noise - 1) * (6 / tensor[0].numel()) ** 0.5
            tensor.copy_(1 + weight if name.endswith(("running_var", "bn1.weight", "bn2.weight")) else weight)
    return module


def eager_twin(module: Module) -> Module:
    """A copy with every TAM in the usual formulation."""
    twin = copy.deepcopy(module)
    for part in twin.modules():
        if isinstance(part, TAM):
            part.__class__ = EagerTAM
    return twin


def exact_twin(module: Module) -> Module:
    """The same in float64."""
    return eager_twin(module).double()


def feature_maps(clips: int, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    """What `small_tam` takes: `(N·T, C, 3, 2)`."""
    return normal(clips * FRAMES, CHANNELS, 3, 2).contiguous(memory_format=memory_format)


def videos(clips: int) -> Tensor:
    """What `small_tanet` takes: `(N, T, 3, 32, 32)`.

    At 16 × 16 the last stage would see one pixel, where torch 2.14's gradient of a strided 3 × 3 convolution's weight
    in bfloat16 on the CPU depends on uninitialized memory.
    """
    return normal(clips, FRAMES, 3, 32, 32)


def normal(*shape: int) -> Tensor:
    """The same numbers every time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))
