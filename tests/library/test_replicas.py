"""Replicas of a network, as nn.DataParallel makes them on every GPU, here on the CPU."""

from typing import Any

import pytest
import torch
from torch import nn

from tam_triton.nets import create_model
from tam_triton.nets.recompute import recompute
from tam_triton.nets.small_resnet import SmallResNet
from tests.support.networks import CLASSES, FRAMES, normal, small_tanet, videos


def replica_of(network: nn.Module, scale: float) -> Any:
    """As `torch.nn.parallel.replicate`; with weights of its own, that it be seen whose are used."""
    replicas: dict[nn.Module, Any] = {}
    module: Any
    for module in network.modules():
        replicas[module] = module._replicate_for_data_parallel()
        replicas[module]._former_parameters = {}
    for module, replica in replicas.items():
        for name, child in module.named_children():
            setattr(replica, name, replicas[child])
        for name, parameter in module._parameters.items():
            if parameter is None:
                replica._parameters[name] = None
            else:
                setattr(replica, name, parameter * scale)
        for name, buffer in module.named_buffers(recurse=False):
            setattr(replica, name, buffer.clone())
    return replicas[network]


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_a_replica_computes_with_its_own_weights(impl: str, recomputed: bool) -> None:
    block, scaled = (small_tanet(impl, True).get_submodule("layer1.0") for _ in range(2))
    with torch.no_grad():
        for parameter in scaled.parameters():
            parameter.mul_(1.5)
    recompute([block], recomputed)
    statistics = [buffer.clone() for buffer in block.buffers()]
    replica, x = replica_of(block, 1.5), normal(FRAMES, 16, 2, 2)
    y, expected = replica(x), scaled(x)
    assert torch.equal(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    for parameter, other in zip(block.parameters(), scaled.parameters(), strict=True):
        assert other.grad is not None
        torch.testing.assert_close(parameter.grad, 1.5 * other.grad)
    for buffer, before in zip(block.buffers(), statistics, strict=True):
        assert torch.equal(buffer, before)
    recompute([block], False)
    assert not {"forward", "_replicate_for_data_parallel"} & set(vars(block))


def test_a_hook_is_not_replicated() -> None:
    network = create_model("tsm", SmallResNet(CLASSES), None, FRAMES)
    with pytest.raises(RuntimeError, match=r"nn\.DataParallel does not replicate"):
        replica_of(network, 1.0)(videos(1))
