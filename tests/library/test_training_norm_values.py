"""Of a TAM behind BatchNorm and ReLU in training: what half precision, small weights and parts of tensors give."""

import copy

import pytest
import torch
from torch import Tensor, nn

from tam_triton import TAM
from tests.library.test_training_branches import step
from tests.library.test_training_norm import PROBLEM, Block, agree, counting, features, pair
from tests.support.strategies import Problem
from tests.support.tolerance import assert_close, nudged


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    """Parameters in float32, x in what a convolution under autocast gives."""
    problem = Problem(**{**vars(PROBLEM), "dtype": torch.float32})
    fused, layers = pair(problem=problem)
    exact = copy.deepcopy(layers).double()
    x = features().to(dtype)
    with torch.autocast("cpu", torch.bfloat16), counting() as calls:
        results = [step(block, x) for block in (fused, layers)]
    assert len(calls) == 1
    truth = step(exact, x.double())
    for name, values in truth.items():
        if name.startswith(("y", "d x", "d norm", "norm.running")):
            error = [(result[name].double() - values).abs().max().item() for result in results]
            step_size = torch.finfo(torch.bfloat16).eps * values.abs().max().item()
            assert results[0][name].dtype == results[1][name].dtype
            assert error[0] <= 2 * (error[1] + step_size), name


@pytest.mark.parametrize("gamma", [1.0, 1e-3, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_of_small_weights(dtype: torch.dtype, gamma: float) -> None:
    """No digits are lost to a γ that is small, or 0: nothing is divided by it. Nor to a mean far from 0."""
    problem = Problem(**{**vars(PROBLEM), "dtype": dtype, "H": 5, "W": 5})

    def small(block: Block) -> None:
        with torch.no_grad():
            block.norm.weight.mul_(gamma)

    fused, layers = pair(small, problem)
    exact = copy.deepcopy(layers).double()
    x = (features(problem).double() + 10).to(dtype)
    dy = problem.gradient()

    def gradients(block: Block, x: Tensor) -> dict[str, Tensor]:
        leaf = x.clone().requires_grad_()
        wanted = {"x": leaf, "weight": block.norm.weight, "bias": block.norm.bias}
        found = torch.autograd.grad(block(leaf), list(wanted.values()), dy.to(x.dtype))
        return dict(zip(wanted, found, strict=True))

    results, truths, others = gradients(fused, x), gradients(exact, x.double()), gradients(layers, x)
    for name, result in results.items():

        def again(number: int, name: str = name) -> Tensor:
            return gradients(layers, nudged(x, number))[name]

        assert_close(result, truths[name].numpy(), others[name], again)


def test_parameters_that_are_parts_of_others() -> None:
    def sliced(block: Block) -> None:
        for name in ("weight", "bias"):
            wide = torch.zeros(8, 2).double()
            wide[:, 0] = getattr(block.norm, name).detach()
            setattr(block.norm, name, nn.Parameter(wide[:, 0]))

    fused, layers = pair(sliced)
    with counting() as calls:
        agree(fused, layers, features())
    assert calls


def test_only_x_is_kept_of_its_size() -> None:
    """And memory for A is never asked for."""
    fused, layers = pair()
    saved = []
    for block in (fused, layers):
        large: set[int] = set()
        x = features().requires_grad_()

        def keep(tensor: Tensor, large: set[int] = large, x: Tensor = x) -> Tensor:
            if tensor.numel() == x.numel():
                large.add(tensor.data_ptr())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            block(x)
        saved.append(len(large))
    assert saved[0] == 1 < saved[1]


def test_a_tam_by_itself_is_as_ever() -> None:
    module = TAM(8, 4, impl="triton").double()
    with counting() as calls:
        module(features())
    assert not calls
