"""Every kernel, in both layouts, stays inside its tensors in all programs of its grid, and no integer wraps; wrong
kernels are seen to fail.

Shapes are those of TANet-50, whole, the sizes where a rule of `launch` takes another turn, and the largest: the product
of any two dimensions, or one of them, reaches 2³¹. No tensor's memory is touched, so that they cost nothing.
"""

# isort: off
from tests.sanitize.prover import Proof, proving

# isort: on
import math
import mmap
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton_viz.core.trace import TritonTrace  # type: ignore[import-not-found]

from tam_triton import kernels
from tam_triton.layout import is_channels_last
from tests.properties.injection import Mutant, injected
from tests.properties.mutants import MUTANTS

EPS = 1e-5
NOT_RESERVED = 0x4000  # MAP_NORESERVE, of which Python's `mmap` has no name
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Case:
    """The dimensions and the dtype of one call of every operator."""

    N: int
    T: int
    C: int
    H: int
    W: int
    K: int = 3
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        return f"N{self.N}T{self.T}C{self.C}P{self.H}x{self.W}K{self.K}-{str(self.dtype).removeprefix('torch.')}"


F16, BF16, F64 = torch.float16, torch.bfloat16, torch.float64
CASES = [
    Case(8, 8, 64, 56, 56),
    Case(8, 8, 128, 28, 28, dtype=BF16),
    Case(8, 8, 256, 14, 14, dtype=F16),
    Case(8, 8, 512, 7, 7),
    Case(8, 8, 512, 7, 7, dtype=BF16),
    Case(2, 5, 17, 7, 7, K=5, dtype=BF16),
    Case(1, 2, 1, 97, 61),
    Case(1, 3, 5, 57, 29, K=1),
    Case(3, 1, 7, 5, 3, K=7),
    Case(2, 4, 33, 1, 1, dtype=F16),
    Case(1, 1, 1, 1, 1, dtype=F64),
]
WHOLE, RAGGED, PARTS = CASES[3], CASES[5], CASES[6]
HUGE = {
    "C·P": Case(1, 2, 2, 32768, 32769, dtype=BF16),
    "P": Case(1, 1, 1, 1, 2**31 - 1, dtype=BF16),
    "H·W": Case(1, 1, 1, 2**16, 2**15 + 1, dtype=BF16),
    "C": Case(1, 1, 2**31 - 1, 1, 1, K=1, dtype=BF16),
    "N": Case(2**31 - 1, 1, 1, 1, 1, K=1, dtype=BF16),
    "C·T": Case(1, 128, 2**24 + 8, 1, 1, dtype=BF16),
    "T·C": Case(1, 128, 2**24 + 8, 1, 2, dtype=BF16),  # of two pixels: only these tell channels_last
    "C·K": Case(1, 1, 2**29 + 8, 1, 1, K=5, dtype=BF16),
    "C²": Case(1, 8, 2**16, 7, 7, dtype=BF16),
}
"""By what reaches 2³¹."""
SQUARE = (
    2**16
)  # channels; with more of them the local branch, whose weights are as their square, has one hidden channel
BANDED, WEIGHTS = "banded.py", "weight_gradients.py"


def features(case: Case, layout: str) -> Tensor:
    """`(N·T, C, H, W)`, not initialised."""
    size = (case.N * case.T, case.C, case.H, case.W)
    return torch.empty(size, dtype=case.dtype, memory_format=LAYOUTS[layout])


def batch_norm(channels: int) -> list[Tensor]:
    """Weight, bias, mean and variance, each in memory of its own."""
    return [torch.empty(channels) for _ in range(4)]


def untouched(dtype: torch.dtype, *size: int) -> Tensor:
    """An uninitialised tensor that may be larger than the machine's memory."""
    elements = math.prod(size)
    reserved = mmap.mmap(-1, elements * dtype.itemsize, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NOT_RESERVED)
    return torch.frombuffer(reserved, dtype=dtype, count=elements).view(size)


def new_untouched(like: Tensor, *size: Any, dtype: torch.dtype | None = None) -> Tensor:
    """The same in place of `Tensor.new_empty`, as launchers call it."""
    return untouched(dtype or like.dtype, *(size if isinstance(size[0], int) else size[0]))


