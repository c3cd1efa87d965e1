"""Every kernel where it is launched beside what its PTX means: values, and time where there is a GPU to take it.

`pytest -m gpu` prints a line for each. Without a GPU, the same checks run on the stand-in, true and with faults.
"""

from collections.abc import Callable, Sequence

import pytest
import torch

from bench.predict import described
from bench.ptx.driver import Argument, Execute, device
from bench.ptx.machine import execute
from bench.ptx.memory import Counts, Region
from bench.ptx.recorded import Comparison, Recorded, compare, recording
from bench.sm import devices
from bench.timing import Time, interleaved
from tam_triton import kernels
from tests.support.operators import OPERATORS, Operator, each_operator, each_tensor
from tests.support.strategies import Problem

Report = Callable[[str], None]

GPU = "cuda:0"
ROUNDS = 20

each_layout = pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
each_dtype = pytest.mark.parametrize(
    ("operator", "dtype"), [(operator, dtype) for operator in OPERATORS for dtype in operator.dtypes], ids=str
)
# Two clips; rows of pixels that vectors fit and that they do not; a last block that is not full.
each_size = pytest.mark.parametrize("size", [8, 7])
# Of TANet-50: 8 clips of 8 frames, in its first and its last stage.
each_shape = pytest.mark.parametrize(("channels", "size"), [(64, 56), (512, 7)])


def launched(operator: Operator, problem: Problem) -> list[Recorded]:
    """What an operator launches on the GPU, recorded."""
    arguments = each_tensor(lambda tensor: tensor.to(GPU), operator.arguments(problem))
    with recording() as recorded:
        operator.call(kernels, arguments)
    return recorded


def line(operator: Operator, problem: Problem, kernel: str, *found: object) -> str:
    """One of the report."""
    shape = f"{problem.N}×{problem.T}×{problem.C}×{problem.H}×{problem.W}"
    dtype = str(problem.dtype).removeprefix("torch.")
    return f"{kernel:24} {operator!s:32} {shape:13} {dtype:8} {problem.layout:13} {', '.join(map(str, found))}"


def check(operator: Operator, problem: Problem, report: Report) -> list[Comparison]:
    """Executed = measured, for all that the operator launches."""
    recorded = launched(operator, problem)
    assert recorded
    comparisons = [compare(one) for one in recorded]
    lines = [line(operator, problem, one.launch.kernel, c) for one, c in zip(recorded, comparisons, strict=True)]
    for text in lines:
        report(text)
    assert all(one.agrees for one in comparisons), "\n".join(lines)
    return comparisons


@pytest.mark.gpu
@each_layout
@each_size
@each_dtype
def test_values_on_a_gpu(operator: Operator, dtype: torch.dtype, size: int, memory: str, report: Report) -> None:
    check(operator, Problem(N=2, T=4, C=24, H=size, W=size, K=3, layout=memory, dtype=dtype), report)


@pytest.mark.gpu
@each_layout
@each_shape
@each_operator
def test_times_on_a_gpu(operator: Operator, channels: int, size: int, memory: str, report: Report) -> None:
    problem = Problem(N=8, T=8, C=channels, H=size, W=size, K=3, layout=memory, dtype=torch.bfloat16)
    for one, time in timed(launched(operator, problem), GPU):
        report(line(operator, problem, one.launch.kernel, f"measured {time} ms", predicted(one, devices.present)))
        assert time.median > 0


def predicted(recorded: Recorded, device: Callable[[], devices.Device]) -> str:
    """The time of a launch by the model of a multiprocessor, or why there is none."""
    try:
        row = described(recorded.launch, device(), max(recorded.launch.tensors.values()))
    except ValueError as error:
        return f"not predicted: {error}"
    return f"predicted {1e-3 * (row.launched or 0):.3f} ms"


def timed(recorded: Sequence[Recorded], where: str) -> list[tuple[Recorded, Time]]:
    """Each launch by itself."""
    return [(one, interleaved({one.launch.kernel: one.again}, where, ROUNDS)[one.launch.kernel]) for one in recorded]


