"""A TAM that trains through the fused branches is the one that trains through its layers: every way of a BatchNorm.

`impl="torch"` has the layers.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tam_triton import TAM, functional, kernels
from tam_triton.layout import dense_weights
from tam_triton.temporal import folding
from tests.library.test_module import random_tam
from tests.support.changes import CHANGES, global_hook, patched_class
from tests.support.strategies import Problem
from tests.support.tolerance import assert_close, nudged

PROBLEM = Problem(N=2, T=4, C=16, H=3, W=2, K=3, dtype=torch.float64)
Change = Callable[[TAM], object]


@contextlib.contextmanager
def counting() -> Iterator[list[Any]]:
    """The calls of the fused branches."""
    calls: list[Any] = []
    original = functional.training_branches

    def count(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        return original(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "training_branches", count)
        yield calls


def pair(change: Change = lambda _: None, problem: Problem = PROBLEM) -> tuple[TAM, TAM]:
    """The fused one and the one of layers, with the same numbers."""
    torch.manual_seed(0)
    fused = random_tam(problem.C, problem.T, problem.K, impl="triton").to(problem.dtype)
    change(fused)
    layers = copy.deepcopy(fused)
    layers.impl = "torch"
    return fused, layers


def step(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What a forward and a backward leave: y, every gradient, every buffer."""
    leaf = x.clone().requires_grad_()
    module.zero_grad()
    y = module(leaf)
    y.square().sum().backward()
    gradients = {f"d {name}": value.grad for name, value in (("x", leaf), *module.named_parameters())}
    found = {"y": y.detach(), **{name: one for name, one in gradients.items() if one is not None}}
    return found | {name: buffer.clone() for name, buffer in module.named_buffers()}


def agree(fused: nn.Module, layers: nn.Module, x: Tensor) -> None:
    torch.testing.assert_close(step(fused, x), step(layers, x), rtol=1e-9, atol=1e-10)


def norms(module: TAM) -> list[Any]:
    return [module.G[1], module.L[1]]


def set_norms(**values: Any) -> Change:
    return lambda module: [vars(norm).update(values) for norm in norms(module)]


def without_statistics(module: TAM) -> None:
    for branch in (module.G, module.L):
        old: Any = branch[1]
        branch[1] = nn.BatchNorm1d(old.num_features, track_running_stats=False).to(old.weight.dtype)


def frozen(*names: str) -> Change:
    return lambda module: [module.get_parameter(name).requires_grad_(False) for name in names]


FUSED: dict[str, Change] = {
    "as it was built": lambda _: None,
    "another momentum": set_norms(momentum=0.3),
    "two momenta": lambda module: setattr(module.L[1], "momentum", 0.5),
    "cumulative": set_norms(momentum=None),
    "statistics kept as they are": set_norms(track_running_stats=False),
    "no statistics": without_statistics,
    "another eps": set_norms(eps=0.1),
    "frozen norms": frozen("G.1.weight", "G.1.bias", "L.1.weight", "L.1.bias"),
    "a frozen branch": frozen("G.0.weight", "G.1.weight", "G.1.bias", "G.3.weight"),
    "x alone": lambda module: module.requires_grad_(False),
    "zeros": lambda module: [nn.init.zeros_(norm.weight) for norm in norms(module)],
}
LAYERS: dict[str, Change] = {
    "G frozen in evaluation": lambda module: module.G.eval(),
    "L's norm in evaluation": lambda module: module.L[1].eval(),
    "not affine": lambda module: module.G.__setitem__(1, nn.BatchNorm1d(8, affine=False).double()),
    "hook of a backward": lambda module: module.L[0].register_full_backward_hook(lambda *_: None),
    "no count": lambda module: [norm.register_buffer("num_batches_tracked", None) for norm in norms(module)],
    "compiled branch": lambda module: module.G.compile(backend="eager"),
}


