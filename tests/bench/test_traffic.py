"""Counted traffic of the operators against the floor, and the counter against kernels that are deliberately worse."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from bench import traffic
from bench.interpreted import AddressError, counting
from bench.shapes import DTYPES, LAYOUTS, tanet50
from tam_triton import aggregate, kernels
from tam_triton.kernels import launch
from tam_triton.temporal import TemporalShift

T, K = 8, 3
EXCESS = 1.05
SIZES = sorted({shape.size for shape in tanet50()})
AGGREGATE = kernels.aggregate
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


def features(size: int, layout: str, channels: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(T, channels, size, size, dtype=dtype).contiguous(memory_format=LAYOUTS[layout])


def check_floor(x: Tensor) -> None:
    """3 passes forward and 4 backward, and everything else that moves in the excess."""
    forward, backward = traffic.forward_and_backward(x, T, K)
    for direction, launches in (("forward", forward), ("backward", backward)):
        counted = traffic.passes(launches, x)
        ideal = traffic.IDEAL[direction]
        assert ideal <= counted <= EXCESS * ideal, (direction, traffic.by_kernel(launches, x))


@each_layout
@pytest.mark.parametrize("size", SIZES)
def test_at_the_floor_at_every_stage(size: int, layout: str) -> None:
    check_floor(features(size, layout))


@each_layout
@pytest.mark.parametrize("size", SIZES[:2])
def test_at_the_floor_in_bfloat16(size: int, layout: str) -> None:
    """Where partial sums in float32 weigh most."""
    check_floor(features(size, layout, channels=16, dtype=torch.bfloat16))


@each_layout
@pytest.mark.parametrize(
    ("size", "channels", "dtype"),
    [(56, 4, torch.float32), (28, 4, torch.float32), (14, 16, torch.float32), (56, 16, torch.bfloat16)],
)
def test_at_the_floor_behind_batch_norm(size: int, channels: int, dtype: torch.dtype, layout: str) -> None:
    """4 passes forward and 5 backward: A is not in memory, nor is its gradient."""
    x = features(size, layout, channels, dtype)
    total = 0.0
    ideals = traffic.IDEAL_BEHIND_NORM.values()
    for launches, ideal in zip(traffic.behind_norm(x, T, K), ideals, strict=True):
        counted = traffic.passes(launches, x)
        total += counted
        assert ideal <= counted <= EXCESS * ideal, traffic.by_kernel(launches, x)
    assert total <= 9.3


@each_layout
@pytest.mark.parametrize("form", ["shift", "filter", "reversed"])
def test_other_forms_at_the_floor(form: str, layout: str) -> None:
    """2 passes forward; backward 2 of a fixed shift, 4 where there are weights to learn."""
    x = features(28, layout, channels=8).requires_grad_()
    v, theta = torch.rand(1, 8, T), torch.rand(1, 8, K)
    forms: dict[str, Callable[[], Tensor]] = {
        "shift": lambda: TemporalShift(8, T, impl="triton")(x),
        "filter": lambda: aggregate(x, None, theta[0].requires_grad_(), num_segments=T, impl="triton"),
        "reversed": lambda: aggregate(x, v.requires_grad_(), theta.requires_grad_(), excitation="after", impl="triton"),
    }
    with mock.patch.object(launch, "ASSUMED", launch.Device(1, 32)), counting() as forward:
        y = forms[form]()
    dy = torch.zeros_like(y)
    with mock.patch.object(launch, "ASSUMED", launch.Device(1, 32)), counting() as backward:
        torch.autograd.backward(y, dy)
    for launches, ideal in ((forward, 2), (backward, 2 if form == "shift" else 4)):
        assert ideal <= traffic.passes(launches, x) <= EXCESS * ideal, traffic.by_kernel(launches, x)


@triton.jit
def aggregate_twice_kernel(x_ptr, importance_ptr, kernel_ptr, y_ptr, C, P, T: tl.constexpr, BLOCK: tl.constexpr):
    """One clip, K = 3, contiguous: reads each frame for its own output and again for its two neighbours'."""
    q = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = q < C * P
    c = q // P
    for t in range(T):
        y = tl.zeros([BLOCK], tl.float32)
        for k in tl.static_range(3):
            s = t + k - 1
            present = inside & (s >= 0) & (s < T)
            v = tl.load(importance_ptr + c * T + s, mask=present, other=0.0)
            y += (
                tl.load(kernel_ptr + c * 3 + k, mask=inside, other=0.0)
                * v
                * tl.load(x_ptr + s * C * P + q, mask=present, other=0.0)
            )
        tl.store(y_ptr + t * C * P + q, y, mask=inside)


