"""torch.fx: networks and TAMs as graphs, plain and by torchvision's feature extraction; the values of eager."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Transformer, symbolic_trace
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.resnet import Bottleneck, ResNet

from tam_triton import TAM
from tam_triton.nets import C2D, insert_tam
from tam_triton.nets.small_resnet import SmallResNet
from tests.support.networks import CLASSES, FRAMES, feature_maps, randomised, small_tam, small_tanet, videos

each_impl = pytest.mark.parametrize("impl", ["triton", "torch"])
each_mode = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def small_c2d(training: bool = False) -> C2D:
    return randomised(C2D(SmallResNet(CLASSES), FRAMES, dropout=0.0)).train(training)


def values(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The result, the gradient of all that has one, and the statistics afterwards."""
    module = copy.deepcopy(module)
    x = x.clone().requires_grad_()
    y = module(x)
    inputs = {"x": x, **dict(module.named_parameters())}
    gradients = torch.autograd.grad(y.square().sum(), list(inputs.values()))
    return {"y": y, **dict(zip(inputs, gradients, strict=True)), **dict(module.named_buffers())}


@each_mode
def test_c2d(training: bool) -> None:
    network = small_c2d(training)
    graph = symbolic_trace(network)
    for x in (videos(2), videos(2).flatten(0, 1)):
        torch.testing.assert_close(values(graph, x), values(network, x), rtol=0, atol=0)


def test_hooks_of_a_tam_run_once() -> None:
    network = small_tanet("torch")
    tam = next(module for module in network.modules() if isinstance(module, TAM))
    tam.register_forward_pre_hook(lambda module, args: (3 * args[0],))
    tam.register_forward_hook(lambda module, args, result: 2 * result)
    graph = symbolic_trace(network)
    graph.graph.lint()
    torch.testing.assert_close(values(graph, videos(1)), values(network, videos(1)), rtol=0, atol=0)


@each_impl
@each_mode
def test_tanet(training: bool, impl: str) -> None:
    """With each TAM as one node, which keeps its backward and follows the graph's mode."""
    network = small_tanet(impl, training).double()
    x = videos(2).double()
    graph = symbolic_trace(network)
    graph.graph.lint()
    tams = [name for name, module in network.named_modules() if isinstance(module, TAM)]
    assert [node.target for node in graph.graph.nodes if str(node.target).endswith(".tam")] == tams
    exact = 0 if impl == "torch" else None  # by kernels a TAM and the BatchNorm before it are one, in a graph two
    torch.testing.assert_close(values(graph, x), values(network, x), rtol=exact, atol=exact)
    with torch.no_grad():
        x = videos(1).double()
        torch.testing.assert_close(graph.eval()(x), network.eval()(x))


@pytest.mark.parametrize(
    "again",
    [symbolic_trace, lambda graph: Transformer(graph).transform(), lambda graph: pickle.loads(pickle.dumps(graph))],
    ids=["traced", "transformed", "pickled"],
)
@pytest.mark.parametrize("of", [small_c2d, lambda: small_tanet("torch"), lambda: small_tam("torch")])
def test_a_graph_is_a_network_again(again: Callable[[GraphModule], nn.Module], of: Callable[[], nn.Module]) -> None:
    network = of()
    x = feature_maps(2) if isinstance(network, TAM) else videos(2)
    graph = symbolic_trace(network)
    torch.testing.assert_close(values(again(graph), x), values(graph, x), rtol=0, atol=0)


@each_impl
@each_mode
def test_a_tam_alone(training: bool, impl: str) -> None:
    module = small_tam(impl, training)
    graph = symbolic_trace(module)
    torch.testing.assert_close(values(graph, feature_maps(2)), values(module, feature_maps(2)))


def test_tam_named_as_a_leaf() -> None:
    network = small_tanet("torch")
    graph = create_feature_extractor(network, ["mean"], tracer_kwargs={"leaf_modules": [TAM]})
    assert torch.equal(graph(videos(1))["mean"], network(videos(1)))


@each_impl
@each_mode
def test_features(training: bool, impl: str) -> None:
    """As torchvision's ResNets give them; in training, the statistics are taken once."""
    network = small_tanet(impl, training)
    expected: dict[str, Tensor] = {}
    twin = copy.deepcopy(network)
    for name, module in twin.named_modules():
        if name in ("layer3", "layer4", "layer2.0.tam"):
            module.register_forward_hook(lambda module, args, result, name=name: expected.update({name: result}))
    twin(videos(2))
    features = create_feature_extractor(network, ["layer2.0.tam", "layer3", "layer4"])
    assert features.training == training
    exact = 0 if impl == "torch" else None
    torch.testing.assert_close(features(videos(2)), expected, rtol=exact, atol=exact)
    torch.testing.assert_close(
        {name: buffer for name, buffer in twin.named_buffers() if name in dict(features.named_buffers())},
        dict(features.named_buffers()), rtol=exact, atol=exact,
    )  # fmt: skip


def test_features_of_bottlenecks() -> None:
    network = C2D(ResNet(Bottleneck, [1, 1, 1, 1]), FRAMES)
    insert_tam(network, FRAMES, impl="torch").eval()
    features = create_feature_extractor(network, {"layer4": "map", "fc": "logits"})(videos(2))
    assert features["map"].shape == (2 * FRAMES, 2048, 1, 1)
    torch.testing.assert_close(features["logits"], network.fc(features["map"].flatten(1)))
    torch.testing.assert_close(features["logits"].unflatten(0, (2, FRAMES)).mean(1), network(videos(2)))


def test_a_graph_refuses_what_its_network_refuses() -> None:
    graph = symbolic_trace(small_tanet("torch"))
    for x in (videos(2).flatten(0, 1)[:5], videos(2)[:, :2], videos(2)[:0], videos(2)[:, :, :2]):
        with pytest.raises(ValueError, match=r"^x: got .*expected \(N, 3, 3, H, W\)"):
            graph(x)
    with pytest.raises(TypeError, match="normalised frames"):
        graph(videos(2).byte())
    with pytest.raises(ValueError, match="num_segments: got 3"):
        symbolic_trace(small_tam("torch"))(feature_maps(2)[:5])
