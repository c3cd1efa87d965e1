"""Evaluation folds a TAM's layers into kernels only where these are the layers that it was built with.

Whatever was changed, results are those of the layers: with gradients off as with gradients on, where layers are called.
"""

import contextlib
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn
from torch._dynamo import config as dynamo_config

from tam_triton import TAM, functional
from tam_triton.nets import TANet
from tests.support.changes import CHANGES, apply, global_hook, patched_class, place
from tests.support.networks import CHANNELS, feature_maps, randomised, small_tam, small_tanet, videos
from tests.support.strategies import examples

NORM, RELU = randomised(nn.BatchNorm2d(CHANNELS)).eval(), nn.ReLU()
Call = Callable[[nn.Module, Tensor], Tensor]

each_change = pytest.mark.parametrize("name", CHANGES)
each_impl = pytest.mark.parametrize("impl", ["triton", "torch"])


@st.composite
def combinations(draw: st.DrawFn) -> list[str]:
    """One to four changes, of different layers; of the whole of G or L, at most one."""
    names = draw(st.lists(st.sampled_from(list(CHANGES)), min_size=1, max_size=4, unique_by=place))
    whole = [name for name in names if place(name) in ("G.length", "L.length", "G.all", "branches")]
    kept = [name for name in names if name not in whole] + whole[:1]
    # Quantised layers have other names for their weights, and inserted ones move places: last, and alone in G.
    alone = any(place(name) in ("G.all", "G.length") for name in kept)
    return [name for name in kept if not (alone and place(name).startswith("G") and name not in whole)]


def forward(module: nn.Module, x: Tensor) -> Tensor:
    return module(x)