EXACT = next(operator for operator in OPERATORS if str(operator) == "aggregate+shared")
APPROXIMATE = next(operator for operator in OPERATORS if operator.name == "branches")
SMALL = Problem(N=2, T=4, C=16, H=8, W=8, K=3)


@pytest.mark.executed
@each_operator
def test_a_device_that_does_what_ptx_says_agrees(operator: Operator) -> None:
    lines: list[str] = []
    with device("sm_90"):
        comparisons = check(operator, SMALL, lines.append)
    assert {one.different for one in comparisons} == {0}
    assert len(lines) == len(comparisons)


def faulty(change: float, error: float = 0.0) -> Execute:
    """A device whose approximate functions are off by a share of what they may be, and that adds to one element."""

    def run(ptx: str, grid: tuple[int, int, int], arguments: Sequence[Argument], shared_bytes: int) -> Counts:
        counts = execute(ptx, grid, arguments, shared_bytes, error=error)
        regions = [one for one in arguments if isinstance(one, Region)]
        written = next(one for one in regions if one.name in ("y_ptr", "projected_ptr", "importance_ptr"))
        torch.from_numpy(written.data).view(torch.float32)[5] += change
        return counts

    return run


@pytest.mark.executed
@pytest.mark.parametrize(("change", "agrees"), [(0.0, True), (1e-6, False), (torch.nan, False)])
def test_one_wrong_element_is_seen(change: float, agrees: bool) -> None:
    with device("sm_90", faulty(change)):
        (one,) = launched(EXACT, SMALL)
        found = compare(one)
    assert (found.exact, found.different, found.agrees) == (True, int(not agrees), agrees)
    assert str(found).startswith("same bits" if agrees else "1 elements differ")


@pytest.mark.executed
@pytest.mark.parametrize(("change", "error", "agrees"), [(0.0, 1.0, True), (0.0, -0.5, True), (1e-4, 0.0, False)])
def test_approximate_functions_may_differ_within_their_bounds(change: float, error: float, agrees: bool) -> None:
    with device("sm_90", faulty(change, error)):
        found = [compare(one) for one in launched(APPROXIMATE, SMALL) if one.launch.kernel == "weights_kernel"]
    assert len(found) == 1
    assert not any(one.exact for one in found)
    assert all(one.different for one in found)
    assert {one.agrees for one in found} == {agrees}


@pytest.mark.executed
def test_a_check_that_fails_names_the_kernel() -> None:
    with (
        device("sm_90", faulty(1.0)),
        pytest.raises(AssertionError, match=r"banded_kernel +aggregate\+shared +2×4×16×8×8 "),
    ):
        check(EXACT, SMALL, lambda _: None)


@pytest.mark.executed
def test_a_launch_is_made_once_more_to_be_timed() -> None:
    with device("sm_90") as launches:
        recorded = launched(EXACT, SMALL)
        ((one, time),) = timed(recorded, "cpu")
        assert {launch.kernel for launch in launches} == {one.launch.kernel}
    assert len(launches) > ROUNDS
    assert time.median > 0


@pytest.mark.executed
@pytest.mark.parametrize("operator", [EXACT, APPROXIMATE], ids=str)
def test_a_prediction_stands_beside_what_is_measured(operator: Operator) -> None:
    with device("sm_90"):
        recorded = launched(operator, SMALL)
    for one in recorded:
        kind, time, unit = predicted(one, lambda: devices.DEVICES["sm_90"]).split()
        assert (kind, unit) == ("predicted", "ms")
        assert devices.DEVICES["sm_90"].overhead < 1e3 * float(time) < 20


@pytest.mark.executed
def test_a_gpu_that_no_model_is_of_is_named() -> None:
    def unknown() -> devices.Device:
        raise ValueError("device: got Some GPU (sm_89)")

    with device("sm_90"):
        (one,) = launched(EXACT, SMALL)
    assert predicted(one, unknown) == "not predicted: device: got Some GPU (sm_89)"
