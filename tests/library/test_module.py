"""TAM against an independently written eager one and against the NumPy reference, on both implementations."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import reference
from bench import peers as eager
from tam_triton import TAM, aggregate, layout
from tests.support.strategies import Problem, examples, problems
from tests.support.tolerance import assert_close

each_impl = pytest.mark.parametrize("impl", ["triton", "torch"])
each_mode = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
each_layout = pytest.mark.parametrize("memory", ["contiguous", "channels_last"])


def random_tam(
    channels: int, num_segments: int, kernel_size: int = 3, *, impl: str, training: bool = True, local_taps: int = 3
) -> TAM:
    """A module none of whose weights or statistics is at its initial value."""
    torch.manual_seed(channels + num_segments)
    module = TAM(channels, num_segments, kernel_size, local_kernel_size=local_taps, impl=impl)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor + 0.3 * torch.rand_like(tensor))
    return module.train(training)


def run(forward: object, module: TAM, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """y, dx, and the gradients of every parameter by name."""
    assert callable(forward)
    x = x.detach().clone().requires_grad_()
    y = forward(x)
    names, parameters = zip(*module.named_parameters(), strict=True)
    dx, *gradients = torch.autograd.grad(y, (x, *parameters), dy)
    return y.detach(), dx, dict(zip(names, gradients, strict=True))


def joined(gradients: dict[str, Tensor], scales: dict[str, Tensor]) -> Tensor:
    """All gradients as one vector, each in units of its own size: a tensor of three elements is exact by luck alone."""
    return torch.cat([(gradients[name] / scale.to(gradients[name].dtype)).flatten() for name, scale in scales.items()])


@each_impl
@each_mode
@each_layout
@pytest.mark.parametrize(
    "shape",
    [
        Problem(N=2, T=8, C=16, H=7, W=7, K=3),
        Problem(N=1, T=4, C=12, H=14, W=14, K=5),
        Problem(N=3, T=2, C=4, H=1, W=1, K=7),
    ],
    ids=lambda p: f"N{p.N}T{p.T}C{p.C}P{p.H}x{p.W}K{p.K}",
)
def test_equals_an_eager_one(impl: str, training: bool, memory: str, shape: Problem) -> None:
    problem = Problem(**{**vars(shape), "layout": memory})
    module = random_tam(problem.C, problem.T, problem.K, impl=impl, training=training)
    twin = copy.deepcopy(module)
    exact = copy.deepcopy(module).double()
    x, dy = problem.features(), problem.features(salt=3)

    y, dx, gradients = run(module, module, x, dy)
    plain_y, plain_dx, plain_gradients = run(lambda t: eager.tam(twin, t), twin, x, dy)
    true_y, true_dx, true_gradients = run(lambda t: eager.tam(exact, t), exact, x.double(), dy.double())

    assert_close(y, true_y.numpy(), plain_y)
    assert_close(dx, true_dx.numpy(), plain_dx)
    assert y.stride() == dx.stride() == layout.empty_result(x).stride()
    scales = {name: gradient.abs().max() for name, gradient in true_gradients.items()}
    assert_close(joined(gradients, scales), joined(true_gradients, scales).numpy(), joined(plain_gradients, scales))
    for name, buffer in module.named_buffers():
        if buffer.is_floating_point():  # the statistics; the count of batches is no part of the mathematics
            assert_close(buffer, exact.get_buffer(name).numpy(), twin.get_buffer(name))


@each_impl
@each_mode
@examples(0.24)
@given(
    problem=problems(dtypes=(torch.float64,)).filter(lambda p: p.N * p.T > 1 and p.C >= 4),
    local_taps=st.sampled_from([1, 3, 5]),
)
def test_equals_the_reference(impl: str, training: bool, problem: Problem, local_taps: int) -> None:
    module = random_tam(problem.C, problem.T, problem.K, impl=impl, training=training, local_taps=local_taps).double()
    state = {name: tensor.numpy().copy() for name, tensor in module.state_dict().items()}
    x, dy = problem.features(), problem.features(salt=3)
    y, dx, gradients = run(module, module, x, dy)

    def clip(t: Tensor) -> np.ndarray:
        return t.detach().unflatten(0, (-1, problem.T)).numpy()

    forward = reference.tam_forward(clip(x), state, training=training)
    true_dx, true_gradients = reference.tam_backward(clip(dy), forward)
    np.testing.assert_allclose(clip(y), forward.y, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(clip(dx), true_dx, rtol=1e-7, atol=1e-8)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient.numpy(), true_gradients[name], rtol=1e-7, atol=1e-8, err_msg=name)
    for name, statistics in forward.running_statistics.items():
        np.testing.assert_allclose(module.get_buffer(name).numpy(), statistics, rtol=1e-9, atol=1e-10, err_msg=name)


@each_impl
@pytest.mark.parametrize("local_taps", [1, 5])
def test_inference_with_other_local_taps(impl: str, local_taps: int) -> None:
    """By the layers: the kernels that fold them have three. The authors' code has as many as the kernel."""
    problem = Problem(N=2, T=8, C=16, H=7, W=7, K=5)
    module = random_tam(16, 8, 5, impl=impl, training=False, local_taps=local_taps)
    x, norm = problem.features(), torch.nn.BatchNorm2d(16).eval()
    with torch.no_grad():
        assert module._fold(x) is None
        for y, seen in ((module(x), x), (module.activated(x, norm, torch.nn.ReLU()), norm(x).relu())):
            truth, plain = eager.tam(copy.deepcopy(module).double(), seen.double()), eager.tam(module, seen)
            assert_close(y, truth.numpy(), plain)


