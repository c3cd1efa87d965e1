"""The reference of BatchNorm, ReLU and TAM together, against torch's autograd and finite differences."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import reference
from reference.arrays import Array
from tests.library.test_reference import EagerTAM, assert_close, central_differences, draw, numpy_state

SHAPES = [(2, 4, 8, 3, 3, 3), (2, 1, 5, 1, 1, 3), (1, 4, 6, 3, 4, 5), (3, 2, 4, 2, 1, 7)]  # N, T, C, H, W, K
NORM = ("weight", "bias", "running_mean", "running_var")


def norm_state(channels: int, zeros: bool) -> dict[str, Array]:
    """A BatchNorm; with `zeros` the first channel has γ = 0, and the second one does not pass its ReLU."""
    state = {name: draw((channels,), seed=seed).copy() for seed, name in enumerate(NORM, start=10)}
    state["running_var"] = np.abs(state["running_var"]) + 0.5
    if zeros:
        state["weight"][0], state["bias"][0] = 0.0, 0.7
        state["weight"][1], state["bias"][1] = 1e-3, -1.0
    return state


@pytest.mark.parametrize("norm_training", [True, False], ids=["batch", "frozen"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_torch(shape: tuple[int, ...], training: bool, norm_training: bool) -> None:
    N, T, C, H, W, K = shape
    module, state = EagerTAM(T, C, K).train(training), norm_state(C, zeros=True)
    norm = nn.BatchNorm2d(C).double().train(norm_training)
    norm.load_state_dict({**norm.state_dict(), **{name: torch.tensor(values) for name, values in state.items()}})
    x, dy = draw((N, T, C, H, W)), draw((N, T, C, H, W), seed=1)
    forward = reference.activated_forward(x, state, numpy_state(module), training=training, norm_training=norm_training)
    named = {
        "x": torch.tensor(x, requires_grad=True),
        **dict(norm.named_parameters()),
        **dict(module.named_parameters()),
    }
    y = module(norm(named["x"].flatten(0, 1)).relu().unflatten(0, (N, T)))
    autograd = dict(zip(named, torch.autograd.grad(y, list(named.values()), torch.tensor(dy)), strict=True))

    dx, gradients = reference.activated_backward(dy, forward)
    assert_close(forward.tam.y, y.detach().numpy())
    assert_close(dx, autograd.pop("x").numpy(), error=1e-12)
    assert gradients.keys() == autograd.keys()
    for name, gradient in gradients.items():
        assert_close(gradient, autograd[name].numpy(), error=1e-12)
    assert_close(forward.running_mean, norm.get_buffer("running_mean").numpy())
    assert_close(forward.running_var, norm.get_buffer("running_var").numpy())


@pytest.mark.parametrize("norm_training", [True, False], ids=["batch", "frozen"])
@pytest.mark.parametrize("shape", [(2, 3, 4, 2, 1, 3), (1, 2, 8, 1, 3, 5)], ids=str)
def test_gradients_equal_finite_differences(shape: tuple[int, ...], norm_training: bool) -> None:
    N, T, C, H, W, K = shape
    x, dy = draw((N, T, C, H, W)), draw((N, T, C, H, W), seed=1)
    inputs = numpy_state(EagerTAM(T, C, K)) | norm_state(C, zeros=False) | {"x": x}

    def forward(**changed: Array) -> reference.ActivatedForward:
        state = inputs | changed
        norm = {name: state.pop(name) for name in NORM}
        return reference.activated_forward(state.pop("x"), norm, state, training=True, norm_training=norm_training)

    def loss(name: str, values: Array) -> float:
        return float((forward(**{name: values}).tam.y * dy).sum())

    dx, gradients = reference.activated_backward(dy, forward())
    for name, gradient in (gradients | {"x": dx}).items():
        assert_close(gradient, central_differences(partial(loss, name), inputs[name]), error=1e-7)


def test_a_single_value_has_no_variance() -> None:
    with pytest.raises(ValueError, match="x must have more than 1 value per channel in training"):
        reference.activated_forward(
            draw((1, 1, 4, 1, 1)), norm_state(4, zeros=False), numpy_state(EagerTAM(1, 4, 3)),
            training=False, norm_training=True,
        )  # fmt: skip