def activated(module: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(module, TAM)
    return module.activated(x, NORM, RELU)


def agree(build: Callable[[], nn.Module], call: Call, x: Tensor, compiled: bool = False) -> None:
    """Gradients off and on, each from a module of its own: a BatchNorm in training mode changes as it runs."""
    with torch.enable_grad():
        expected = call(build(), x)
    run = torch.compile(call, fullgraph=True, dynamic=False, backend="eager") if compiled else call
    with torch.no_grad():
        torch.testing.assert_close(run(build(), x), expected.detach(), rtol=1e-4, atol=1e-5)


def changed(impl: str, names: list[str]) -> TAM:
    torch.manual_seed(0)
    return apply(names, small_tam(impl))


def changed_network(impl: str, names: list[str]) -> TANet:
    torch.manual_seed(0)
    network = small_tanet(impl, stages=["res3"])
    for part in network.modules():
        if isinstance(part, TAM):
            apply(names, part)
    return network


def layers_are_called(module: TAM, x: Tensor) -> bool:
    """Whether evaluation goes through the layers."""
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(functional, "evaluate", lambda *_, **__: None)
        return module(x) is not None


def test_a_module_as_it_was_built_is_folded() -> None:
    assert not layers_are_called(small_tam("triton"), feature_maps(1))


@each_change
def test_a_change_is_noticed(name: str) -> None:
    if name == "G.0: no Parameter":  # a tensor is a tensor
        assert not layers_are_called(changed("triton", [name]), feature_maps(1))
        return
    assert layers_are_called(changed("triton", [name]), feature_maps(1))


@each_change
@each_impl
@pytest.mark.parametrize("call", [forward, activated])
def test_evaluation_is_that_of_the_layers(name: str, impl: str, call: Call) -> None:
    agree(lambda: changed(impl, [name]), call, feature_maps(2))


@examples(1.0)
@given(names=combinations(), impl=st.sampled_from(["triton", "torch"]), call=st.sampled_from([forward, activated]))
def test_combinations(names: list[str], impl: str, call: Call) -> None:
    agree(lambda: changed(impl, names), call, feature_maps(2))


@each_impl
@pytest.mark.parametrize("around", [global_hook, patched_class])
def test_changes_of_all_modules(around: Callable[[], contextlib.AbstractContextManager[None]], impl: str) -> None:
    module, x = small_tam(impl), feature_maps(2)
    with torch.no_grad():
        before = module(x)
        with around():
            agree(lambda: small_tam(impl), forward, x)
            assert not torch.allclose(module(x), before)
        assert torch.equal(module(x), before)


@each_impl
def test_branches_replaced_on_the_class(impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = TAM.branches
    monkeypatch.setattr(TAM, "branches", lambda self, squeezed: tuple(w * 0.5 for w in original(self, squeezed)))
    agree(lambda: small_tam(impl), forward, feature_maps(2))


def test_hooks_of_a_backward_are_noticed() -> None:
    """They change nothing without gradients, but wrap what a layer is given."""
    for register in ("register_full_backward_hook", "register_full_backward_pre_hook"):
        module = small_tam("triton")
        getattr(module.L[0], register)(lambda *_: None)
        assert layers_are_called(module, feature_maps(1))


@pytest.mark.parametrize("spoil", ["hook", "subclass", "patched", "compiled"])
def test_activated_calls_what_was_changed(spoil: str) -> None:
    """The norm, the activation, and the TAM itself."""

    class Scaled(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    for which in ("norm", "activation", "tam"):
        tam, norm, relu = small_tam("triton"), randomised(nn.BatchNorm2d(CHANNELS)).eval(), nn.ReLU()
        layer: nn.Module = {"norm": norm, "activation": relu, "tam": tam}[which]
        if spoil == "hook":
            layer.register_forward_hook(lambda _, __, output: output * 2)
        elif spoil == "patched":
            original = layer.forward
            layer.forward = lambda x, original=original: original(x) * 2
        elif spoil == "compiled":
            layer.compile(backend="eager")
        elif which == "norm":
            norm.__class__ = Scaled
        else:
            continue
        x = feature_maps(2)
        with torch.no_grad():
            torch.testing.assert_close(tam.activated(x, norm, relu), tam(relu(norm(x))), rtol=1e-4, atol=1e-5)


def test_half_precision_is_for_autocast() -> None:
    """As the layers have it; with gradients as without."""
    module, x = small_tam("triton"), feature_maps(1).half()
    for recording in (True, False):
        with torch.set_grad_enabled(recording), pytest.raises(TypeError, match=r"expected the module's torch.float32"):
            module(x)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert module(x).dtype == torch.float16


@each_impl
def test_transforms_of_evaluation(impl: str) -> None:
    """functional_call with other weights, stacked states under vmap, forward-mode AD."""
    module, x = small_tam(impl), feature_maps(2)
    other = {name: tensor * 1.3 for name, tensor in module.named_parameters()}
    twin = small_tam(impl)
    twin.load_state_dict({**module.state_dict(), **other})
    with torch.no_grad():
        torch.testing.assert_close(torch.func.functional_call(module, other, (x,)), twin(x))


LATER = ["G.1: another eps", "L.0: circular", "L.2: forward hook", "G: forward hook", "G.3: patched forward"]


@pytest.mark.parametrize("name", LATER)
def test_a_compiled_module_notices_a_later_change(name: str) -> None:
    """Hooks only if torch.compile is told to look, as with torch's own layers."""
    torch.compiler.reset()
    module, x = small_tam("triton"), feature_maps(2)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    with torch.no_grad(), dynamo_config.patch(skip_nnmodule_hook_guards="hook" not in name):
        torch.testing.assert_close(compiled(x), module(x))
        CHANGES[name](module)
        torch.testing.assert_close(compiled(x), module(x))


COMPILED = ["G.2: another activation", "L.1: another eps", "G.0: subclass", "L.3: bias", "L.3: pre-hook", "G.1: frozen"]


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize("call", [forward, activated])
def test_compiled_evaluation_is_that_of_the_layers(name: str, call: Call) -> None:
    torch.compiler.reset()
    agree(lambda: changed("triton", [name]), call, feature_maps(2), compiled=True)


@each_impl
@pytest.mark.parametrize("name", [name for name in CHANGES if not name.startswith("branches")][::4])
def test_networks(name: str, impl: str) -> None:
    agree(lambda: changed_network(impl, [name]), forward, videos(1)[..., :16, :16])
