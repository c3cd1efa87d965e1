"""Lanes that hold copies of one sum hold the same bits of it; with products fused into the sum they would not.

The kernels have no products there: a thread has added its own up before lanes meet. Here they are given some.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from unittest import mock

import pytest
from triton.runtime import driver

from bench.offline import AbsentDevice
from bench.ptx import Counts, KernelError
from bench.ptx.replicas import disagreements
from tests.executed.compiled import Compiled
from tests.executed.mutants import cases
from tests.properties.injection import Mutant, injected
from tests.properties.mutants import WEIGHTS

pytestmark = pytest.mark.executed

FUSED = Mutant(
    "products are fused into sums over lanes", WEIGHTS,
    "columns[0].shape[1], GROUP]), axis=1)", "columns[0].shape[1], GROUP]) * 1.1, axis=1)", "",
)  # fmt: skip
PROBLEMS = [("nchw", (24, 6, 7)), ("nchw", (64, 14, 14))]


@pytest.fixture(autouse=True, scope="module")
def absent_gpu() -> Iterator[None]:
    """Strides are asked for outside `device`."""
    with mock.patch.object(driver, "_active", AbsentDevice("sm_90")):
        yield


@pytest.mark.parametrize("target", ["sm_90", "sm_100"])
@pytest.mark.parametrize(("layout", "shape"), PROBLEMS, ids=["narrow", "wide"])
def test_fusion_is_seen(layout: str, shape: tuple[int, int, int], target: str) -> None:
    """By execution and without it; and the kernel as it is passes both."""
    (case,) = cases(f"weight_gradients {layout} float32", shape=shape)
    kept: list[str] = []

    def keep(ptx: str, *_: object) -> Counts:
        kept.append(ptx)
        return Counts()

    for fused in (False, True):
        kept.clear()
        with ExitStack() as stack:
            if fused:
                stack.enter_context(injected(FUSED))
            case.call(Compiled(target, keep))
            assert bool(disagreements(kept[0])) == fused
            if fused:
                stack.enter_context(pytest.raises(KernelError, match="replicated store"))
            case.call(Compiled(target))
