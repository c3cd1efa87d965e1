"""The four operators against the NumPy reference: interpreted Triton kernels and plain torch alike."""

from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import example, given
from torch import Tensor

import reference
from bench import peers as eager
from tam_triton import cpu, kernels, layout
from tests.strategies import Problem, problems
from tests.tolerance import assert_close

F32 = torch.float32
# TANet's stages at small channel counts, the sizes around a tile's edge, and every degenerate one.
SHAPES = [
    Problem(N=2, T=8, C=5, H=7, W=7, K=3),
    Problem(N=1, T=8, C=16, H=7, W=7, K=3),
    Problem(N=1, T=4, C=6, H=14, W=14, K=3),
    Problem(N=1, T=16, C=3, H=14, W=14, K=5),
    Problem(N=1, T=2, C=3, H=28, W=28, K=3),
    Problem(N=3, T=1, C=7, H=5, W=3, K=3),
    Problem(N=2, T=1, C=1, H=1, W=1, K=7),
    Problem(N=2, T=2, C=12, H=2, W=3, K=7),
    Problem(N=1, T=26, C=2, H=3, W=3, K=5),
    Problem(N=1, T=3, C=1, H=57, W=29, K=3),
    Problem(N=2, T=5, C=17, H=4, W=4, K=1),
    Problem(N=1, T=3, C=33, H=17, W=1, K=3),
]
each_backend = pytest.mark.parametrize("backend", [kernels, cpu], ids=["kernels", "cpu"])
each_layout = pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda p: f"N{p.N}T{p.T}C{p.C}P{p.H}x{p.W}K{p.K}")


def clips(x: Tensor, num_segments: int) -> np.ndarray:
    """`(N·T, C, H, W)` as the reference takes it."""
    return x.detach().double().unflatten(0, (-1, num_segments)).numpy()


def frames(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, *x.shape[2:])


def strides(x: Tensor) -> list[int]:
    """Those that matter: a dimension of one element may have any."""
    return [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1]


def check_against_reference(backend: ModuleType, problem: Problem) -> None:
    """Values of all four operators, the strides that the fakes promise, and dY in a layout of its own."""
    x, importance, kernel = problem.features(), problem.importance(), problem.kernel()
    dy = problem.features(salt=3, layout="channels_last" if problem.seed % 2 else "contiguous")
    d_squeezed = problem.tensor(*importance.shape, salt=4)
    x64, dy64 = clips(x, problem.T), clips(dy, problem.T)
    v64, theta64 = importance.double().numpy(), kernel.double().numpy()

    leaves = [t.clone().requires_grad_() for t in (x, importance, kernel)]
    plain_y = eager.excite_and_aggregate(*leaves)
    plain_dx, plain_dv, plain_dtheta = torch.autograd.grad(plain_y, leaves, dy)

    squeezed = backend.squeeze(x, problem.T)
    assert_close(squeezed, reference.squeeze(x64), eager.squeeze(x, problem.T))
    y = backend.aggregate(x, importance, kernel)
    assert_close(y, frames(reference.excite_and_aggregate(x64, v64, theta64)), plain_y)
    assert strides(y) == strides(layout.empty_result(x))

    dx64, dv64, dtheta64 = reference.excite_and_aggregate_backward(dy64, x64, v64, theta64)
    dv, dtheta = backend.weight_gradients(dy, x, importance, kernel)
    assert_close(dv, dv64, plain_dv)
    assert_close(dtheta, dtheta64, plain_dtheta)
    for channels_last in (False, True):
        dx = backend.input_gradient(dy, importance, kernel, None, channels_last)
        assert_close(dx, frames(dx64), plain_dx)
        assert strides(dx) == strides(layout.empty(dy, channels_last))
    folded = dx64 + reference.squeeze_backward(d_squeezed.double().numpy(), x64.shape)
    plain = plain_dx + (d_squeezed / (problem.H * problem.W)).transpose(1, 2).reshape(-1, problem.C, 1, 1)
    dx = backend.input_gradient(dy, importance, kernel, d_squeezed, layout.is_channels_last(x))
    assert_close(dx, frames(folded), plain)


@each_backend
@each_layout
@each_shape
def test_equal_the_reference(backend: ModuleType, memory: str, shape: Problem) -> None:
    check_against_reference(backend, Problem(**{**vars(shape), "layout": memory}))