@each_impl
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(impl: str, dtype: torch.dtype) -> None:
    """Weights stay float32, the feature map is what a convolution under autocast made; gradients keep their dtypes."""
    problem = Problem(N=2, T=4, C=8, H=5, W=5, K=3, dtype=dtype)
    module = random_tam(problem.C, problem.T, impl=impl)
    twin, exact = copy.deepcopy(module), copy.deepcopy(module).double()
    x, dy = problem.features(), problem.features(salt=3)
    with torch.autocast("cpu", dtype):
        y, dx, gradients = run(module, module, x, dy)
        plain_y, plain_dx, _ = run(lambda t: eager.tam(twin, t), twin, x, dy)
    true_y, true_dx, _ = run(lambda t: eager.tam(exact, t), exact, x.double(), dy.double())
    assert y.dtype == dx.dtype == dtype
    assert all(gradient.dtype == torch.float32 for gradient in gradients.values())
    assert_close(y, true_y.numpy(), plain_y)
    assert_close(dx, true_dx.numpy(), plain_dx)


@each_layout
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("clips", "frames", "channels", "taps"), [(2, 8, 16, 3), (1, 1, 7, 5), (2, 17, 37, 7)])
def test_inference_with_folded_branches(
    clips: int, frames: int, channels: int, taps: int, dtype: torch.dtype, memory: str
) -> None:
    problem = Problem(N=clips, T=frames, C=channels, H=3, W=3, K=taps, layout=memory, dtype=dtype)
    module = random_tam(channels, frames, taps, impl="triton", training=False).to(dtype)
    exact = copy.deepcopy(module).double()
    x = problem.features()
    with torch.no_grad():
        y = module(x)
        assert_close(y, eager.tam(exact, x.double()).numpy(), eager.tam(module, x))
    assert y.stride() == x.stride()


@each_impl
@each_layout
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [7, 20])
def test_inference_after_batch_norm_and_relu(size: int, dtype: torch.dtype, memory: str, impl: str) -> None:
    problem = Problem(N=2, T=3, C=18, H=size, W=size, K=3, layout=memory, dtype=dtype)
    module = random_tam(18, 3, impl=impl, training=False).to(dtype)
    norm = torch.nn.BatchNorm2d(18).eval()
    for offset, tensor in enumerate((norm.weight, norm.bias, norm.running_mean, norm.running_var)):
        assert tensor is not None
        tensor.data.copy_(problem.tensor(18, salt=10 + offset).abs())
    norm = norm.to(dtype)
    exact, exact_norm = copy.deepcopy(module).double(), copy.deepcopy(norm).double()
    x = problem.features()
    with torch.no_grad():
        y = module.activated(x, norm, torch.nn.ReLU(inplace=True))
        plain = eager.tam(module, norm(x).relu())
        assert_close(y, eager.tam(exact, exact_norm(x.double()).relu()).numpy(), plain)
        assert_close(module.activated(x, torch.nn.Identity(), torch.nn.ReLU()), module(x.relu()).double().numpy(), y)
    with_gradients = module.activated(x, norm, torch.nn.ReLU())
    assert with_gradients.requires_grad
    assert_close(with_gradients.detach(), eager.tam(exact, exact_norm(x.double()).relu()).detach().numpy(), plain)


