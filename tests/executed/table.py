"""Every operator as Triton compiles it, executed: how far off its results are, and what it did.

`python -m tests.executed.table` executes each operator in every form, for each target, dtype and layout, on a few small
problems, and writes a row of each to bench/results/executed.csv. `worst` is the largest error of any result on any of
these problems, in units of what tests/support/tolerance.py allows: 1 is the limit. A launch is held to the rules of the
machine as well, and what breaks one ends the command. Where PTX leaves a function's last bits open they are rounded to
nearest there, and `worst_at_ends` is the same of two more executions, with every such function off by all that its
manual allows, down or up, at once.

On one core all rows take about a quarter of an hour. With options, rows take the place of those in the file.
"""

import csv
import io
import math
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path
from typing import Literal
from unittest import mock

import torch
import triton
import tyro
from triton.runtime import driver

from bench.offline import AbsentDevice
from bench.ptx.driver import TARGETS, Launch
from bench.ptx.memory import SECTOR
from tests.executed.compiled import Compiled
from tests.support.operators import OPERATORS, Operator, errors
from tests.support.strategies import DTYPES, Problem
from train.atomic import write_text
from train.errors import InputError

RESULTS = Path(__file__).parents[2] / "bench" / "results" / "executed.csv"
FULL = "sm_90"
# N, T, C, H and W, with three taps. The first on every target: a last block that is not full, and rows that no vector
# fits. On the full one also rows that vectors fit, a single pixel, programs that share a map, and one element of all.
SHAPES = ((2, 4, 24, 7, 7), (2, 8, 16, 8, 8), (1, 8, 33, 1, 1), (1, 4, 3, 1, 516), (1, 1, 1, 1, 1))
ELSEWHERE = 1
TAPS = 3
LAYOUTS = {"nchw": "contiguous", "channels_last": "channels_last"}
OPEN = re.compile(r"\.approx\b|\bdiv\.full\b")
"""What PTX does not define to the last bit."""
ENDS = (-1.0, 1.0)

NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}
ROWS = {str(operator): operator for operator in OPERATORS}


@dataclass(frozen=True)
class Table:
    """Everything by default; each option selects a part."""

    targets: tuple[Literal["sm_80", "sm_90", "sm_100", "sm_120"], ...] = ("sm_90", "sm_80", "sm_100", "sm_120")
    """Compiled for these GPUs."""
    dtypes: tuple[Literal["float32", "float16", "bfloat16", "float64"], ...] = (
        "float32", "float16", "bfloat16", "float64",
    )  # fmt: skip
    """Of the tensors."""
    operators: tuple[str, ...] = ()
    """By name, as the table has them; none: all."""
    out: Path = RESULTS
    """The CSV to write, or to put rows into."""


@dataclass(frozen=True)
class Row:
    """One operator, over all problems.

    Attributes:
        kernels: that it launched.
        problems: how many.
        launches: executed; with both ends of what is open, three times what a call launches.
        instructions: of warps, in all launches.
        requests: of warps to global memory.
        sectors: of 32 bytes, touched by a request on average.
        needed: those that the bytes in use would fill.
        worst, worst_at_ends: errors in units of what is allowed, rounded up; a dash where PTX leaves nothing open.
        at, ends_at: N×T×C×H×W and number of that result, and which end.
    """

    target: str
    dtype: str
    layout: str
    operator: str
    kernels: str
    problems: int
    launches: int
    instructions: int
    requests: int
    sectors: str
    needed: str
    worst: str
    at: str
    worst_at_ends: str
    ends_at: str
    triton: str = triton.__version__

    def __str__(self) -> str:
        return " ".join(f"{value!s:>{width}}" for value, width in zip(asdict(self).values(), WIDTHS, strict=True))


COLUMNS = tuple(field.name for field in fields(Row))
KEY = COLUMNS[:4]
WIDTHS = (6, 8, 13, 32, 36, 8, 8, 12, 8, 7, 6, 6, 21, 13, 27, 6)

Rows = list[dict[str, str]]


def executed(target: str, dtype: str, layout: str, operator: Operator) -> Row:
    """One row.

    Raises:
        KernelError: a launch breaks a rule of the machine.
        AssertionError: a result has another dtype, shape or strides than the operator promises.
    """
    shapes = SHAPES if target == FULL else SHAPES[:ELSEWHERE]
    launches: list[Launch] = []
    found: list[tuple[float, str]] = []
    found_at_ends: list[tuple[float, str]] = []
    for shape in shapes:
        problem = Problem(*shape, TAPS, layout=LAYOUTS[layout], dy_layout=LAYOUTS[layout], dtype=NAMES[dtype])
        for end in (0.0, *ENDS):
            compiled = Compiled(target, error=end)
            for number, error in enumerate(errors(compiled, operator, problem)):  # type: ignore[arg-type]
                # What is no number is worse than any.
                off = math.inf if math.isnan(error.in_units) else error.in_units
                at = f"{'×'.join(map(str, shape))} result {number}"
                if end:
                    found_at_ends.append((off, f"{at} at {end:+.0f}"))
                else:
                    found.append((off, at))
            launches += compiled.launches
            if not any(OPEN.search(launch.ptx) for launch in compiled.launches):
                break
    (worst, at), (worst_at_ends, ends_at) = max(found), max(found_at_ends, default=(None, "-"))
    traffic = [launch.counts.requested("load", "store") for launch in launches]
    requests = sum(one.requests for one in traffic)
    touched, used = sum(one.sectors for one in traffic), sum(one.bytes for one in traffic)
    return Row(
        target, dtype, layout, str(operator), " ".join(sorted({launch.kernel for launch in launches})),
        len(shapes), len(launches), sum(launch.counts.instructions.total() for launch in launches),
        requests, f"{touched / requests:.2f}", f"{used / SECTOR / requests:.2f}",
        in_units(worst), at, "-" if worst_at_ends is None else in_units(worst_at_ends), ends_at,
    )  # fmt: skip