@each_backend
@given(problem=problems())
@example(Problem(N=1, T=1, C=1, H=1, W=1, K=1, layout="sliced", dtype=torch.bfloat16, seed=1))
@example(Problem(N=2, T=3, C=16, H=7, W=7, K=3, layout="offset", dtype=torch.float16, seed=1))
def test_equal_the_reference_on_any_problem(backend: ModuleType, problem: Problem) -> None:
    check_against_reference(backend, problem)


@each_backend
@given(problem=problems(dtypes=(F32,), integers=True))
def test_backward_is_the_adjoint_of_forward_exactly(backend: ModuleType, problem: Problem) -> None:
    """⟨y, dy⟩ = ⟨x, dx⟩ = ⟨V, dV⟩ = ⟨Θ, dΘ⟩: y is linear in each, and sums of small integers are exact."""
    x, importance, kernel = problem.features(), problem.importance(), problem.kernel()
    dy = problem.features(salt=3)
    y = backend.aggregate(x, importance, kernel)
    dx = backend.input_gradient(dy, importance, kernel, None, layout.is_channels_last(x))
    dv, dtheta = backend.weight_gradients(dy, x, importance, kernel)
    product = (y.double() * dy).sum()
    for value, gradient in ((x, dx), (importance, dv), (kernel, dtheta)):
        assert (value.double() * gradient).sum() == product


@each_backend
@given(problem=problems(dtypes=(F32, torch.bfloat16)))
def test_identities(backend: ModuleType, problem: Problem) -> None:
    """TSN, TSM's shift both ways and a constant clip (paper section 3.4.1)."""
    x = problem.features()
    ones, zeros = torch.ones_like(problem.importance()), torch.zeros_like(problem.kernel())
    clip = x.unflatten(0, (-1, problem.T))
    half = problem.K // 2
    for shift in range(-half, half + 1):
        kernel = zeros.clone()
        kernel[..., half + shift] = 1
        y = backend.aggregate(x, ones, kernel).unflatten(0, (-1, problem.T))
        for t in range(problem.T):
            source = t + shift
            expected = clip[:, source] if 0 <= source < problem.T else torch.zeros_like(clip[:, t])
            assert torch.equal(y[:, t], expected), (shift, t)


@each_backend
@given(problem=problems(dtypes=(F32,)))
def test_nan_stays_in_its_clip_and_channel(backend: ModuleType, problem: Problem) -> None:
    x, importance, kernel = problem.features().clone(), problem.importance(), problem.kernel()
    dy = problem.features(salt=3)
    n, c = problem.N - 1, problem.C // 2
    poisoned = x.clone()
    poisoned.unflatten(0, (-1, problem.T))[n, :, c] = torch.nan
    clean = torch.ones(problem.N, problem.C, dtype=torch.bool)
    clean[n, c] = False
    pairs = [
        (backend.squeeze(poisoned, problem.T), backend.squeeze(x, problem.T)),
        *zip(
            backend.weight_gradients(dy, poisoned, importance, kernel),
            backend.weight_gradients(dy, x, importance, kernel),
            strict=True,
        ),
    ]
    y = backend.aggregate(poisoned, importance, kernel), backend.aggregate(x, importance, kernel)
    pairs.append(tuple(t.unflatten(0, (-1, problem.T)).transpose(1, 2) for t in y))
    for touched, untouched in pairs:
        assert touched[~clean].isnan().any()
        assert torch.equal(touched[clean], untouched[clean])


@each_backend
def test_expanded_gradient(backend: ModuleType) -> None:
    """`.sum().backward()` sends a gradient of stride 0."""
    problem = Problem(N=2, T=4, C=5, H=3, W=3, K=3, layout="channels_last")
    x, importance, kernel = problem.features(), problem.importance(), problem.kernel()
    ones = torch.ones_like(x)
    expanded = torch.ones(()).expand(x.shape)
    for a, b in zip(
        backend.weight_gradients(expanded, x, importance, kernel),
        backend.weight_gradients(ones, x, importance, kernel),
        strict=True,
    ):
        assert torch.equal(a, b)
    assert torch.equal(
        backend.input_gradient(expanded, importance, kernel, None, True),
        backend.input_gradient(ones, importance, kernel, None, True),
    )


@each_layout
def test_split_pixels_sum_alike(memory: str) -> None:
    """One channel of many pixels is squeezed in several parts."""
    problem = Problem(N=1, T=2, C=1, H=64, W=41, K=3, layout=memory)
    x = problem.features()
    assert_close(kernels.squeeze(x, 2), reference.squeeze(clips(x, 2)), eager.squeeze(x, 2))