@pytest.mark.parametrize("name", FUSED)
def test_every_way_of_batch_norm(name: str) -> None:
    fused, layers = pair(FUSED[name])
    with counting() as calls:
        for seed in range(3):
            agree(fused, layers, Problem(**{**vars(PROBLEM), "seed": seed}).features())
    assert len(calls) == 3


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's own look
@pytest.mark.parametrize("name", LAYERS)
def test_through_the_layers(name: str) -> None:
    fused, layers = pair()
    with counting() as calls:
        for module in (fused, layers):
            LAYERS[name](module)
        agree(fused, layers, PROBLEM.features())
    assert not calls


STILL_FUSED = (
    *("G.0: no Parameter", "G.1: training", "L.1: training", "L.1: no statistics"),
    *("branches: subclass", "branches: on the object"),
)


@pytest.mark.parametrize(
    "name", [name for name in CHANGES if name not in ("G.all: dynamic quantisation", "G.1: no eps")]
)
def test_a_change_is_noticed(name: str) -> None:
    """Results are those of the layers; kernels take their place only where nothing but numbers changed."""
    fused, layers = (random_tam(16, 4, impl=impl) for impl in ("triton", "torch"))
    for module in (fused, layers):
        torch.manual_seed(0)
        CHANGES[name](module)
    x = Problem(**{**vars(PROBLEM), "dtype": torch.float32}).features()
    with counting() as calls:
        y = fused(x)
    torch.testing.assert_close(y, layers(x), rtol=1e-4, atol=1e-5)
    assert bool(calls) == (name in STILL_FUSED)


