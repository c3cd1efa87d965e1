"""A TAM that trains behind BatchNorm and ReLU without writing either is the one that trains through these layers.

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
from torch.utils.flop_counter import FlopCounterMode

from tam_triton import functional
from tests.library.test_module import random_tam
from tests.library.test_training_branches import step
from tests.support.changes import global_hook, patched_class
from tests.support.strategies import Problem

PROBLEM = Problem(N=2, T=4, C=8, H=3, W=2, K=3, dtype=torch.float64)


class Block(nn.Module):
    """What a TA-Block does after its convolution."""

    def __init__(
        self, impl: str, problem: Problem = PROBLEM, norm: Callable[[int], nn.Module] = nn.BatchNorm2d
    ) -> None:
        super().__init__()
        self.tam = random_tam(problem.C, problem.T, problem.K, impl=impl)
        self.norm, self.relu = nn.BatchNorm2d(problem.C), nn.ReLU(inplace=True)
        for salt, name in enumerate(("weight", "bias", "running_mean", "running_var")):
            values, drawn = getattr(self.norm, name), problem.tensor(problem.C, salt=80 + salt)
            values.data.copy_(drawn.abs() + 0.5 if name == "running_var" else drawn)
        self.to(problem.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.tam.activated(x, self.norm, self.relu)


Change = Callable[[Block], object]


@contextlib.contextmanager
def counting() -> Iterator[list[Any]]:
    """The calls of the fused path."""
    calls: list[Any] = []
    original = functional.normalize_squeeze_and_aggregate

    def count(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        return original(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "normalize_squeeze_and_aggregate", count)
        yield calls


def pair(change: Change = lambda _: None, problem: Problem = PROBLEM) -> tuple[Block, Block]:
    """The fused one and the one of layers, with the same numbers."""
    fused, layers = (Block(impl, problem) for impl in ("triton", "torch"))
    for block in (fused, layers):
        change(block)
    return fused, layers


def features(problem: Problem = PROBLEM, seed: int = 0) -> Tensor:
    """Of a mean that is not 0."""
    return Problem(**{**vars(problem), "seed": seed}).features() + 1.5


def agree(fused: nn.Module, layers: nn.Module, x: Tensor) -> None:
    torch.testing.assert_close(step(fused, x), step(layers, x), rtol=1e-8, atol=1e-9)


def set_norm(**values: Any) -> Change:
    return lambda block: vars(block.norm).update(values)


def replaced(norm: Callable[[], nn.Module]) -> Change:
    return lambda block: setattr(block, "norm", norm().double())


def frozen(*names: str) -> Change:
    return lambda block: [block.get_parameter(name).requires_grad_(False) for name in names]


def zeros(block: Block) -> None:
    """γ = 0, with and without A = 0; γ < 0; a channel that no value passes."""
    with torch.no_grad():
        block.norm.weight[:4] = torch.tensor([0.0, 0.0, -1.0, 1e-3])
        block.norm.bias[:4] = torch.tensor([0.5, 0.0, 0.2, -2.0])


def other_branches(block: Block) -> None:
    """Not those of a TAM."""

    def branches(squeezed: Tensor) -> tuple[Tensor, Tensor]:
        return squeezed.sigmoid(), squeezed[..., :3].double().softmax(-1)

    vars(block.tam)["branches"] = branches


def frozen_zeros(block: Block) -> None:
    zeros(block)
    block.norm.eval()


def hooked_backward(block: Block) -> None:
    """A ReLU in place would change what such a hook has given."""
    block.norm.register_full_backward_hook(lambda *_: None)
    block.relu = nn.ReLU()


FUSED: dict[str, Change] = {
    "as it was built": lambda _: None,
    "another momentum": set_norm(momentum=0.3),
    "cumulative": set_norm(momentum=None),
    "statistics kept as they are": set_norm(track_running_stats=False),
    "no statistics": replaced(lambda: nn.BatchNorm2d(8, track_running_stats=False)),
    "another eps": set_norm(eps=0.1),
    "frozen γ and β": frozen("norm.weight", "norm.bias"),
    "frozen γ": frozen("norm.weight"),
    "x alone": lambda block: block.requires_grad_(False),
    "γ = 0": zeros,
    "in evaluation": lambda block: block.norm.eval(),
    "in evaluation, γ = 0": frozen_zeros,
    "in evaluation, frozen γ and β": lambda block: (block.norm.eval(), frozen("norm.weight", "norm.bias")(block)),
    "in evaluation, x alone": lambda block: (block.norm.eval(), block.requires_grad_(False)),
    "all in evaluation": lambda block: block.eval(),
    "TAM in evaluation": lambda block: block.tam.eval(),
    "other branches": other_branches,
    "G hooked": lambda block: block.tam.G.register_forward_hook(lambda _, __, output: output * 2),
}
LAYERS: dict[str, Change] = {
    "SyncBatchNorm in evaluation": replaced(lambda: nn.SyncBatchNorm(8).eval()),
    "not affine": replaced(lambda: nn.BatchNorm2d(8, affine=False)),
    "no statistics, in evaluation": replaced(lambda: nn.BatchNorm2d(8, track_running_stats=False).eval()),
    "no count": lambda block: block.norm.register_buffer("num_batches_tracked", None),
    "GroupNorm": replaced(lambda: nn.GroupNorm(2, 8)),
    "norm hooked": lambda block: block.norm.register_forward_hook(lambda _, __, output: output * 2),
    "hook of a backward": hooked_backward,
    "ReLU hooked": lambda block: block.relu.register_forward_hook(lambda _, __, output: output * 2),
    "TAM hooked": lambda block: block.tam.register_forward_hook(lambda _, __, output: output * 2),
    "another activation": lambda block: setattr(block, "relu", nn.LeakyReLU()),
    "compiled norm": lambda block: block.norm.compile(backend="eager"),
    "parametrized": lambda block: nn.utils.parametrizations.weight_norm(block.norm, dim=0),
    "patched forward": lambda block: setattr(block.norm, "forward", lambda x: x * 2),
    "patched TAM": lambda block: setattr(block.tam, "compute", lambda x: x * 2),
}


@pytest.mark.parametrize("name", FUSED)
def test_every_way_of_batch_norm(name: str) -> None:
    fused, layers = pair(FUSED[name])
    with counting() as calls:
        for seed in range(2):
            agree(fused, layers, features(seed=seed))
    assert len(calls) == 2


@pytest.mark.parametrize("name", LAYERS)
def test_through_the_layers(name: str) -> None:
    fused, layers = pair(LAYERS[name])
    with counting() as calls:
        agree(fused, layers, features())
    assert not calls


@pytest.mark.parametrize("around", [global_hook, patched_class])
def test_changes_of_all_modules(around: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
    fused, layers = pair()
    with around(), counting() as calls:
        agree(fused, layers, features())
    assert bool(calls) == (around is patched_class)  # that one patches a layer of G and L


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "transposed"])
def test_layouts(layout: str) -> None:
    problem = Problem(**{**vars(PROBLEM), "layout": layout})
    fused, layers = pair()
    with counting() as calls:
        agree(fused, layers, problem.features())
    assert calls


def test_the_gradients_layout_is_that_of_x() -> None:
    fused, _ = pair()
    for memory in (torch.contiguous_format, torch.channels_last):
        x = features().contiguous(memory_format=memory).requires_grad_()
        fused(x).sum().backward()
        assert x.grad is not None
        assert x.grad.is_contiguous(memory_format=memory)


def test_ten_steps_of_a_network() -> None:
    """Weights, momenta and running statistics stay equal to rounding."""

    def trained(impl: str) -> dict[str, Tensor]:
        torch.manual_seed(0)
        blocks = [Block(impl) for _ in range(2)]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)]
        network = nn.Sequential(nn.Conv2d(3, 8, 3), blocks[0], nn.Conv2d(8, 8, 1), blocks[1], *head).double()
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


def test_a_single_value_has_no_variance() -> None:
    problem = Problem(N=1, T=1, C=8, H=1, W=1, K=3, dtype=torch.float64)
    for block in pair(problem=problem):
        block.tam.eval()
        with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
            block(features(problem))


def test_without_gradients() -> None:
    """The statistics move all the same."""
    fused, layers = pair()
    with torch.no_grad(), counting() as calls:
        torch.testing.assert_close(fused(features()), layers(features()))
    assert calls
    torch.testing.assert_close(fused.state_dict(), layers.state_dict())


def test_x_without_gradient() -> None:
    fused, layers = pair()
    for block in (fused, layers):
        block(features()).square().sum().backward()
    for one, other in zip(fused.parameters(), layers.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("training", [True, False], ids=["batch", "frozen"])
def test_derivatives_of_derivatives(training: bool) -> None:
    problem = Problem(N=2, T=2, C=4, H=2, W=1, K=3, dtype=torch.float64)
    block = pair(problem=problem)[0]
    block.norm.train(training)
    x = features(problem).requires_grad_()
    names = [name for name, _ in block.named_parameters()]

    def of_all(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(block, dict(zip(names, values, strict=True)), (x,))

    with counting() as calls:
        assert torch.autograd.gradcheck(of_all, (x, *block.parameters()), fast_mode=True)
        assert torch.autograd.gradgradcheck(of_all, (x, *block.parameters()), fast_mode=True)
    assert calls


@pytest.mark.parametrize("training", [True, False], ids=["batch", "frozen"])
def test_gradients_that_have_derivatives_are_the_same(training: bool) -> None:
    """V and Θ come from x too: their part must not be counted twice."""
    block = pair()[0]
    block.norm.train(training)
    results = []
    for create_graph in (False, True):
        x = features().requires_grad_()
        loss = block(x).square().sum()
        results.append(torch.autograd.grad(loss, (x, *block.parameters()), create_graph=create_graph))
    torch.testing.assert_close(*results)


def test_batched_gradients() -> None:
    results = []
    for block in pair():
        x = features().requires_grad_()
        y = block(x)
        several = torch.stack([y.detach().sin(), y.detach().cos()])
        results.append(torch.autograd.grad(y, (x, *block.parameters()), several, is_grads_batched=True))
    torch.testing.assert_close(*results)


def test_transforms_go_through_the_layers() -> None:
    fused, layers = (block.eval() for block in pair())
    tangent = features(seed=1)
    with counting() as calls:
        results = [torch.func.jvp(block, (features(),), (tangent,)) for block in (fused, layers)]
        gradients = [torch.func.grad(lambda x, b=block: b(x).square().sum())(features()) for block in (fused, layers)]
    assert not calls
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed(reentrant: bool) -> None:
    """The forward runs twice, and counts twice, as the layers' does."""
    fused, layers = pair()
    results = []
    for block in (fused, layers):
        x = features().requires_grad_()
        y = checkpoint(block, x, use_reentrant=reentrant)
        results.append([*torch.autograd.grad(y.sum(), x)] if not reentrant else [y.sum().backward(), x.grad][1:])
    torch.testing.assert_close(*results)
    torch.testing.assert_close(fused.state_dict(), layers.state_dict())
    assert fused.get_buffer("norm.num_batches_tracked") == 2