def calls(case: Case, layout: str) -> dict[str, Callable[[], object]]:
    """Every public launcher, with no tensor given twice."""
    x, dy = features(case, layout), features(case, layout)
    channels_last = is_channels_last(x)
    width, hidden = 2 * case.T, max(1, case.C // 4) if case.C <= SQUARE else 1

    def empty(*size: int) -> Tensor:
        return torch.empty(size, dtype=case.dtype)

    def dense(length: int, *clips: int) -> Tensor:
        return empty(*clips, length, case.C).mT if channels_last else empty(*clips, case.C, length)

    v, theta, d_squeezed = dense(case.T, case.N), dense(case.K, case.N), dense(case.T, case.N)
    importance, squeezed = (empty(case.N, case.C, case.T) for _ in range(2))
    kernel = empty(case.N, case.C, case.K)
    global_branch = [empty(width, case.T), *batch_norm(width), empty(case.K, width)]
    local_branch = [empty(hidden, case.C, 3), *batch_norm(hidden), empty(case.C, hidden, 1)]
    norm = batch_norm(case.C)
    parameters = [one for branch in (global_branch, local_branch) for one in (*branch[:3], branch[-1])]
    trained: list[Any] = [squeezed, *parameters, EPS, channels_last]
    gradients: list[Any] = [
        empty(*squeezed.shape),
        empty(*kernel.shape),
        squeezed,
        dense(case.T, case.N),
        dense(case.K, case.N),
    ]
    gradients += [empty(case.N, hidden, case.T), *parameters, empty(3, width), empty(3, hidden), channels_last]
    wide = torch.promote_types(case.dtype, torch.float32)
    batch_norm_of_x = (untouched(wide, case.C), untouched(wide, case.C), untouched(wide, 3, case.C))
    d_sums, sums = (untouched(wide, 2, case.N, case.C, case.T) for _ in range(2))
    d_weight, d_bias = (untouched(wide, case.C) for _ in range(2))
    return {
        "squeeze": lambda: kernels.squeeze(x, case.T),
        "activated_squeeze": lambda: kernels.activated_squeeze(x, norm, EPS, case.T),
        "branches": lambda: kernels.branches(squeezed, global_branch, local_branch, EPS, channels_last),
        "training_branches": lambda: kernels.training_branches(*trained),
        "branch_gradients": lambda: kernels.branch_gradients(*gradients),
        "aggregate": lambda: kernels.aggregate(x, v, theta),
        "aggregate, shared": lambda: kernels.aggregate(x, None, dense(case.K), case.T),
        "activated_aggregate": lambda: kernels.activated_aggregate(x, norm, EPS, v, theta),
        "weight_gradients": lambda: kernels.weight_gradients(dy, x, importance, kernel),
        "weight_gradients, shared": lambda: kernels.weight_gradients(dy, x, None, empty(case.C, case.K), case.T),
        "input_gradient": lambda: kernels.input_gradient(dy, v, theta, d_squeezed, channels_last),
        "batch_statistics": lambda: kernels.batch_statistics(x, EPS),
        "normalized_squeeze": lambda: kernels.normalized_squeeze(x, *batch_norm_of_x, case.T),
        "normalized_aggregate": lambda: kernels.normalized_aggregate(x, *batch_norm_of_x, v, theta),
        "normalized_gradients": lambda: kernels.normalized_gradients(dy, x, *batch_norm_of_x, v, theta),
        "batch_norm_gradients": lambda: kernels.batch_norm_gradients(d_sums, sums, squeezed, case.H * case.W),
        "normalized_input_gradient": lambda: kernels.normalized_input_gradient(
            dy, x, *batch_norm_of_x, v, theta, d_squeezed, d_weight, d_bias
        ),
    }


def prove(case: Case, layout: str) -> list[Proof]:
    """Of every launch, that nothing is wrong with it."""
    proved = []
    for operator, call in calls(case, layout).items():
        with proving() as proofs, mock.patch.object(Tensor, "new_empty", new_untouched):
            call()
        assert proofs, operator
        for proof in proofs:
            assert not proof.failures, "\n".join([operator, *proof.failures])
        proved += proofs
    return proved


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", [*CASES, *HUGE.values()], ids=str)
def test_every_access_is_inside(case: Case, layout: str) -> None:
    assert all(proof.accesses for proof in prove(case, layout))


def test_every_tensor_of_every_kernel_is_accessed() -> None:
    """Else what is proved above says nothing of it: whole channels in one program, and channels in parts."""
    assert {operator.split(",")[0] for operator in calls(WHOLE, "nchw")} == set(kernels.__all__)
    proofs = [proof for case in (WHOLE, PARTS) for proof in prove(case, "nchw")]
    given = {(proof.kernel, tensor) for proof in proofs for tensor in proof.tensors}
    assert given == {(proof.kernel, tensor) for proof in proofs for tensor, _ in proof.accesses}
    modules = [module for name, module in sys.modules.items() if name.startswith("tam_triton.kernels.")]
    assert {kernel for kernel, _ in given} == {
        name
        for module in modules
        for name, kernel in vars(module).items()
        if isinstance(kernel, TritonTrace) and name.endswith("_kernel")
    }


@pytest.mark.parametrize("mutant", [m for m in MUTANTS if m.escapes], ids=lambda mutant: mutant.fault)
def test_a_mutant_that_leaves_its_tensors_is_seen(mutant: Mutant) -> None:
    with injected(mutant), proving() as proofs:
        for case in (WHOLE, PARTS, RAGGED):
            calls(case, "nchw")[mutant.operator.replace("+", ", ")]()
    assert any(proof.failures for proof in proofs)


def wraps(operator: str, case: str, file: str, right: str, wrong: str) -> Any:
    """Parameters of the test below: a mutant, and where it wraps."""
    mutant = Mutant(f"not widened: {right}", f"kernels/{file}", right, wrong, "", operator)
    return pytest.param(mutant, HUGE[case], "channels_last" if case == "T·C" else "nchw", id=f"{operator}, {case}")


@pytest.mark.parametrize(
    ("mutant", "case", "layout"),
    [
        wraps("aggregate", "T·C", BANDED, "tl.cast(vectors, INDEX) * VECTOR if", "vectors * VECTOR if"),
        wraps("input_gradient", "C·T", BANDED, "max(pixels, num_segments, kernel_size)", "pixels"),
        wraps("squeeze", "P", "squeeze.py", "(split * steps).to(INDEX)", "(split * steps)"),
        wraps(
            "weight_gradients", "H·W", WEIGHTS, "(part // time_parts * steps).to(INDEX)", "part // time_parts * steps"
        ),
        wraps("weight_gradients", "C·K", WEIGHTS, "max(tile.covered, kernel_size, T)", "tile.covered"),
        wraps(
            "weight_gradients", "C·T", WEIGHTS, "max(tile.covered, kernel_size, T)", "max(tile.covered, kernel_size)"
        ),
        wraps(
            "training_branches",
            "C",
            "branches.py",
            "(h[:, None, None] * C + c) * TAPS",
            "(h[:, None, None] * C + c).to(tl.int32) * TAPS",
        ),
        wraps("branch_gradients", "C", "branch_gradients.py", "tl.cast(C, INDEX) * CONV", "C * CONV"),
        wraps("branches", "N", "branches.py", "(program // blocks).to(INDEX)", "program // blocks"),
        wraps("branches", "C²", "branches.py", "rows * max(channels * taps, width, num_segments)", "rows"),
    ],
)
def test_a_product_that_is_not_widened_is_seen(mutant: Mutant, case: Case, layout: str) -> None:
    with injected(mutant), proving() as proofs:
        calls(case, layout)[mutant.operator]()
    assert any("wraps int32" in failure for proof in proofs for failure in proof.failures)


@triton.jit
def square_kernel(x_ptr, y_ptr, size, BLOCK: tl.constexpr):
    """A product of 32 bits, in lanes that are masked."""
    q = tl.arange(0, BLOCK)
    inside = (q + size) * (q + size) < size
    tl.store(y_ptr + q, tl.load(x_ptr + q, mask=inside, other=0.0), mask=inside)


@triton.jit
def narrow_kernel(x_ptr, y_ptr, size, BLOCK: tl.constexpr):
    """A product of 64 bits, cast to 32."""
    q = tl.arange(0, BLOCK)
    inside = (q.to(tl.int64) * size * size).to(tl.int32) < size
    tl.store(y_ptr + q, tl.load(x_ptr + q, mask=inside, other=0.0), mask=inside)


@pytest.mark.parametrize(
    ("kernel", "size", "failure"),
    [
        (square_kernel, 46_309, ""),
        (square_kernel, 46_310, "mul at .*check_bounds.py:.* wraps int32: 214748"),
        (narrow_kernel, 8323, ""),
        (narrow_kernel, 8324, "cast_impl at .*check_bounds.py:.* wraps int32: 214795"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_integers_have_their_width(kernel: TritonTrace, size: int, failure: str) -> None:
    """(46 309 + 31)² and 31 · 8323² are the last below 2³¹."""
    x, y = torch.zeros(32), torch.zeros(32)
    with proving() as proofs:
        kernel[(1,)](x, y, size, BLOCK=32)
    assert len(proofs[0].failures) == bool(failure), proofs[0].failures
    assert re.search(failure, "".join(proofs[0].failures))


@triton.jit
def past_the_end_kernel(x_ptr, y_ptr, size, BLOCK: tl.constexpr):
    """`<=` where `<` is right, in the load."""
    q = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + q, tl.load(x_ptr + q, mask=q <= size, other=0.0), mask=q < size)


@triton.jit
def no_mask_kernel(x_ptr, y_ptr, size, BLOCK: tl.constexpr):
    """The store of the last program has no mask."""
    q = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + q, tl.load(x_ptr + q, mask=q < size, other=0.0))


@triton.jit
def neighbour_kernel(x_ptr, y_ptr, size, BLOCK: tl.constexpr):
    """The next frame of the last one, in a loop inside a loop."""
    q = tl.arange(0, BLOCK)
    for t in range(size // BLOCK):
        for k in range(2):
            x = tl.load(x_ptr + (t + k) * BLOCK + q)
            tl.store(y_ptr + t * BLOCK + q, x)


@triton.jit
def two_axes_kernel(x_ptr, y_ptr, size, BLOCK: tl.constexpr):
    """Outside only where lanes along the two axes differ."""
    row, column = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    square = (row - column) * (row - column)
    tl.store(y_ptr + row * 0 + square * 0, tl.load(x_ptr + square * size))


@triton.jit
def carried_kernel(x_ptr, y_ptr, size, BLOCK: tl.constexpr):
    """A pointer that moves on with every pass leaves in one of the last."""
    q = tl.arange(0, BLOCK)
    for _ in range(size):
        tl.store(y_ptr + q, tl.load(x_ptr + q))
        x_ptr += BLOCK


@triton.jit
def indirect_kernel(x_ptr, y_ptr, size, BLOCK: tl.constexpr):
    """An address that was loaded."""
    q = tl.arange(0, BLOCK)
    tl.store(y_ptr + q, tl.load(x_ptr + tl.load(x_ptr + q).to(tl.int32)))


@pytest.mark.parametrize(
    ("kernel", "size", "failure"),
    [
        (past_the_end_kernel, 100, "load x_ptr .* byte 400 of 400"),
        (no_mask_kernel, 100, "store y_ptr .* byte 4.. of 400"),
        (neighbour_kernel, 128, "load x_ptr .* byte 5.. of 512"),
        (two_axes_kernel, 128, "load x_ptr .* byte .* of 512"),
        (carried_kernel, 128, "load x_ptr: the address is carried"),
        (indirect_kernel, 128, "depends on loaded values"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_wrong_kernel_is_seen(kernel: TritonTrace, size: int, failure: str) -> None:
    x, y = torch.zeros(size), torch.zeros(size)
    with proving() as proofs:
        kernel[(4,)](x, y, size, BLOCK=32)
    assert any(re.search(failure, line) for line in proofs[0].failures), proofs


def test_tensors_side_by_side_are_told_apart() -> None:
    """An access is compared with its own tensor, not with all memory that a launch may touch."""
    both = torch.zeros(200)
    with proving() as proofs:
        past_the_end_kernel[(4,)](both[:100], both[100:], 100, BLOCK=32)
    assert [re.sub(" at .*: ", ": ", line) for line in proofs[0].failures] == [
        "past_the_end_kernel: load x_ptr: byte 400 of 400"
    ]