@pytest.mark.parametrize("around", [global_hook, patched_class])
def test_changes_of_all_modules(around: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
    fused, layers = pair()
    with around(), counting() as calls:
        agree(fused, layers, PROBLEM.features())
    assert not calls


def test_ten_steps_of_a_network() -> None:
    """Weights, momenta and running statistics stay equal to rounding."""

    def trained(impl: str) -> dict[str, Tensor]:
        torch.manual_seed(0)
        tams = [TAM(8, 4, impl=impl) for _ in range(2)]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)]
        network = nn.Sequential(nn.Conv2d(3, 8, 3), tams[0], nn.ReLU(), nn.Conv2d(8, 8, 1), tams[1], *head).double()
        optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
        for _ in range(10):
            frames, labels = torch.randn(8, 3, 5, 5).double(), torch.randint(3, (8,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(frames), labels).backward()
            optimizer.step()
        return network.state_dict()

    with counting() as calls:
        fused = trained("triton")
    assert len(calls) == 20
    torch.testing.assert_close(fused, trained("torch"), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("channels_last", [False, True])
def test_weights_lie_as_the_map_does(channels_last: bool) -> None:
    """V, Θ and dX̂ as its kernels read them, dV and dΘ in either layout: no value depends on it."""
    squeezed = PROBLEM.tensor(3, 16, 4)
    trained = folding.fold_training(squeezed, (module := pair()[0]).G, module.L, 3)
    assert trained is not None
    given: Any = [one.detach() for one in (squeezed, *trained.global_branch, *trained.local_branch)]

    def results(channels_last: bool, of_gradients: bool) -> tuple[Tensor, ...]:
        v, theta, projected, *statistics = forward = kernels.training_branches(*[*given, 1e-5, channels_last])
        gradients = (dense_weights(PROBLEM.tensor(*one.shape, salt=1), of_gradients) for one in (v, theta))
        arguments: list[Any] = [*gradients, given[0], v, theta, projected, *given[1:], *statistics, channels_last]
        return *forward, *kernels.branch_gradients(*arguments)

    expected = results(False, False)
    for of_gradients in (False, True):
        v, theta, *others = ours = results(channels_last, of_gradients)
        for result, value in zip(ours, expected, strict=True):
            assert torch.equal(result, value)
        for one in (v, theta, others[3]):
            assert (one.mT if channels_last else one).is_contiguous()


def test_a_single_value_has_no_variance() -> None:
    fused, layers = pair(problem=Problem(**{**vars(PROBLEM), "T": 1}))
    for module in (fused, layers):
        with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
            module(torch.randn(1, 16, 3, 3, dtype=torch.float64))


def test_without_gradients() -> None:
    """The statistics move all the same, as where they are estimated anew."""
    fused, layers = pair()
    with torch.no_grad(), counting() as calls:
        torch.testing.assert_close(fused(PROBLEM.features()), layers(PROBLEM.features()))
    assert calls
    torch.testing.assert_close(fused.state_dict(), layers.state_dict())


def test_derivatives_of_derivatives() -> None:
    problem = Problem(N=2, T=2, C=4, H=2, W=1, K=3, dtype=torch.float64)
    module = pair(problem=problem)[0]
    x = problem.features().requires_grad_()
    parameters = list(module.parameters())

    def of_all(x: Tensor, *values: Tensor) -> Tensor:
        names = [name for name, _ in module.named_parameters()]
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    with counting() as calls:
        assert torch.autograd.gradcheck(of_all, (x, *parameters), fast_mode=True)
        assert torch.autograd.gradgradcheck(of_all, (x, *parameters), fast_mode=True)
    assert calls


def test_a_parameter_of_both_branches_gets_its_gradient_once() -> None:
    """Also where a graph of gradients is wanted, in which each place would get all of it."""
    found = []
    problem = Problem(N=1, T=2, C=16, H=2, W=1, K=3, dtype=torch.float64)  # αT = C/β
    for tam in pair(problem=problem):
        tam.L.get_submodule("1").weight = tam.G.get_submodule("1").weight
        x = problem.features().requires_grad_()
        weight = tam.G.get_parameter("1.weight")
        of_first = torch.autograd.grad(tam(x).square().sum(), (x, weight), create_graph=True)
        found.append([*of_first, *torch.autograd.grad([one.square().sum() for one in of_first], (x, weight))])
    for fused, layers in zip(*found, strict=True):
        torch.testing.assert_close(fused, layers)


def test_batched_gradients() -> None:
    fused, layers = pair()
    results = []
    for module in (fused, layers):
        x = PROBLEM.features().requires_grad_()
        y = module(x)
        several = torch.stack([y.detach().sin(), y.detach().cos()])
        results.append(torch.autograd.grad(y, (x, *module.parameters()), several, is_grads_batched=True))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed(reentrant: bool) -> None:
    """The forward runs twice, and counts twice, as the layers' does."""
    fused, layers = pair()
    results = []
    for module in (fused, layers):
        x = PROBLEM.features().requires_grad_()
        y = checkpoint(module, x, use_reentrant=reentrant)
        results.append([*torch.autograd.grad(y.sum(), x)] if not reentrant else [y.sum().backward(), x.grad][1:])
    torch.testing.assert_close(*results)
    torch.testing.assert_close(fused.state_dict(), layers.state_dict())
    assert fused.get_buffer("G.1.num_batches_tracked") == 2


def test_compiled() -> None:
    torch.compiler.reset()
    fused, layers = pair()
    compiled = torch.compile(copy.deepcopy(fused), fullgraph=True, backend="aot_eager")
    for _ in range(2):
        expected, actual = (step(one, PROBLEM.features()) for one in (layers, cast(nn.Module, compiled)))
        torch.testing.assert_close(
            {name.replace("_orig_mod.", ""): value for name, value in actual.items()}, expected, rtol=1e-9, atol=1e-10
        )


@pytest.mark.parametrize("mean", [0.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_large_mean_costs_no_digits(dtype: torch.dtype, mean: float) -> None:
    """Of X̂, and so of what enters both BatchNorms."""
    fused, _ = pair(problem=Problem(**{**vars(PROBLEM), "dtype": dtype}))
    squeezed = (PROBLEM.tensor(8, 16, 4) + mean).to(dtype)
    exact = copy.deepcopy(fused).double()
    exact.impl = "torch"
    layers = copy.deepcopy(fused)
    layers.impl = "torch"
    with torch.no_grad():
        results, truths, plain = (
            one.branches(squeezed.to(d)) for one, d in ((fused, dtype), (exact, torch.float64), (layers, dtype))
        )
        for i, (result, truth, others) in enumerate(zip(results, truths, plain, strict=True)):

            def again(number: int, i: int = i) -> Tensor:
                return layers.branches(nudged(squeezed, number))[i]

            assert_close(result, truth.numpy(), others, again)
