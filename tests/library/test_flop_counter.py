"""torch's own FLOP counter over the library's networks, with nothing imported for it."""

import os
import subprocess
import sys
from collections import Counter
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import tam_triton
from tam_triton import kernels
from tam_triton.nets import tanet50
from tests.support.networks import small_tanet, videos


def macs(network: nn.Module, x: Tensor, backward: bool = False) -> Counter[str]:
    """MACs by the operator's namespace; with gradients as the network is in training or not."""
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(network.training):
        y = network(x)
        if backward:
            y.sum().backward()
    sums: Counter[str] = Counter()
    for packet, flops in counter.get_flop_counts()["Global"].items():
        sums[packet._qualified_op_name.partition("::")[0].removesuffix("_plain")] += flops // 2
    return sums


@pytest.mark.parametrize("training", [False, True])
def test_tanet_50_at_the_papers_size(training: bool) -> None:
    with torch.device("meta"):
        network, x = tanet50().train(training), torch.empty(1, 8, 3, 256, 256)
    counted = macs(network, x)
    assert round(counted.total() / 1e9, 2) == 42.78
    if training:  # in evaluation one operator stands for TAM's Linears and convolutions too
        assert {name: round(number / 1e9, 2) for name, number in counted.items()} == {"aten": 42.72, "tam_triton": 0.06}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("backward", [False, True])
def test_both_implementations_count_the_same(training: bool, backward: bool) -> None:
    counted = [macs(small_tanet(impl, training), videos(2), backward and training) for impl in ("torch", "triton")]
    assert counted[0] == counted[1]
    assert counted[0]["tam_triton"] > 0


@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_counting_changes_no_bit(impl: str) -> None:
    """Nor, then, what computes: `impl` is an explicit request.

    In evaluation: in training a TAM calls its layers for the counter, which hooks all modules, else kernels.
    """

    def results() -> list[Tensor]:
        torch.manual_seed(0)
        module, x = tam_triton.TAM(16, 4, impl=impl).eval(), torch.randn(8, 16, 5, 5, requires_grad=True)
        y = module(x)
        y.square().sum().backward()
        return [y, *(one.grad for one in (x, *module.parameters()) if one.grad is not None)]

    with FlopCounterMode(display=False):
        counted = results()
    assert all(torch.equal(one, other) for one, other in zip(counted, results(), strict=True))


@pytest.mark.parametrize(("impl", "launches"), [("torch", False), ("triton", True)])
def test_a_counter_does_not_choose_what_computes(impl: str, launches: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = mock.Mock(wraps=kernels.aggregate)
    monkeypatch.setattr(kernels, "aggregate", launcher)
    with FlopCounterMode(display=False):
        tam_triton.aggregate(torch.ones(8, 2, 3, 3), torch.ones(2, 2, 4), torch.ones(2, 2, 3), impl=impl)
    assert launcher.called == launches


@pytest.mark.parametrize("first", ["torch.utils.flop_counter", "tam_triton"])
@pytest.mark.parametrize("interpret", ["0", "1"])
@pytest.mark.parametrize("function", ["tam_triton.aggregate", "torch.ops.tam_triton.aggregate"])
def test_nothing_else_is_imported(first: str, interpret: str, function: str) -> None:
    """In whatever order, and importing the library does not import Triton for it."""
    program = f"""
import {first}, sys
import tam_triton, torch
from torch.utils.flop_counter import FlopCounterMode
x, v, theta = torch.ones(8, 2, 3, 3), torch.ones(2, 2, 4), torch.ones(2, 2, 3)
with FlopCounterMode(display=False) as counter:
    {function}(x, v, theta)
print(counter.get_total_flops())
"""
    environment = os.environ | {"TRITON_INTERPRET": interpret}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == 2 * 3 * 8 * 2 * 9
