"""What the library must not depend on: the default device, other threads, its own reading of TRITON_INTERPRET."""

import ast
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

import tam_triton
from tests.support.networks import feature_maps, small_tam, small_tanet, videos
from tests.support.operators import Operator, each_backend, each_operator
from tests.support.strategies import DENSE, Problem

SOURCES = sorted(Path(tam_triton.__file__).parent.rglob("*.py"))
FACTORIES = set(torch.utils._device._device_constructors())  # the calls that a default device changes
each_impl = pytest.mark.parametrize("impl", ["triton", "torch"])


@each_backend
@each_operator
@pytest.mark.parametrize("memory", DENSE)
def test_the_default_device_is_not_asked(backend: ModuleType, operator: Operator, memory: str) -> None:
    for dtype in set(operator.dtypes) - {torch.float16}:
        arguments = operator.arguments(Problem(N=2, T=4, C=5, H=3, W=3, K=3, layout=memory, dtype=dtype))
        expected = operator.call(backend, arguments)
        with torch.device("meta"):
            results = operator.call(backend, arguments)
        for result, value in zip(results, expected, strict=True):
            assert torch.equal(result, value)


@each_impl
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_nor_by_modules(impl: str, training: bool) -> None:
    module, network = small_tam(impl, training), small_tanet(impl, training)

    def results() -> list[Tensor]:
        torch.manual_seed(0)  # of dropout
        x, frames = feature_maps(2).requires_grad_(training), videos(2)
        with torch.device("meta"), torch.set_grad_enabled(training):
            y, logits = module(x), network(frames)
            gradients = torch.autograd.grad(y.square().sum(), x) if training else ()
        return [y.detach(), logits.detach(), *gradients]

    for result, again in zip(results(), results(), strict=True):
        assert result.device.type == "cpu"
        assert torch.equal(result, again)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_every_factory_call_names_its_device(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            if (
                isinstance(owner, ast.Name)
                and owner.id == "torch"
                and getattr(torch, node.func.attr, None) in FACTORIES
            ):
                assert "device" in {keyword.arg for keyword in node.keywords}, f"{path}:{node.lineno}"


@pytest.mark.parametrize("value", ["1", "ON", "yes", "0", "false", "Off", "no", "", "2"])
def test_the_variable_means_what_it_means_to_triton(value: str) -> None:
    script = "from tam_triton import ops; from triton import knobs; print(ops.INTERPRETED, knobs.runtime.interpret)"
    environment = os.environ | {"TRITON_INTERPRET": value}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    ours, triton = done.stdout.split()
    assert ours == triton == str(value in ("1", "ON", "yes"))


def test_interpreted_kernels_run_in_several_threads() -> None:
    """The interpreter has one state for all of them: launches wait for one another."""
    module, x = small_tam("triton"), feature_maps(2)

    def forward(_: int) -> Tensor:
        with torch.no_grad():
            return module(x)

    expected = forward(0)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(y, expected) for y in pool.map(forward, range(12)))
