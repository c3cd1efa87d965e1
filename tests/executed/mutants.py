"""Wrong PTX, each by one change of what Triton compiled, and the check of the machine that must see it.

`python -m tests.executed.mutants` makes every change at every place where it applies, and prints what killed how many.
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
from bench.ptx.driver import TARGETS
from tests.executed.compiled import Compiled
from tests.support.operators import OPERATORS, Operator
from tests.support.strategies import Problem

TARGET = "sm_90"
VALUES = "values"
"""No check of the machine fails: the results do."""
BOUNDS, RACE, GLOBAL_RACE = "bounds", "race in shared memory", "race in global memory"
NONE = "nothing"


@dataclass(frozen=True)
class Mutant:
    """What is changed, and what may see it.

    Attributes:
        fault: in words.
        right: a pattern of the instruction.
        wrong: what takes its place.
        checks: those that kill it, the one that is for it first.
        spared: how many places there are, over all kernels, where the change changes nothing, and why.
    """

    fault: str
    right: str
    wrong: str
    checks: tuple[str, ...]
    spared: tuple[int, str] = (0, "")


MUTANTS = (
    Mutant("a barrier is removed", r"\n\s*bar\.sync[^\n]*", "", (RACE,)),
    Mutant("a barrier of a warp is removed", r"\n\s*bar\.warp\.sync[^\n]*", "", (RACE,)),
    Mutant("copies are not waited for", r"\n\s*cp\.async\.wait_group[^\n]*", "", (RACE,)),
    Mutant("a load has no predicate", r"@!?%p\d+ (ld\.global)", r"\1", (BOUNDS,)),
    Mutant("a store has no predicate", r"@!?%p\d+ (st\.global)", r"\1", (BOUNDS, GLOBAL_RACE)),
    Mutant("a vector is one element later", r"((?:ld|st)\.global\.v[24]\.b\d+[^\[]*\[ %rd\d+ \+ )0", r"\g<1>4", ("alignment",)),
    Mutant("a vector in shared memory is one element later", r"((?:ld|st)\.shared(?:::cta)?\.v[24]\.b32[^\[]*\[\s*%r\d+)(?: \+ 0)?(?=\s*\])", r"\1 + 4", ("alignment",)),
    Mutant("an address is one vector later", r"((?:ld|st)\.global\S*[^\[]*\[ %rd\d+ \+ )0", r"\g<1>16", (BOUNDS, VALUES, GLOBAL_RACE)),
    Mutant("a lane adds its own value", r"(shfl\.sync\.bfly\.b32[^,]*,[^,]*,)\s*\d+", r"\1 0", ("replicated store", VALUES)),
    Mutant("a product is left out", r"\n\s*(?:mul|fma)\.\S*f32\s[^\n]*", "", ("unwritten",)),
    Mutant("a sum is left out", r"\n\s*add\.(?:rn\.)?f32\s[^\n]*", "", ("unwritten", VALUES)),
    Mutant("a choice is turned round", r"(selp\.f32\s+%\w+, )(\S+, )(\S+, )(%p)", r"\1\3\2\4", (VALUES,)),
    Mutant("an instruction is another", r"\n\s*max\.NaN\.f32", "\n\tmaximum.f32", ("opcode",)),
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One operator on numbers of one type in one layout, on shapes that leave blocks partly empty."""

    operator: Operator
    layout: str
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.operator}, {self.layout}, {str(self.dtype).removeprefix('torch.')}"

    def call(self, backend: Compiled) -> tuple[Tensor, ...]:
        """The results."""
        problem = Problem(
            N=2, T=4, C=24, H=6, W=7, K=3, layout=self.layout, dy_layout=self.layout, dtype=self.dtype
        )  # fmt: skip
        return self.operator.call(backend, self.operator.arguments(problem))  # type: ignore[arg-type]


CASES = [
    Case(operator, layout, dtype)
    for operator in OPERATORS
    if not operator.note
    for layout in ("contiguous", "channels_last")
    for dtype in (torch.float32, torch.bfloat16)
]


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
    """Prints what killed how many, and where all were killed."""
    with mock.patch.object(driver, "_active", AbsentDevice(TARGETS[TARGET])):
        for mutant in MUTANTS:
            total: Counter[str] = Counter()
            for case in CASES:
                found = Counter(killers(mutant, case))
                total += found
                if found and not found[NONE]:
                    print(f"    all in {case}: {dict(found)}", flush=True)
            print(f"{mutant.fault}: {dict(total)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
