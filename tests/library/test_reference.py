"""The reference against torch's own operators and autograd, finite differences, and the identities of the method."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from torch import Tensor, nn
from torch.nn import functional

import reference
from reference.arrays import Array

# N, T, C, H, W, K
SHAPES = [(2, 8, 8, 3, 3, 3), (2, 1, 5, 1, 1, 3), (1, 4, 6, 7, 7, 5), (3, 2, 12, 2, 1, 7), (1, 16, 4, 2, 3, 3)]


@dataclass
class Case:
    """A function of the reference, the same one in torch, and the arguments both are differentiated by."""

    forward: Callable[..., Array]
    backward: Callable[..., tuple[Array, ...]]
    torch: Callable[..., Tensor]
    arguments: list[Array]


def draw(shape: tuple[int, ...], seed: int = 0) -> Array:
    """Return normal values that cannot be written to, so that a function that did would fail its test."""
    values = np.random.default_rng([seed, *shape]).standard_normal(shape)
    values.flags.writeable = False
    return values


def assert_close(actual: Array, expected: Array, error: float = 1e-13) -> None:
    """Compare to within `error` of the largest value; the default is some hundreds of roundings in float64."""
    assert actual.dtype == np.float64
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=error * max(1, np.abs(expected).max()))


def central_differences(loss: Callable[[Array], float], at: Array, step: float = 1e-5) -> Array:
    gradient = np.empty_like(at)
    for index in np.ndindex(at.shape):
        offset = np.zeros_like(at)
        offset[index] = step
        gradient[index] = (loss(at + offset) - loss(at - offset)) / (2 * step)
    return gradient


def check(case: Case) -> None:
    leaves = [torch.tensor(argument, requires_grad=True) for argument in case.arguments]
    expected = case.torch(*leaves)
    actual = case.forward(*case.arguments)
    assert_close(actual, expected.detach().numpy())
    dy = draw(actual.shape, seed=1)
    gradients = case.backward(dy, *case.arguments)
    by_autograd = torch.autograd.grad(expected, leaves, torch.tensor(dy))
    for i, (gradient, autograd) in enumerate(zip(gradients, by_autograd, strict=True)):
        assert_close(gradient, autograd.numpy())

        def loss(argument: Array, i: int = i) -> float:
            return float((case.forward(*case.arguments[:i], argument, *case.arguments[i + 1 :]) * dy).sum())

        assert_close(gradient, central_differences(loss, case.arguments[i]), error=1e-8)


def torch_squeeze(x: Tensor) -> Tensor:
    return functional.adaptive_avg_pool2d(x.flatten(0, 1), 1).view(x.shape[:3]).permute(0, 2, 1)


def torch_excite(x: Tensor, importance: Tensor) -> Tensor:
    return (x.permute(0, 2, 1, 3, 4).contiguous() * importance[..., None, None]).permute(0, 2, 1, 3, 4)


def torch_aggregate(z: Tensor, kernel: Tensor) -> Tensor:
    N, T, C, H, W = z.shape
    K = kernel.shape[-1]
    channels = z.permute(0, 2, 1, 3, 4).contiguous().view(1, N * C, T, H * W)
    mixed = functional.conv2d(channels, kernel.reshape(N * C, 1, K, 1), padding=(K // 2, 0), groups=N * C)
    return mixed.view(N, C, T, H, W).permute(0, 2, 1, 3, 4).contiguous()


def torch_excite_and_aggregate(x: Tensor, importance: Tensor, kernel: Tensor) -> Tensor:
    return torch_aggregate(torch_excite(x, importance), kernel)


def operator_cases(shape: tuple[int, ...]) -> dict[str, Case]:
    N, T, C, H, W, K = shape
    x, importance, kernel = draw((N, T, C, H, W)), draw((N, C, T)), draw((N, C, K))
    return {
        "squeeze": Case(
            reference.squeeze, lambda dy, x: (reference.squeeze_backward(dy, x.shape),), torch_squeeze, [x]
        ),
        "excite": Case(reference.excite, reference.excite_backward, torch_excite, [x, importance]),
        "aggregate": Case(reference.aggregate, reference.aggregate_backward, torch_aggregate, [x, kernel]),
        "excite_and_aggregate": Case(
            reference.excite_and_aggregate,
            reference.excite_and_aggregate_backward,
            torch_excite_and_aggregate,
            [x, importance, kernel],
        ),
    }


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("operator", operator_cases(SHAPES[0]))
def test_operator_equals_torch_and_finite_differences(operator: str, shape: tuple[int, ...]) -> None:
    check(operator_cases(shape)[operator])


@st.composite
def integer_operands(draw: st.DrawFn) -> list[Array]:
    """Draw x, importance, kernel and dy, so small and whole that no sum of their products rounds."""
    N, C, H, W = (draw(st.integers(1, 3), label=axis) for axis in "NCHW")
    T, K = draw(st.integers(1, 9), label="T"), draw(st.sampled_from([1, 3, 5, 7, 9]), label="K")
    rng = np.random.default_rng(draw(st.integers(0, 2**32), label="seed"))
    shapes: list[tuple[int, ...]] = [(N, T, C, H, W), (N, C, T), (N, C, K), (N, T, C, H, W)]
    return [rng.integers(-8, 9, shape).astype(np.float64) for shape in shapes]


@settings(deadline=None, max_examples=60, derandomize=True)
@given(integer_operands())
def test_operators_equal_torch_exactly_in_small_integers(operands: list[Array]) -> None:
    x, importance, kernel, dy = operands
    leaves = [torch.tensor(operand, requires_grad=True) for operand in operands[:3]]
    y = torch_excite_and_aggregate(*leaves)
    assert_array_equal(reference.excite_and_aggregate(x, importance, kernel), y.detach().numpy())
    gradients = reference.excite_and_aggregate_backward(dy, x, importance, kernel)
    for gradient, autograd in zip(gradients, torch.autograd.grad(y, leaves, torch.tensor(dy)), strict=True):
        assert_array_equal(gradient, autograd.numpy())


@settings(deadline=None, max_examples=60, derandomize=True)
@given(integer_operands(), integer_operands())
def test_backward_is_the_adjoint_of_forward_exactly(operands: list[Array], others: list[Array]) -> None:
    x, importance, kernel, dy = operands
    dx, d_importance, d_kernel = reference.excite_and_aggregate_backward(dy, x, importance, kernel)
    # Forward is linear in each operand, so its gradient says what forward gives for any other one in that place.
    u, v, w = (np.resize(other, operand.shape) for other, operand in zip(others[:3], operands[:3], strict=True))
    assert (dy * reference.excite_and_aggregate(u, importance, kernel)).sum() == (dx * u).sum()
    assert (dy * reference.excite_and_aggregate(x, v, kernel)).sum() == (d_importance * v).sum()
    assert (dy * reference.excite_and_aggregate(x, importance, w)).sum() == (d_kernel * w).sum()

    pixels = x.shape[3] * x.shape[4]
    whole_means, d_squeezed = pixels * u, pixels * importance
    spread = reference.squeeze_backward(d_squeezed, x.shape)
    assert (d_squeezed * reference.squeeze(whole_means)).sum() == (spread * whole_means).sum()


@settings(deadline=None, max_examples=60, derandomize=True)
@given(integer_operands())
def test_band_matrix_is_forward_its_transpose_backward_and_its_band_the_gradients(operands: list[Array]) -> None:
    x, importance, kernel, dy = operands
    T, K = x.shape[1], kernel.shape[2]
    band = reference.band_matrix(importance, kernel)
    dx, d_importance, d_kernel = reference.excite_and_aggregate_backward(dy, x, importance, kernel)
    y = reference.excite_and_aggregate(x, importance, kernel)
    assert_array_equal(np.einsum("ncts,nschw->ntchw", band, x), y)
    assert_array_equal(np.einsum("ncts,ntchw->nschw", band, dy), dx)

    products = np.einsum("ntchw,nschw->ncts", dy, x)
    from_importance, from_kernel = np.zeros_like(importance), np.zeros_like(kernel)
    for t, s in np.ndindex(T, T):
        tap = s - t + K // 2
        if 0 <= tap < K:
            assert_array_equal(band[:, :, t, s], kernel[:, :, tap] * importance[:, :, s])
            from_importance[:, :, s] += products[:, :, t, s] * kernel[:, :, tap]
            from_kernel[:, :, tap] += products[:, :, t, s] * importance[:, :, s]
        else:
            assert_array_equal(band[:, :, t, s], 0)
    assert_array_equal(from_importance, d_importance)
    assert_array_equal(from_kernel, d_kernel)


def test_middle_tap_alone_is_the_identity_and_outer_taps_shift_by_a_frame() -> None:
    N, T, C = 2, 5, 3
    x, importance = draw((N, T, C, 2, 3)), np.ones((N, C, T))
    blank = np.zeros_like(x[:, :1])

    def apply(*taps: float) -> Array:
        return reference.excite_and_aggregate(x, importance, np.broadcast_to(taps, (N, C, 3)))

    assert_array_equal(apply(0, 1, 0), x)
    assert_array_equal(apply(1, 0, 0), np.concatenate([blank, x[:, :-1]], axis=1))
    assert_array_equal(apply(0, 0, 1), np.concatenate([x[:, 1:], blank], axis=1))


@pytest.mark.parametrize("K", [3, 5, 7])
def test_constant_clip_stays_constant_inside(K: int) -> None:
    frame, T = draw((1, 1, 4, 2, 2)), 9
    clip = np.repeat(frame, T, axis=1)
    kernel = reference.softmax(draw((1, 4, K)))
    y = reference.excite_and_aggregate(clip, np.ones((1, 4, T)), kernel)
    inside = slice(K // 2, T - K // 2)
    assert_close(y[:, inside], clip[:, inside])


def batch_norm_case(shape: tuple[int, ...], training: bool) -> Case:
    C = shape[1]
    mean, var = draw((C,), seed=5), np.exp(draw((C,), seed=6))

    def forward(x: Array, weight: Array, bias: Array) -> Array:
        return reference.batch_norm(x, weight, bias, mean, var, training=training)[0]

    def backward(dy: Array, x: Array, weight: Array, bias: Array) -> tuple[Array, ...]:
        return reference.batch_norm_backward(dy, x, weight, mean, var, training=training)

    def by_torch(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional.batch_norm(x, torch.tensor(mean), torch.tensor(var), weight, bias, training)

    return Case(forward, backward, by_torch, [draw(shape), draw((C,), seed=3), draw((C,), seed=4)])


def conv1d_case(x: tuple[int, int, int], weight: tuple[int, int, int]) -> Case:
    by_torch = partial(functional.conv1d, padding="same")
    return Case(reference.conv1d, reference.conv1d_backward, by_torch, [draw(x), draw(weight)])


def elementwise_case(
    forward: Callable[[Array], Array], backward: Callable[[Array, Array], Array], by_torch: Callable[[Tensor], Tensor]
) -> Case:
    return Case(forward, lambda dy, x: (backward(dy, forward(x)),), by_torch, [3 * draw((2, 4, 5))])


LAYERS = {
    "linear": Case(reference.linear, reference.linear_backward, functional.linear, [draw((6, 4)), draw((3, 4))]),
    "conv1d, 3 taps": conv1d_case((2, 4, 8), (3, 4, 3)),
    "conv1d, 1 tap": conv1d_case((1, 3, 5), (7, 3, 1)),
    "conv1d, more taps than frames": conv1d_case((2, 4, 2), (3, 4, 7)),
    "conv1d, 1 frame": conv1d_case((1, 2, 1), (3, 2, 3)),
    "batch_norm, rows, training": batch_norm_case((7, 4), training=True),
    "batch_norm, rows, evaluation": batch_norm_case((1, 4), training=False),
    "batch_norm, frames, training": batch_norm_case((2, 3, 5), training=True),
    "batch_norm, frames, evaluation": batch_norm_case((2, 3, 5), training=False),
    "relu": elementwise_case(reference.relu, reference.relu_backward, functional.relu),
    "sigmoid": elementwise_case(reference.sigmoid, reference.sigmoid_backward, torch.sigmoid),
    "softmax": elementwise_case(reference.softmax, reference.softmax_backward, lambda x: functional.softmax(x, -1)),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_layer_equals_torch_and_finite_differences(layer: str) -> None:
    check(LAYERS[layer])


def test_relu_has_no_gradient_at_zero_and_the_gates_do_not_overflow() -> None:
    assert_array_equal(reference.relu_backward(np.ones(3), reference.relu([-1, 0, 2])), [0, 0, 1])
    extreme = np.array([-1000.0, -700.0, 0.0, 1000.0])
    np.testing.assert_allclose(reference.sigmoid(extreme), torch.sigmoid(torch.tensor(extreme)).numpy(), rtol=1e-15)
    assert_array_equal(reference.softmax(extreme), [0, 0, 0, 1])


class EagerTAM(nn.Module):
    """The module written with torch's own layers, under the names of the published checkpoints."""

    def __init__(self, T: int, C: int, K: int, alpha: int = 2, beta: int = 4) -> None:
        super().__init__()
        self.G = nn.Sequential(
            nn.Linear(T, alpha * T, bias=False),
            nn.BatchNorm1d(alpha * T),
            nn.ReLU(),
            nn.Linear(alpha * T, K, bias=False),
            nn.Softmax(-1),
        )
        self.L = nn.Sequential(
            nn.Conv1d(C, C // beta, 3, padding=1, bias=False),
            nn.BatchNorm1d(C // beta),
            nn.ReLU(),
            nn.Conv1d(C // beta, C, 1, bias=False),
            nn.Sigmoid(),
        )
        self.double()
        for name, values in self.state_dict().items():
            if values.is_floating_point():
                drawn = torch.tensor(draw(tuple(values.shape), seed=len(name)))
                values.copy_(drawn.exp() if name.endswith("running_var") else drawn)

    def forward(self, x: Tensor) -> Tensor:
        N, T, C = x.shape[:3]
        squeezed = torch_squeeze(x)
        kernel = self.G(squeezed.reshape(N * C, T)).view(N, C, -1)
        return torch_excite_and_aggregate(x, self.L(squeezed), kernel)


def numpy_state(module: nn.Module) -> dict[str, Array]:
    return {name: values.numpy() for name, values in module.state_dict().items()}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_module_equals_torch(shape: tuple[int, ...], training: bool) -> None:
    N, T, C, H, W, K = shape
    module = EagerTAM(T, C, K).train(training)
    x, dy = draw((N, T, C, H, W)), draw((N, T, C, H, W), seed=1)
    forward = reference.tam_forward(x, numpy_state(module), training=training)

    named = {"x": torch.tensor(x, requires_grad=True), **dict(module.named_parameters())}
    y = module(named["x"])
    autograd = dict(zip(named, torch.autograd.grad(y, list(named.values()), torch.tensor(dy)), strict=True))
    # The reference's backward uses the parameters that its forward was given, whatever became of the module's memory.
    for parameter in module.parameters():
        parameter.data.zero_()
    dx, gradients = reference.tam_backward(dy, forward)
    assert_close(forward.y, y.detach().numpy())
    assert_close(dx, autograd.pop("x").numpy())
    assert gradients.keys() == autograd.keys()
    for name, gradient in gradients.items():
        assert_close(gradient, autograd[name].numpy())
    statistics = {name: values.numpy() for name, values in module.named_buffers() if "running" in name}
    assert forward.running_statistics.keys() == statistics.keys()
    for name, values in forward.running_statistics.items():
        assert_close(values, statistics[name])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(2, 3, 4, 2, 1, 3), (1, 2, 8, 1, 3, 5)], ids=str)
def test_module_gradients_equal_finite_differences(shape: tuple[int, ...], training: bool) -> None:
    N, T, C, H, W, K = shape
    x, dy = draw((N, T, C, H, W)), draw((N, T, C, H, W), seed=1)
    inputs = numpy_state(EagerTAM(T, C, K)) | {"x": x}

    def forward(**changed: Array) -> reference.TAMForward:
        state = inputs | changed
        return reference.tam_forward(state.pop("x"), state, training=training)

    def loss(name: str, values: Array) -> float:
        return float((forward(**{name: values}).y * dy).sum())

    dx, gradients = reference.tam_backward(dy, forward())
    for name, gradient in (gradients | {"x": dx}).items():
        assert_close(gradient, central_differences(partial(loss, name), inputs[name]), error=1e-8)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8])