def aggregate_twice(x: Tensor, importance: Tensor, kernel: Tensor, *form: Any) -> Tensor:
    y = torch.empty_like(x)
    C, P = x.shape[1], x.shape[2] * x.shape[3]
    aggregate_twice_kernel[(triton.cdiv(C * P, 128),)](x, importance, kernel, y, C, P, T=T, BLOCK=128)
    return y


def aggregate_with_a_copy(x: Tensor, *weights: Any) -> Tensor:
    return AGGREGATE(x.clone(), *weights)


@pytest.mark.parametrize("worse", [aggregate_twice, aggregate_with_a_copy])
def test_another_read_of_x_is_rejected(worse: Callable[..., Any]) -> None:
    x = features(14, "nchw")
    check_floor(x)
    with mock.patch.object(kernels, "aggregate", worse), pytest.raises(AssertionError, match="forward"):
        check_floor(x)


@triton.jit
def double_kernel(x_ptr, y_ptr, size, BLOCK: tl.constexpr, MASKED: tl.constexpr):
    q = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + q, mask=q < size, other=0.0)
    if MASKED:
        tl.store(y_ptr + q, 2 * x, mask=q < size)
    else:
        tl.store(y_ptr + q, 2 * x)


def test_bytes_are_those_of_active_lanes() -> None:
    x = torch.arange(100, dtype=torch.float32)
    y = torch.zeros(100)
    with counting() as launches:
        double_kernel[(4,)](x, y, 100, BLOCK=32, MASKED=True)
    assert torch.equal(y, 2 * x)
    (launch,) = launches
    assert launch.kernel == "double_kernel"
    assert (launch.tensors["x_ptr"].loaded, launch.tensors["x_ptr"].stored) == (400, 0)
    assert (launch.tensors["y_ptr"].loaded, launch.tensors["y_ptr"].stored) == (0, 400)


def test_a_missing_mask_is_caught_before_it_writes() -> None:
    guarded = torch.full((128,), 7.0)
    x = torch.ones(100)
    with counting(), pytest.raises(AddressError, match=r"double_kernel: 28 of 32 addresses stored .* y_ptr .* 400"):
        double_kernel[(4,)](x, guarded[:100], 100, BLOCK=32, MASKED=False)
    assert torch.equal(guarded, torch.tensor([2.0] * 96 + [7.0] * 32))


def test_operators_of_torch_count_but_views_do_not() -> None:
    x = torch.ones(10, 10)
    with counting() as launches:
        y = x.t().expand(10, 10)[1:]
        y.contiguous()
    assert [launch.kernel for launch in launches] == ["torch clone"]
    assert sum(moved.loaded + moved.stored for moved in launches[0].tensors.values()) >= 2 * 90 * 4


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_shared_addresses_count_once_an_access(dtype: torch.dtype) -> None:
    """Θ of one channel is asked for by every lane, and comes once a program."""
    x = features(14, "nchw", channels=1, dtype=dtype)
    with mock.patch.object(launch, "ASSUMED", launch.Device(1, 32)), counting() as launches:
        kernels.aggregate(x, x.new_zeros(1, 1, T), x.new_zeros(1, 1, K))
    (tensors,) = [each.tensors for each in launches if each.kernel == "banded_kernel"]
    assert tensors["kernel_ptr"].loaded_once == K * dtype.itemsize
    assert tensors["x_ptr"].loaded == tensors["x_ptr"].loaded_once == x.nbytes
    assert tensors["y_ptr"].stored == x.nbytes