@each_impl
@each_layout
@each_mode
def test_the_result_is_no_view(impl: str, memory: str, training: bool) -> None:
    """It can be changed in place, and what is changed has the gradients of what is not."""
    problem = Problem(N=2, T=4, C=8, H=3, W=2, K=3, layout=memory)
    x, dy = problem.features(), problem.features(salt=3)
    module = random_tam(8, 4, impl=impl, training=training)
    in_place = copy.deepcopy(module)
    expected = run(lambda t: module(t).mul(2).relu(), module, x, dy)
    torch.testing.assert_close(run(lambda t: in_place(t).mul_(2).relu_(), in_place, x, dy), expected)
    v, theta = problem.importance().requires_grad_(), problem.kernel().requires_grad_()
    y = aggregate(x, v, theta, impl=impl)
    assert not y._is_view()
    torch.nn.ReLU(inplace=True)(y).backward(dy)
    assert v.grad is not None
    assert v.grad.any()


@each_impl
def test_whole_module_in_low_precision(impl: str) -> None:
    module = random_tam(8, 4, impl=impl, training=False).bfloat16()
    exact = copy.deepcopy(module).double()
    x = Problem(N=1, T=4, C=8, H=3, W=3, K=3, dtype=torch.bfloat16).features()
    with torch.no_grad():
        assert_close(module(x), eager.tam(exact, x.double()).numpy(), eager.tam(module, x))


def test_names_shapes_and_initialisation_of_the_published_checkpoints() -> None:
    module = TAM(64, 8)
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    statistics = ("weight", "bias", "running_mean", "running_var")
    assert shapes == {
        "G.0.weight": (16, 8),
        **{f"G.1.{name}": (16,) for name in statistics},
        "G.1.num_batches_tracked": (),
        "G.3.weight": (3, 16),
        "L.0.weight": (16, 64, 3),
        **{f"L.1.{name}": (16,) for name in statistics},
        "L.1.num_batches_tracked": (),
        "L.3.weight": (64, 16, 1),
    }
    for name, fan_in in (("G.0", 8), ("G.3", 16), ("L.0", 192), ("L.3", 16)):
        weight = module.get_parameter(f"{name}.weight").detach()
        bound = fan_in**-0.5  # torch's default for linear and convolution layers
        assert weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.25)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": 4}, "kernel_size: got 4, expected an odd number"),
        ({"kernel_size": -1}, "kernel_size: got -1, expected an odd number"),
        ({"num_segments": 0}, "num_segments: got 0, expected at least 1"),
        ({"channels": 3}, "channels: got 3, expected at least beta = 4"),
        ({"alpha": 0}, "alpha: got 0"),
        ({"beta": 0}, "beta: got 0"),
    ],
)
def test_refuses_a_bad_configuration(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TAM(**{"channels": 8, "num_segments": 4, **arguments})


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((8, 9, 2, 2), r"x: got 9 channels in shape \(8, 9, 2, 2\), expected 8"),
        ((6, 8, 2, 2), "num_segments: got 4, expected a divisor of x's N·T = 6"),
        ((8, 8, 2), "expected 4 dimensions"),
        ((0, 8, 2, 2), "empty"),
    ],
)
def test_refuses_a_bad_feature_map(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TAM(8, 4)(torch.zeros(shape))


def test_bad_impl() -> None:
    with pytest.raises(ValueError, match="impl: got 'cuda', expected"):
        TAM(8, 4, impl="cuda")
