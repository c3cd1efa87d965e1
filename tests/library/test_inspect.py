"""`tam_triton.inspect`: what is collected is what was used, and nothing of it stays."""

import copy
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tam_triton import TAM, functional, inspect
from tam_triton.nets import create_model
from tam_triton.temporal import GlobalSE, GlobalTAM, LocalTAM, ReversedTAM
from tests.support.networks import CHANNELS, FRAMES, feature_maps, randomised, small_tanet, videos

IMPLS = ("torch", "triton")


def by_hand(module: Any, x: Tensor) -> tuple[Tensor | None, Tensor]:
    """V and Θ by torch alone, from equations 1 to 3."""
    squeezed = x.unflatten(0, (-1, FRAMES)).mean((3, 4)).transpose(1, 2)
    clips, (importance, kernel) = len(squeezed), (None, squeezed.new_ones(len(squeezed), CHANNELS, 1))
    if hasattr(module, "G"):
        kernel = module.G(squeezed.reshape(-1, FRAMES)).reshape(clips, CHANNELS, 3)
    if hasattr(module, "L"):
        importance = module.L(squeezed)
    if hasattr(module, "SE"):
        importance = module.SE(squeezed)
    return importance, kernel


KINDS = (TAM, GlobalTAM, LocalTAM, ReversedTAM, GlobalSE)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("kind", "impl"), [(TAM, "triton"), *((kind, "torch") for kind in KINDS)])
def test_what_is_collected_is_what_the_branches_give(kind: Any, impl: str, training: bool) -> None:
    module = randomised(kind(CHANNELS, FRAMES, impl=impl)).train(training)
    clips = [feature_maps(2), feature_maps(1, torch.channels_last)]
    with inspect.collecting(module, [""]) as seen:
        results = [module(x) for x in clips]
    assert list(seen) == [""]
    for weights, x, y in zip(seen[""], clips, results, strict=True):
        for found, expected in zip(weights, by_hand(module, x), strict=True):
            assert (found is None) == (expected is None)
            if found is not None and expected is not None:
                torch.testing.assert_close(found, expected, check_stride=True)
                assert not found.requires_grad
        when: functional.Excitation = "after" if kind is ReversedTAM else "before"
        again = functional.aggregate(x, *weights, num_segments=FRAMES, excitation=when, impl=impl)
        torch.testing.assert_close(again, y)


