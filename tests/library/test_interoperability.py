"""What torch does to any module it can do to these: autocast, functional calls, checkpoints, copies, files."""

import copy
import io
import pickle
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tam_triton import TAM
from tests.support.networks import FRAMES, eager_twin, exact_twin, feature_maps, small_tam, small_tanet, videos
from tests.support.tolerance import assert_close

each_impl = pytest.mark.parametrize("impl", ["triton", "torch"])
each_mode = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def gradients(forward: Callable[[Tensor], Tensor], x: Tensor, module: nn.Module) -> tuple[Tensor, ...]:
    """Of the input and of every parameter; by `backward`, which a reentrant checkpoint asks for."""
    leaf = x.detach().clone().requires_grad_()
    module.zero_grad()
    forward(leaf).square().sum().backward()
    return tuple(tensor.grad.clone() for tensor in (leaf, *module.parameters()) if tensor.grad is not None)


@each_impl
@pytest.mark.parametrize(
    ("dtype", "training"), [(torch.bfloat16, True), (torch.float16, False)], ids=["bfloat16-train", "float16-eval"]
)
def test_tanet_under_autocast(dtype: torch.dtype, training: bool, impl: str) -> None:
    """Low precision inside, float32 parameters and gradients, no further from exact than the usual formulation is."""
    network = small_tanet(impl, training)
    plain, exact = eager_twin(network), exact_twin(network)
    x = videos(2)
    truth = exact(x.double())
    with torch.autocast("cpu", dtype):
        logits, plain_logits = network(x), plain(x)
        if not training:
            with torch.no_grad():
                assert_close(network(x), truth.detach().numpy(), plain_logits)
    assert logits.dtype == dtype
    assert_close(logits, truth.detach().numpy(), plain_logits)

    true, result, usual = (
        torch.autograd.grad(y.double().square().sum(), list(model.parameters()))
        for y, model in ((truth, exact), (logits, network), (plain_logits, plain))
    )
    assert {gradient.dtype for gradient in result} == {torch.float32}
    allowed = 2 * (distance(usual, true) + torch.finfo(dtype).eps)
    assert distance(result, true) <= allowed


def distance(gradients: Sequence[Tensor], true: Sequence[Tensor]) -> float:
    """Root of the mean relative error squared: the largest says only which ReLU has flipped in low precision."""
    pairs = zip(gradients, true, strict=True)
    errors = torch.cat([((gradient.double() - truth) / truth.abs().max()).flatten() for gradient, truth in pairs])
    return errors.square().mean().sqrt().item()


@each_impl
@each_mode
def test_functional_call(training: bool, impl: str) -> None:
    """Other weights than the module's own; statistics go where they came from."""
    module, other = small_tam(impl, training), TAM(8, FRAMES, impl=impl).train(training)
    x = feature_maps(2)
    state, before = copy.deepcopy(other.state_dict()), copy.deepcopy(module.state_dict())
    assert torch.equal(torch.func.functional_call(module, state, x), other(x))
    torch.testing.assert_close(state, dict(other.state_dict()), rtol=0, atol=0)
    torch.testing.assert_close(dict(module.state_dict()), dict(before), rtol=0, atol=0)


@each_impl
def test_functional_gradients(impl: str) -> None:
    module = small_tam(impl)
    x = feature_maps(2)
    parameters: dict[str, Tensor] = dict(module.named_parameters())

    def loss(x: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(module, parameters, x).square().sum()

    dx, d_parameters = torch.func.grad(loss, argnums=(0, 1))(x, parameters)
    torch.testing.assert_close((dx, *d_parameters.values()), gradients(module, x, module))


@each_impl
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint(use_reentrant: bool, impl: str) -> None:
    """The forward is computed again in the backward; a reentrant one is computed without gradients at first."""
    module = small_tam(impl, training=True)
    x = feature_maps(2)
    again = gradients(lambda leaf: checkpoint(module, leaf, use_reentrant=use_reentrant), x, module)
    torch.testing.assert_close(again, gradients(module, x, module), rtol=0, atol=0)


def through_torch_save(module: TAM) -> TAM:
    """A new module with the state dict from a file that can hold nothing but tensors."""
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    loaded = TAM(module.channels, module.num_segments, impl=module.impl)
    loaded.load_state_dict(torch.load(buffer, weights_only=True))
    return loaded.train(module.training)


@each_impl
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module)), through_torch_save],
    ids=["deepcopy", "pickle", "state_dict"],
)  # fmt: skip
def test_copies(copied: Callable[[TAM], TAM], impl: str) -> None:
    """After a step of training, whose statistics go with it; then they part."""
    module = small_tam(impl, training=True)
    x = feature_maps(2)
    module(x)
    twin = copied(module)
    assert (twin.impl, twin.training) == (impl, True)
    torch.testing.assert_close(dict(twin.state_dict()), dict(module.state_dict()), rtol=0, atol=0)
    torch.testing.assert_close(gradients(twin, x, twin), gradients(module, x, module), rtol=0, atol=0)
    kept = copy.deepcopy(module.state_dict())
    twin(x + 1)
    torch.nn.init.zeros_(twin.get_parameter("G.0.weight"))
    torch.testing.assert_close(dict(module.state_dict()), dict(kept), rtol=0, atol=0)
