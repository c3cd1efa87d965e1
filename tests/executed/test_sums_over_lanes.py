"""Lanes that hold copies of one sum hold the same bits of it; with products fused into the sum they would not."""

from collections.abc import Iterator
from contextlib import ExitStack
from unittest import mock

import pytest
import torch
from triton.runtime import driver

from bench.offline import AbsentDevice
from bench.ptx import Counts, KernelError
from bench.ptx.driver import TARGETS
from bench.ptx.replicas import disagreements
from tests.executed.compiled import Compiled
from tests.executed.mutants import cases
from tests.properties.mutants import WEIGHTS, Mutant, injected

pytestmark = pytest.mark.executed

FUSED = Mutant("products are fused into sums over lanes", WEIGHTS, "* x + 0.0, axis=1)", "* x, axis=1)", "")
# In these a thread has one product of each sum; with several it would round all but the last before lanes meet.
PROBLEMS = [("nchw", (24, 6, 7)), ("nhwc", (64, 14, 14))]


@pytest.fixture(autouse=True, scope="module")
def absent_gpu() -> Iterator[None]:
    """Strides are asked for outside `device`."""
    with mock.patch.object(driver, "_active", AbsentDevice(TARGETS["sm_90"])):
        yield


@pytest.mark.parametrize("target", ["sm_90", "sm_100"])
@pytest.mark.parametrize(("layout", "shape"), PROBLEMS, ids=["nchw", "nhwc"])
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


def test_products_of_halves_are_exact() -> None:
    """Their sums are the same bits with and without fusion, so that execution finds nothing there."""
    (case,) = cases("weight_gradients nchw float16")
    with injected(FUSED):
        fused = case.call(Compiled("sm_90"))
    assert all(torch.equal(a, b) for a, b in zip(case.call(Compiled("sm_90")), fused, strict=True))