@pytest.mark.parametrize("training", [True, False], ids=["batch", "frozen"])
def test_compiled(training: bool) -> None:
    torch.compiler.reset()
    fused, layers = pair(lambda block: block.norm.train(training))
    compiled = torch.compile(copy.deepcopy(fused), fullgraph=True, backend="aot_eager")
    for _ in range(2):
        expected, actual = (step(one, features()) for one in (layers, cast(nn.Module, compiled)))
        torch.testing.assert_close(
            {name.replace("_orig_mod.", ""): value for name, value in actual.items()}, expected, rtol=1e-8, atol=1e-9
        )


def test_exported_programs_have_the_layers() -> None:
    """So they can be trained, as before."""
    fused, _ = pair(lambda block: block.eval())
    x = features().requires_grad_()
    with counting() as calls:
        program = torch.export.export(fused, (x,))
    assert not calls
    results = []
    for forward in (fused, program.module()):
        y = forward(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), (x, *forward.parameters()))))
    torch.testing.assert_close(*results)


def test_a_flop_counter_counts_the_layers() -> None:
    fused, layers = pair()
    counts = []
    with counting() as calls:
        for block in (fused, layers):
            with FlopCounterMode(display=False) as counter:
                block(features().requires_grad_()).sum().backward()
            counts.append(counter.get_total_flops())
    assert not calls
    assert counts[0] == counts[1] > 0
