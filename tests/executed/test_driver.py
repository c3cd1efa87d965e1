"""What the stand-in for a GPU promises to those that execute kernels on it."""

import re
from collections.abc import Sequence
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from triton import knobs

from bench.ptx.driver import TARGETS, Argument, device
from bench.ptx.memory import Counts, Region
from bench.ptx.program import parse
from tam_triton import functional
from tam_triton.kernels import launch

pytestmark = pytest.mark.executed

T = 2
ADDED = 2  # parameters by Triton: two kinds of scratch memory
HERE, OTHER = torch.device("cuda", 0), torch.device("cuda", 1)


def squeezed(x: Tensor) -> Tensor:
    return x.double().unflatten(0, (-1, T)).mean((-2, -1)).transpose(1, 2)


def test_tensors_are_where_torch_would_put_them() -> None:
    host = torch.ones(4, 3)
    with device("sm_90"):
        made = torch.randn(4, 3, device="cuda", requires_grad=True)
        layer = nn.Linear(3, 2).cuda(1)
        moved, fresh = host.to("cuda:1"), torch.zeros(2)
        assert (made.device, moved.device, fresh.device, host.device) == (HERE, OTHER, fresh.device, fresh.device)
        assert fresh.device.type == "cpu"
        assert {one.device for one in (layer.weight, layer(moved), moved[:, 1:].mT, torch.empty_like(moved))} == {OTHER}
        (made * made).sum().backward()
        assert made.grad is not None
        assert made.grad.device == made.detach().device == HERE
        with torch.cuda.device(1):
            assert torch.empty(1, device="cuda").device == OTHER
        assert {host.cuda().device, host.to("cuda").device} == {HERE}
        assert {type(moved), type(layer.weight)} == {Tensor, nn.Parameter}
        with pytest.raises(RuntimeError, match="got cuda:2, expected below 2"):
            torch.empty(1, device="cuda:2")
    assert moved.device.type == made.device.type == "cpu"
    assert torch.equal(made.grad, 2 * made)
    moved.zero_()
    assert host.min() == 1, "a copy, as from one memory to another"


@pytest.mark.parametrize("target", TARGETS)
def test_the_library_launches_on_the_tensors_device(target: str) -> None:
    x = torch.randn(2 * T, 8, 7, 7)
    with device(target) as launches:
        there = x.to(OTHER)
        assert (functional.choose(None, there), functional.choose(None, x)) == ("triton", "torch")
        results = [functional.squeeze(there, T), torch.ops.tam_triton.squeeze(there, T)]
        assert {one.device for one in results} == {OTHER}
        count = len(launches)
        functional.squeeze(there, T, impl="torch"), functional.squeeze(x, T)
        assert len(launches) == count == 2
    assert {(one.kernel, one.device) for one in launches} == {("squeeze_kernel", OTHER)}
    assert all(f".target {target}" in one.ptx for one in launches)
    for result in results:
        torch.testing.assert_close(result.double(), squeezed(x), rtol=0, atol=1e-6)


def test_a_launch_on_another_device_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "on_device", lambda _: nullcontext())
    with device("sm_90"):
        x = torch.randn(2 * T, 8, 7, 7, device=OTHER)
        with pytest.raises(RuntimeError, match="x_ptr: got a tensor on cuda:1, launched on cuda:0"):
            functional.squeeze(x, T)


def test_a_kernel_given_host_memory_is_an_error() -> None:
    with device("sm_90"):
        x, theta = torch.randn(2 * T, 8, 7, 7, device=HERE), torch.randn(2, 8, 3)
        with pytest.raises(ValueError, match=r"kernel: got device cpu, expected x's cuda:0"):
            functional.aggregate(x, None, theta, num_segments=T)
        with pytest.raises(RuntimeError, match="kernel_ptr: got a tensor on cpu"):
            torch.ops.tam_triton.aggregate(x, None, theta, T)


def widths(ptx: str) -> set[str]:
    return set(re.findall(r"ld\.global(?:\.\w+)*?((?:\.v\d)?\.b\d+)", ptx))


def test_pointers_are_specialized_by_their_own_alignment() -> None:
    """A tensor that starts one element later has other code, and the right values."""
    values = torch.randn(2 * T * 16 * 16 * 16)
    with device("sm_90") as launches:
        aligned = values.to(HERE)
        late = torch.zeros(values.numel() + 1, device=HERE)[1:]
        late.copy_(aligned)
        results = [functional.squeeze(flat.view(-1, 16, 16, 16), T) for flat in (aligned, late)]
    codes = [one.ptx for one in launches if one.kernel == "squeeze_kernel"]
    assert [widths(ptx) for ptx in codes] == [{".v4.b32"}, {".b32"}]
    for result in results:
        torch.testing.assert_close(result.double(), squeezed(values.view(-1, 16, 16, 16)), rtol=0, atol=1e-6)


def test_what_is_handed_on() -> None:
    """Numbers and memory as the PTX takes them: no constants; views to the last element that their strides reach."""
    seen: list[tuple[Sequence[Argument], int]] = []

    def record(ptx: str, grid: tuple[int, int, int], arguments: Sequence[Argument], shared: int) -> Counts:
        seen.append((arguments, shared))
        return Counts()

    with device("sm_90", record) as launches:
        x = torch.zeros(2 * T, 8, 48, 48, device=HERE)  # two warps, which meet in shared memory
        norm = [torch.ones(9, device=HERE)[1:] for _ in range(4)]
        torch.ops.tam_triton.activated_squeeze(x, norm, 1e-5, T)
    (arguments, shared), _ = seen  # then both parts of the pixels are added up
    assert (launches[0].grid, launches[0].num_warps) == ((64, 1, 1), 2)
    assert shared > 0
    assert len(arguments) == len(parse(launches[0].ptx).parameters) - ADDED
    assert 1e-5 in arguments
    regions = {one.name: one for one in arguments if isinstance(one, Region)}
    assert list(regions) == ["x_ptr", "squeezed_ptr", "norm.0", "norm.1", "norm.2", "norm.3"]
    assert [regions[name].data.size for name in ("x_ptr", "squeezed_ptr", "norm.0")] == [4 * 73728, 4 * 64, 4 * 8]
    assert regions["norm.0"].address == norm[0].data_ptr()
    regions["norm.0"].data[:] = 0
    assert norm[0].sum() == 0


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(ValueError, match="target: got 'sm_70', expected one of sm_80, sm_90, sm_100, sm_120"),
        device("sm_70"),
    ):
        pass
    monkeypatch.setattr(knobs.runtime, "interpret", True)
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET is set"), device("sm_90"):
        pass
