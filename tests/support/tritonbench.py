"""As much of tritonbench (meta-pytorch/tritonbench) as its operators see: registration by their modules' names, modes.

Names and rules are of its `tritonbench/utils/triton_op.py` of August 2025; what it measures is left out.
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

PACKAGE = "tritonbench.operators"
BENCHMARKS: dict[str, dict[str, bool]] = {}
"""Of each operator: its candidates, and whether each is the baseline."""
METRICS: dict[str, list[str]] = {}


class Mode(Enum):
    FWD = "fwd"
    BWD = "bwd"
    FWD_BWD = "fwd_bwd"
    FWD_NO_GRAD = "fwd_no_grad"


class BenchmarkOperatorMetrics(Namespace):
    """What was measured of one candidate."""


class BenchmarkOperator:
    DEFAULT_PRECISION = "bypass"
    is_compute_bound = True

    def __init__(self, tb_args: Namespace, extra_args: list[str] | None = None) -> None:
        self.mode, self.device = Mode(tb_args.mode), "cpu"
        self.requires_grad = self.mode != Mode.FWD_NO_GRAD
        self.dtype: torch.dtype | None = tb_args.dtype
        self.example_inputs: Any = None

    def calls(self) -> dict[str, Callable[[], Any]]:
        """What it would time of each candidate, for the example inputs."""
        return {name: self._call(name) for name in BENCHMARKS[operator_of(type(self).__module__)]}

    def _call(self, name: str) -> Callable[[], Any]:
        forward = getattr(self, name)(*self.example_inputs)
        call = forward
        if self.mode in (Mode.BWD, Mode.FWD_BWD):
            backward = self.get_bwd_fn(forward)  # type: ignore[attr-defined]
            call = backward if self.mode == Mode.BWD else lambda: (forward(), backward())
        elif self.mode == Mode.FWD_NO_GRAD:

            def call() -> None:
                with torch.no_grad():
                    forward()

        call._name = name
        return call


def operator_of(module: str) -> str:
    assert module.startswith(f"{PACKAGE}."), module
    return module.removeprefix(f"{PACKAGE}.").split(".")[0]


def register_benchmark(*, baseline: bool = False) -> Callable[[Any], Any]:
    def register(function: Any) -> Any:
        BENCHMARKS.setdefault(operator_of(function.__module__), {})[function.__name__] = baseline
        return function

    return register


def register_metric() -> Callable[[Any], Any]:
    def register(function: Any) -> Any:
        METRICS.setdefault(operator_of(function.__module__), []).append(function.__name__)
        return function

    return register


@contextmanager
def standing_in(operators: Path) -> Iterator[None]:
    """While this is entered, `tritonbench.operators` is the folder `operators`."""
    before = dict(sys.modules)
    names = ("tritonbench", "tritonbench.utils", "tritonbench.utils.triton_op", PACKAGE)
    modules = {name: ModuleType(name) for name in names}
    for name in names:
        modules[name].__path__ = []
    modules[PACKAGE].__path__ = [str(operators)]
    for kind in (Mode, BenchmarkOperator, BenchmarkOperatorMetrics, register_benchmark, register_metric):
        setattr(modules["tritonbench.utils.triton_op"], kind.__name__, kind)
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name not in before and "tritonbench" in name]:
            del sys.modules[name]