@pytest.mark.parametrize("impl", IMPLS)
def test_they_are_the_tensors_that_the_aggregation_is_given(impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, given = small_tanet(impl), list[tuple[Tensor, Tensor]]()
    aggregate: Callable[..., Tensor] = functional.aggregate

    def noted(x: Tensor, importance: Tensor, kernel: Tensor, **options: Any) -> Tensor:
        given.append((importance.clone(), kernel.clone()))
        return aggregate(x, importance, kernel, **options)

    monkeypatch.setattr(functional, "aggregate", noted)
    with torch.inference_mode(), inspect.collecting(network) as seen:
        network(videos(2))
    assert list(seen) == ["layer2.0.tam", "layer4.0.tam"]
    for (weights,), expected in zip(seen.values(), given, strict=True):
        assert weights.importance is not None
        assert torch.equal(weights.importance, expected[0])
        assert torch.equal(weights.kernel, expected[1])
        assert not weights.kernel.is_inference()


def attributes(network: nn.Module) -> list[dict[str, Any]]:
    """All that hangs on a network's modules, shallow copies of hooks and buffers included."""
    return [
        {name: dict(value) if isinstance(value, dict) else value for name, value in vars(module).items()}
        for module in network.modules()
    ]


@pytest.mark.parametrize("impl", IMPLS)
def test_nothing_stays(impl: str) -> None:
    network, clips = small_tanet(impl, stages=("res5",)), videos(1)
    with torch.inference_mode():
        before, expected = attributes(network), network(clips)
        with suppress(ZeroDivisionError), inspect.collecting(network, ["layer4.*"]) as seen:
            network(clips)
            raise ZeroDivisionError
        with pytest.raises(ValueError, match="x: got"), inspect.collecting(network):
            network(clips[:, :, :2])
        assert attributes(network) == before
        assert torch.equal(network(clips), expected)  # by the same kernels
    assert [len(forwards) for forwards in seen.values()] == [1]


def test_what_hung_there_before_hangs_there_again() -> None:
    network, clips = small_tanet("torch"), videos(1)
    tam: Any = network.get_submodule("layer4.0.tam")
    halved = vars(tam)["branches"] = lambda squeezed: tuple(w / 2 for w in TAM.branches(tam, squeezed))
    with inspect.collecting(network) as outer, inspect.collecting(network, ["layer4.0.tam"]) as inner:
        network(clips)
    assert vars(tam)["branches"] is halved
    assert torch.equal(outer["layer4.0.tam"][0].kernel, inner["layer4.0.tam"][0].kernel)
    torch.testing.assert_close(inner["layer4.0.tam"][0].kernel.sum(2), torch.full((1, 128), 0.5))


@torch.no_grad()
def test_a_copy_that_is_made_meanwhile_has_weights_of_its_own() -> None:
    network, clips = small_tanet("torch").eval(), videos(1)
    expected = network(clips)
    with inspect.collecting(network, ["*"]) as seen, inspect.collecting(network):
        average = copy.deepcopy(network)
        average(clips)
    for parameter in network.parameters():
        parameter.normal_()
    assert torch.equal(average(clips), expected)
    assert not any(seen.values())


def test_dtypes() -> None:
    x = feature_maps(2)
    for dtype in (torch.float64, torch.bfloat16):
        with inspect.collecting(tam := TAM(CHANNELS, FRAMES).to(dtype).eval(), ["*"]) as seen:
            tam(x.to(dtype))
        assert [weights.dtype for weights in seen[""][0] if weights is not None] == [torch.float32] * 2


@pytest.mark.parametrize(
    ("system", "backbone", "options", "expected"),
    [
        ("tanet", "resnet50", {}, ["layer3.5.tam", "layer4.2.tam"]),
        ("global", "resnet18", {"stages": ["res2", "res5"]}, ["layer1.1.tam", "layer4.1.tam"]),
        ("tanet_d", "resnet18", {"stages": ["res4"]}, ["layer3.1.tam"]),
        ("tanet", "shufflenet_v2_x0_5", {}, ["stage3.7.tam", "stage4.3.tam"]),
    ],
)
def test_the_last_of_the_last_stages(system: str, backbone: str, options: Any, expected: list[str]) -> None:
    with torch.device("meta"):
        network = create_model(system, backbone, 5, 8, **options)
    assert [name.removeprefix("backbone.") for name in inspect.last_tams(network)] == expected


def test_both_pathways_of_slowfast() -> None:
    with torch.device("meta"):
        network = create_model("slowfast_tam_4x16", num_classes=5)
    slow, fast = ([f"{path}_path.layer{n}.{last}.tam" for n, last in ((3, 5), (4, 2))] for path in ("slow", "fast"))
    assert inspect.last_tams(network) == (*slow, *fast)


def test_errors() -> None:
    network = small_tanet("torch")
    there = "layer2.0.tam, layer4.0.tam"
    for names, kind, message in (
        (["layer3.0.tam"], ValueError, f"names: got 'layer3.0.tam', expected one of {there}"),
        ([], ValueError, f"names: got none, expected one or more of {there}"),
        ("layer2.0.tam", TypeError, "names: got 'layer2.0.tam', expected a sequence of names"),
    ):
        with pytest.raises(kind, match=message), inspect.collecting(network, names):
            pass
    with pytest.raises(ValueError, match="got a Linear without a TAM"), inspect.collecting(nn.Linear(1, 1)):
        pass
    with pytest.raises(TypeError, match="network: got str, expected a Module"):
        inspect.find_tams("network")  # type: ignore[arg-type]
    tam = TAM(CHANNELS, FRAMES).eval()
    with pytest.raises(NotImplementedError, match=r"torch\.func"), inspect.collecting(tam, ["*"]) as seen:
        torch.func.vmap(tam)(feature_maps(2)[None])
    assert seen == {"": []}


def test_what_is_compiled_runs_eagerly_meanwhile() -> None:
    network, x = TAM(CHANNELS, FRAMES).eval(), feature_maps(2)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    for call in (compiled, torch.compile(lambda given: network(given), backend="eager", fullgraph=True)):
        expected = call(x)
        with inspect.collecting(network, ["*"]) as seen:
            assert torch.equal(call(x), network(x))
        assert torch.equal(seen[""][0].kernel, seen[""][1].kernel)
        assert len(seen[""]) == 2
        torch.testing.assert_close(call(x), expected)
    refused = pytest.raises(Exception, match=r"tam_triton\.inspect: collects from eager forwards")
    with refused, inspect.collecting(network, ["*"]) as seen:
        torch.export.export(network, (x,))
    assert seen == {"": []}
    assert torch.compiler.is_compiling() is False
