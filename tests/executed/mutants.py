"""Wrong PTX, each by one change of what Triton compiled, and the check of the machine that must see it.

`python -m tests.executed.mutants` makes every change at every place where it applies, and prints what
killed how many.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from triton.runtime import driver

from bench.offline import AbsentDevice
from bench.ptx import Counts, KernelError, execute
from tests.executed.compiled import Compiled
from tests.support.operators import OPERATORS, Operator
from tests.support.strategies import Problem

TARGET = "sm_90"
VALUES = "values"
"""No check of the machine fails: the results do."""
BOUNDS, RACE, GLOBAL_RACE = "bounds", "race in shared memory", "race in global memory"
NONE = "nothing"


@dataclass(frozen=True)
class Case:
    """One operator on numbers of one type in one layout; C, H and W leave blocks partly empty."""

    operator: Operator
    layout: str
    dtype: torch.dtype
    shape: tuple[int, int, int] = (24, 6, 7)

    def __str__(self) -> str:
        return f"{self.operator}, {self.layout}, {str(self.dtype).removeprefix('torch.')}"

    def call(self, backend: Compiled) -> tuple[Tensor, ...]:
        """The results."""
        C, H, W = self.shape
        problem = Problem(2, 4, C, H, W, 3, layout=self.layout, dy_layout=self.layout, dtype=self.dtype)
        return self.operator.call(backend, self.operator.arguments(problem))  # type: ignore[arg-type]


def cases(*names: str, shape: tuple[int, int, int] = (24, 6, 7)) -> list[Case]:
    """Of operators with their layouts and types, such as "squeeze nchw float32"."""
    rows = {str(operator): operator for operator in OPERATORS}
    layouts = {"nchw": "contiguous", "nhwc": "channels_last"}
    return [
        Case(rows[name], layouts[layout], getattr(torch, dtype), shape)
        for name, layout, dtype in (text.split() for text in names)
    ]


ALL = [
    Case(operator, layout, dtype, shape)
    for operator in OPERATORS
    if not operator.note
    for layout in ("contiguous", "channels_last")
    for dtype in (torch.float32, torch.bfloat16)
    for shape in ((24, 6, 7), (8, 3, 3))
]


@dataclass(frozen=True)
class Mutant:
    """What is changed, and what sees it.

    Attributes:
        fault: in words.
        right: a pattern of the instruction.
        wrong: what takes its place.
        checks: those that kill it, the one that is for it first.
        cases: where it is killed at every place. Elsewhere some places bear the change: a barrier that the compiler
            could have saved, a predicate that always holds.
    """

    fault: str
    right: str
    wrong: str
    checks: tuple[str, ...]
    cases: list[Case]


VECTOR = r"((?:ld|st)\.global\.v[24]\.b\d+[^\[]*\[ %rd\d+ \+ )0"
SHARED_VECTOR = r"((?:ld|st)\.shared(?:::cta)?\.v[24]\.b32[^\[]*\[\s*%r\d+)(?: \+ 0)?(?=\s*\])"
MUTANTS = (
    Mutant(
        "a barrier is removed", r"\n\s*bar\.sync[^\n]*", "", (RACE,),
        cases("weight_gradients nhwc float32", "weight_gradients nhwc bfloat16"),
    ),
    Mutant(
        "a barrier of a warp is removed", r"\n\s*bar\.warp\.sync[^\n]*", "", (RACE,),
        cases("weight_gradients nchw bfloat16", "weight_gradients nchw float16", shape=(8, 3, 3)),
    ),
    Mutant(
        "a load has no predicate", r"@!?%p\d+ (ld\.global)", r"\1", (BOUNDS, VALUES),
        [*cases("squeeze nchw float32", shape=(8, 3, 3)), *cases("branches nhwc float32", shape=(20, 3, 3))],
    ),
    Mutant(
        "a store has no predicate", r"@!?%p\d+ (st\.global)", r"\1", (BOUNDS, GLOBAL_RACE),
        cases("weight_gradients nhwc bfloat16", "aggregate nchw float32", "branches nchw bfloat16"),
    ),
    Mutant(
        "a vector is one element later", VECTOR, r"\g<1>4", ("alignment",),
        cases("aggregate nhwc float32", "input_gradient nchw bfloat16", "branches nchw float32"),
    ),
    Mutant(
        "a vector in shared memory is one element later", SHARED_VECTOR, r"\1 + 4", ("alignment",),
        cases("squeeze nchw bfloat16", "weight_gradients nchw float32"),
    ),
    Mutant(
        "an address is one vector later", r"((?:ld|st)\.global\S*[^\[]*\[ %rd\d+ \+ )0", r"\g<1>16",
        (BOUNDS, VALUES, GLOBAL_RACE), cases("aggregate nhwc float32", "weight_gradients nchw float32"),
    ),
    Mutant(
        "a lane adds its own value", r"(shfl\.sync\.bfly\.b32[^,]*,[^,]*,)\s*\d+", r"\1 0",
        ("replicated store", VALUES), cases("squeeze nchw float32", "weight_gradients nhwc bfloat16"),
    ),
    Mutant(
        "a product is left out", r"\n\s*(?:mul|fma)\.\S*f32\s[^\n]*", "", ("unwritten",),
        cases("aggregate nchw float32", "activated_aggregate nhwc bfloat16"),
    ),
    Mutant(
        "a sum is left out", r"\n\s*add\.(?:rn\.)?f32\s[^\n]*", "", ("unwritten",),
        cases("squeeze nhwc bfloat16", "activated_squeeze nchw float32"),
    ),
    Mutant(
        "a choice is turned round", r"(selp\.f32\s+%\w+, )(\S+, )(\S+, )(%p)", r"\1\3\2\4", (VALUES,),
        cases("input_gradient nchw float32", "activated_aggregate nchw bfloat16"),
    ),
    Mutant(
        "an instruction is another", r"\n\s*max\.NaN\.f32", "\n\tmaximum.f32", ("opcode",),
        cases("activated_squeeze nhwc float32"),
    ),
)  # fmt: skip


def changes(mutant: Mutant, ptx: str) -> Iterator[str]:
    """The text with the change at each place in turn."""
    for place in re.finditer(mutant.right, ptx):
        yield ptx[: place.start()] + place.expand(mutant.wrong) + ptx[place.end() :]


def killers(mutant: Mutant, case: Case, most: int | None = None) -> list[str]:
    """What sees each of the changes, or the first `most` of each kernel: a check, `VALUES`, or `NONE`."""
    compiled = Compiled(TARGET)
    expected = case.call(compiled)
    found = []
    for right in dict.fromkeys(launch.ptx for launch in compiled.launches):
        for wrong in islice(changes(mutant, right), most):

            def run(ptx: str, *rest: Any, right: str = right, wrong: str = wrong, **options: Any) -> Counts:
                return execute(wrong if ptx == right else ptx, *rest, **options)

            try:
                results = case.call(Compiled(TARGET, run))
            except KernelError as error:
                found.append(error.check)
            else:
                same = all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))
                found.append(NONE if same else VALUES)
    return found


def main() -> int:
    """Prints what killed how many."""
    with mock.patch.object(driver, "_active", AbsentDevice(TARGET)):
        for mutant in MUTANTS:
            total: Counter[str] = Counter()
            for case in ALL:
                found = Counter(killers(mutant, case))
                total += found
            print(f"{mutant.fault}: {dict(total)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
