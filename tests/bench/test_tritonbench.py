"""The operators for tritonbench, on a stand-in for it: what they register, compute, compare and count."""

import importlib
from argparse import Namespace
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._functorch import config

import bench
import reference
import tam_triton
from tests.support import tritonbench

OPERATORS = Path(bench.__file__).parent / "tritonbench"
NAMES = sorted(path.parent.name for path in OPERATORS.glob("*/operator.py"))
CANDIDATES = {"eager": True, "compiled_eager": False, "tam_triton": False}
each_operator = pytest.mark.parametrize("name", NAMES)
each_mode = pytest.mark.parametrize("mode", [mode.value for mode in tritonbench.Mode])
SMALL = ["--clips", "2", "--segments", "4", "--shapes", "8x3x2,4x5x5"]


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    with tritonbench.standing_in(OPERATORS):
        yield {name: importlib.import_module(f"{tritonbench.PACKAGE}.{name}") for name in NAMES}


@pytest.fixture(autouse=True)
def quickly_compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch.compiler.reset()
    monkeypatch.setattr("torch.compile", partial(torch.compile, backend="aot_eager"))
    with config.patch(donated_buffer=True):  # the operators change it
        yield
    torch.compiler.reset()


def operator(module: ModuleType, mode: str = "fwd", dtype: torch.dtype | None = None, options: Any = SMALL) -> Any:
    return module.Operator(Namespace(mode=mode, dtype=dtype), options)


@each_operator
def test_what_is_registered(name: str, modules: dict[str, ModuleType]) -> None:
    assert tritonbench.BENCHMARKS[name] == CANDIDATES
    assert tritonbench.METRICS[name] == ["gbps"]
    assert not modules[name].Operator.is_compute_bound


@each_operator
@pytest.mark.parametrize(
    ("mode", "layout"),
    [("fwd", "nchw"), ("bwd", "nchw"), ("fwd_bwd", "channels_last"), ("fwd_no_grad", "channels_last")],
)
def test_candidates_agree(name: str, mode: str, layout: str, modules: dict[str, ModuleType]) -> None:
    made = operator(modules[name], mode, options=[*SMALL, "--layout", layout])
    shapes = []
    for inputs in made.get_input_iter():
        made.example_inputs = inputs
        shapes.append(made.get_x_val(made.example_inputs))
        calls = made.calls()
        assert all(made.accuracy(call, calls["eager"]) for call in calls.values())
        for _ in range(2):  # it times each many times
            results = {name: call() for name, call in calls.items()}
        if mode == "bwd":
            assert [len(result) for result in results.values()] == [len(made.example_inputs)] * 3
        assert all(tensor.requires_grad == (mode != "fwd_no_grad") for tensor in made.example_inputs)
    assert shapes == ["8×8×3×2", "8×4×5×5"]


def test_the_candidates_are_the_operators(modules: dict[str, ModuleType]) -> None:
    """Against the reference."""
    made = operator(modules["tam_aggregate"], dtype=torch.float64)
    made.example_inputs = next(made.get_input_iter())
    x, importance, kernel = (tensor.detach().numpy() for tensor in made.example_inputs)
    expected = reference.excite_and_aggregate(x.reshape(2, 4, *x.shape[1:]), importance, kernel).reshape(x.shape)
    for call in made.calls().values():
        torch.testing.assert_close(call().detach(), torch.from_numpy(expected))
    made = operator(modules["tam_squeeze"], dtype=torch.float64)
    made.example_inputs = next(made.get_input_iter())
    x = made.example_inputs[0].detach().numpy()
    expected = reference.squeeze(x.reshape(2, 4, *x.shape[1:]))
    for call in made.calls().values():
        torch.testing.assert_close(call().detach(), torch.from_numpy(expected))


@each_operator
@each_mode
def test_a_wrong_candidate_is_noticed(
    name: str, mode: str, modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = operator(modules[name], mode, torch.bfloat16)
    made.example_inputs = next(made.get_input_iter())
    calls = made.calls()
    assert made.accuracy(calls["tam_triton"], calls["eager"])
    function = name.removeprefix("tam_")
    true = getattr(tam_triton, function)
    monkeypatch.setattr(tam_triton, function, lambda *args, **options: true(*args, **options) * 1.5)
    calls = made.calls()
    assert not made.accuracy(calls["tam_triton"], calls["eager"])


@pytest.mark.parametrize(("name", "mode", "passes"), [
    ("tam_aggregate", "fwd", 2), ("tam_aggregate", "bwd", 4), ("tam_aggregate", "fwd_bwd", 6),
    ("tam_aggregate", "fwd_no_grad", 2), ("tam_squeeze", "fwd", 1), ("tam_squeeze", "bwd", 1),
    ("tam_squeeze", "fwd_bwd", 2),
])  # fmt: skip
def test_bandwidth(name: str, mode: str, passes: int, modules: dict[str, ModuleType]) -> None:
    """In GB/s, of a time in milliseconds."""
    made = operator(modules[name], mode)
    made.example_inputs = next(made.get_input_iter())
    x: Tensor = made.example_inputs[0]
    metrics = tritonbench.BenchmarkOperatorMetrics(latency=0.5)
    assert made.gbps(None, made.example_inputs, metrics) == pytest.approx(passes * x.nbytes / 0.0005 / 1e9)


def test_shapes_are_tanet50s(modules: dict[str, ModuleType]) -> None:
    made = operator(modules["tam_squeeze"], options=["--clips", "1", "--segments", "1", "--pixels", "32"])
    sizes = [tuple(x.shape[1:]) for (x,) in made.get_input_iter()]
    assert sizes == [(64, 8, 8), (128, 8, 8), (128, 4, 4), (256, 4, 4), (256, 2, 2), (512, 2, 2), (512, 1, 1)]
    assert all(x.dtype == torch.float32 for (x,) in made.get_input_iter())
    with pytest.raises(SystemExit):
        operator(modules["tam_squeeze"], options=["--layout", "nhwc"])
    with pytest.raises(ValueError, match="shapes: got '8x8'"):
        next(operator(modules["tam_squeeze"], options=["--shapes", "8x8"]).get_input_iter())
