"""The forms of plain torch agree, on what is not finite too, and the compiler's does what it is for."""

import math
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from tam_triton import layout
from tam_triton.plain import by_frame, by_shift, by_tap, in_cache, operators
from tests.support.strategies import Problem, problems

each_form = pytest.mark.parametrize(
    ("form", "channels_last"),
    [(by_frame, True), *((form, layout) for form in (by_shift, in_cache) for layout in (False, True))],
    ids=lambda value: (
        value.__name__.split(".")[-1] if isinstance(value, ModuleType) else ["nchw", "channels_last"][value]
    ),
)
integers = problems(dtypes=(torch.float32, torch.float16, torch.bfloat16), integers=True)


def weights(problem: Problem) -> Tensor:
    """Θ[k]·V[s] as `(N, C, T, K)`, in float32."""
    return problem.importance().float()[..., None] * problem.kernel().float()[:, :, None]


@each_form
@given(problem=integers, transposed=st.booleans(), has_offset=st.booleans())
def test_weighted_sum_is_the_definition(
    form: ModuleType, channels_last: bool, problem: Problem, transposed: bool, has_offset: bool
) -> None:
    offset = problem.tensor(problem.N, problem.C, problem.T, salt=5).float() if has_offset else None
    arguments = (problem.features(), weights(problem), offset, transposed, channels_last)
    result = form.weighted_sum(*arguments)
    assert torch.equal(result, by_tap.weighted_sum(*arguments))  # sums of small integers are exact, and rounded once
    assert result.dtype == problem.dtype
    assert layout.to_layout(result, channels_last) is result


@each_form
@given(problem=integers)
def test_band_is_the_definition(form: ModuleType, channels_last: bool, problem: Problem) -> None:
    dy, x = problem.features(salt=3), problem.features()
    result = form.band(dy, x, problem.T, problem.K, channels_last)
    assert torch.equal(result, by_tap.band(dy, x, problem.T, problem.K))


@each_form
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_what_is_not_finite_reaches_only_its_taps(form: ModuleType, channels_last: bool, value: float) -> None:
    problem = Problem(N=2, T=4, C=5, H=3, W=3, K=3)
    x = problem.features().abs() + 1
    x[0, 1, 1, 1] = value  # the first frame of the first clip
    arguments = (x, weights(problem).abs(), None, False, channels_last)
    torch.testing.assert_close(
        form.weighted_sum(*arguments), by_tap.weighted_sum(*arguments), equal_nan=True, check_stride=False
    )
    band = form.band(x.abs(), x, problem.T, problem.K, channels_last)
    torch.testing.assert_close(band, by_tap.band(x.abs(), x, problem.T, problem.K), equal_nan=True)


def test_each_situation_has_its_form() -> None:
    chosen = []

    def record(x: Tensor, T: int = 8, channels_last: bool = True) -> Tensor:
        chosen.append(operators.form_for(T, channels_last, x))
        return x + 1

    x = torch.ones(2)
    record(x)
    record(x.double())
    record(x.clone().requires_grad_())
    record(x.to("meta"))
    compiled = torch.compile(record, backend="eager")
    compiled(x)
    compiled(x, channels_last=False)
    compiled(x, T=by_frame.MAX_FRAMES + 1)
    assert chosen == [in_cache, by_tap, by_tap, by_tap, by_frame, by_shift, by_shift]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_half_precision_takes_little_beside_its_operands(dtype: torch.dtype, channels_last: bool) -> None:
    """No copy of all of X in float32 is made: only of a piece, or of a clip of several."""
    x = torch.zeros(64 * 8, 16, 12, 12, dtype=dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    importance, kernel = torch.ones(64, 16, 8, dtype=dtype), torch.ones(64, 16, 3, dtype=dtype)
    with torch.no_grad(), Allocations() as largest:
        operators.aggregate(x, importance, kernel)
        operators.input_gradient(x, importance, kernel, importance, channels_last)
        operators.weight_gradients(x, x, importance, kernel)
    assert largest.bytes == x.nbytes  # the result


class Allocations(TorchDispatchMode):
    """The largest result of any operator, in bytes."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [one for one in pytree.tree_leaves(result) if isinstance(one, Tensor)]
        self.bytes = max([self.bytes, *(one.untyped_storage().nbytes() for one in tensors)])
        return result