def in_units(worst: float, digits: int = 3) -> str:
    """Rounded up, so that no 1 is more than that."""
    return f"{math.ceil(worst * 10**digits) / 10**digits:.{digits}f}" if math.isfinite(worst) else str(worst)


def run(options: Table) -> Rows:
    """Prints the rows as they come and a page of them, and writes those of each target and dtype when they are there.

    Raises:
        InputError: an operator is not there, or the file is another kind of table.
    """
    if unknown := set(options.operators) - set(ROWS):
        raise InputError(f"operators: got {', '.join(sorted(unknown))}, expected some of {', '.join(ROWS)}")
    known = {key(row): row for row in read(options.out)} if options.out.exists() else {}
    print(" ".join(f"{heading:>{width}}" for heading, width in zip(COLUMNS, WIDTHS, strict=True)))
    fresh = 0
    for target, dtype in product(options.targets, options.dtypes):
        with mock.patch.object(driver, "_active", AbsentDevice(target)):
            for layout, name in product(LAYOUTS, options.operators or ROWS):
                if NAMES[dtype] not in ROWS[name].dtypes:
                    continue
                row = executed(target, dtype, layout, ROWS[name])
                print(row, flush=True)
                known[target, dtype, layout, name] = {column: str(value) for column, value in asdict(row).items()}
                fresh += 1
        write([known[one] for one in combinations() if one in known], options.out)
    rows = [known[one] for one in combinations() if one in known]
    print(*page(rows), sep="\n")
    print(f"wrote {options.out}: {fresh} rows executed, {len(rows) - fresh} kept, {len(known) - len(rows)} removed")
    return rows


def combinations() -> Iterator[tuple[str, ...]]:
    """What a row can be of, in the order of the file."""
    for target, dtype, layout, operator in product(TARGETS, NAMES, LAYOUTS, OPERATORS):
        if NAMES[dtype] in operator.dtypes:
            yield target, dtype, layout, str(operator)


def key(row: dict[str, str]) -> tuple[str, ...]:
    """What no two rows share."""
    return tuple(row[column] for column in KEY)


def units(row: dict[str, str]) -> list[float]:
    """Both figures of a row, or the one that it has."""
    return [float(row[column]) for column in ("worst", "worst_at_ends") if row[column] != "-"]


def page(rows: Rows) -> list[str]:
    """The worst of each operator and dtype over layouts, targets and both ends, as Markdown; with what was executed."""
    lines = [f"| operator | {' | '.join(NAMES)} | launches | instructions |", "|---|" + "--:|" * (len(NAMES) + 2)]
    operators = [name for name in ROWS if any(row["operator"] == name for row in rows)]
    for name in operators:
        mine = [row for row in rows if row["operator"] == name]
        lines.append(cells(f"`{name}`", mine))
    return [*lines, cells("all", rows)]


def cells(name: str, rows: Rows) -> str:
    """One line; a dash where the operator does not take the dtype."""
    by_dtype = [[one for row in rows if row["dtype"] == dtype for one in units(row)] for dtype in NAMES]
    worst = [in_units(max(values), digits=2) if values else "–" for values in by_dtype]
    totals = [f"{sum(int(row[column]) for row in rows):,}" for column in ("launches", "instructions")]
    return f"| {' | '.join([name, *worst, *totals])} |"


def write(rows: Iterable[dict[str, str]], path: Path) -> None:
    """One line a row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read(path: Path) -> Rows:
    """The rows of a file that `write` wrote, as text."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise InputError(f"{path}: got columns {reader.fieldnames}, expected {', '.join(COLUMNS)}")
        return list(reader)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 if a result is off by more than is allowed, 2 if an option cannot be used."""
    options = tyro.cli(Table, prog="python -m tests.executed.table", description=__doc__, args=arguments)
    torch.set_num_threads(1)
    try:
        rows = run(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    too_far = [row for row in rows if max(units(row)) > 1]
    for row in too_far:
        print(f"off by more than is allowed: {' '.join(key(row))}")
    return bool(too_far)


if __name__ == "__main__":
    sys.exit(main())