def test_any_real_dtype_is_computed_in_float64(dtype: type[np.number]) -> None:
    wide = {name: np.trunc(np.abs(8 * values)) for name, values in numpy_state(EagerTAM(3, 4, 3)).items()}
    x, dy = np.trunc(8 * draw((2, 3, 4, 2, 2))), np.trunc(8 * draw((2, 3, 4, 2, 2), seed=1))
    expected = reference.tam_forward(x, wide, training=True)
    narrow = {name: values.astype(dtype) for name, values in wide.items()}
    forward = reference.tam_forward(x.astype(dtype), narrow, training=True)
    assert_close(forward.y, expected.y, error=0)
    dx, _ = reference.tam_backward(dy.astype(dtype), forward)
    assert_close(dx, reference.tam_backward(dy, expected)[0], error=0)


def apply_tam(changed: dict[str, Array], N: int = 2, T: int = 3, training: bool = True) -> None:
    reference.tam_forward(draw((N, T, 4, 2, 2)), numpy_state(EagerTAM(T, 4, 3)) | changed, training=training)


X, V, THETA = draw((2, 4, 3, 5, 5)), draw((2, 3, 4)), draw((2, 3, 3))
MISTAKES: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "frames": (lambda: reference.squeeze(X[0]), ValueError, r"x must .*\(N, T, C, H, W\).*got \(4, 3, 5, 5\)"),
    "empty": (lambda: reference.squeeze(X[..., :0]), ValueError, r"x must .*at least 1; got \(2, 4, 3, 5, 0\)"),
    "complex": (lambda: reference.excite(X * 1j, V), TypeError, "x must hold real numbers, got dtype complex128"),
    "importance": (lambda: reference.excite(X, V[:, :, :1]), ValueError, r"importance must .*T=4\).*got \(2, 3, 1\)"),
    "kernel": (lambda: reference.aggregate(X, THETA[:, :1]), ValueError, r"kernel must .*C=3, K\).*got \(2, 1, 3\)"),
    "even": (lambda: reference.aggregate(X, V), ValueError, "kernel must have an odd number of taps, got 4"),
    "dy": (lambda: reference.aggregate_backward(X[:1], X, THETA), ValueError, "dy must have shape"),
    "shape": (lambda: reference.squeeze_backward(V, V.shape), ValueError, r"shape must be .*got \(2, 3, 4\)"),
    "even conv1d": (lambda: reference.conv1d(V, draw((2, 3, 2))), ValueError, "weight must have an odd number of taps"),
    "broadcast": (lambda: reference.relu_backward(V[:1], V), ValueError, "dy must have shape"),
    "T of G": (lambda: apply_tam({"G.0.weight": draw((6, 8))}), ValueError, r"G.0.weight must .*T=3\)"),
    "C of L": (
        lambda: apply_tam({"L.0.weight": draw((1, 5, 3))}),
        ValueError,
        r"L.0.weight must .*C=4, taps\).*got \(1, 5, 3\)",
    ),
    "even K": (lambda: apply_tam({"G.3.weight": draw((4, 6))}), ValueError, "G.3.weight must have an odd .*got 4"),
    "width": (lambda: apply_tam({"G.1.bias": draw((5,))}), ValueError, r"G.1.bias must .*αT=6\).*got \(5,\)"),
    "names": (lambda: apply_tam({"L.1.scale": V}), ValueError, r"missing \[\], unknown \['L.1.scale'\]"),
    "no names": (lambda: reference.tam_forward(X, {}, training=False), ValueError, r"missing \['G.0.weight', .*'L.3"),
    "one value": (lambda: apply_tam({}, N=1, T=1), ValueError, "x must have more than 1 value per channel in training"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_named(mistake: str) -> None:
    function, error, message = MISTAKES[mistake]
    with pytest.raises(error, match=message):
        function()


def test_one_value_per_channel_is_an_error_in_torch_too_and_only_in_training() -> None:
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        EagerTAM(1, 4, 3).train()(torch.zeros(1, 1, 4, 2, 2, dtype=torch.float64))
    apply_tam({}, N=1, T=1, training=False)


def test_numpy_is_all_that_is_imported() -> None:
    code = "import sys, reference; assert not {'torch', 'scipy', 'tam_triton'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
