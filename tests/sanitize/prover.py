"""Proves, for all programs of a grid at once, that a kernel stays inside its tensors, and its integers in their width:
triton-viz's symbolic sanitizer.

A kernel runs once with symbols for the program's number, for the lanes and for the counters of its loops; at each load
and store the solver looks for values with which an active lane leaves the tensor that its pointer came from. The
sanitizer of triton-viz 3.0 is sharpened where it would accept too much, or could not follow:

- Two ranges of equal length are two symbols, and so is one range along either axis of a block; there they are one.
- An access must stay inside its own tensor, there inside any argument. Only "unsatisfiable" counts as a proof.
- Loops know the bounds of the loops around them, and bounds may depend on the program; static loops are unrolled, so
  that they can index tuples. The counter of any other stands for all passes, so its body is followed a few times only:
  if it then still comes to new addresses, they are carried from pass to pass, and that is a failure.
- An `if` goes both ways, where both are possible, one after the other.
- Sums keep their block's shape. What is computed from loaded values may not become an address or a mask.
- The solver's integers have no bounds, a GPU's have: every sum, difference, product and narrowing cast of 32 bits or
  fewer must hold in its type, in all lanes, masked or not, for a mask that wraps lets its lanes through.

Importing this module wraps `triton.jit`, so it must come before any kernel.
"""

import builtins
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple

if "triton" in sys.modules:
    raise RuntimeError("triton was imported before triton.jit could be wrapped")
os.environ["TRITON_INTERPRET"] = "1"
os.environ["SANITIZER_ENABLE_FAKE_TENSOR"] = "1"  # no tensor's memory is touched

import triton
import triton.language as tl
import triton_viz  # type: ignore[import-not-found]
import z3  # type: ignore[import-not-found]
from triton.runtime.interpreter import InterpreterBuilder, ReduceOps
from triton_viz.clients.sanitizer import report, sanitizer  # type: ignore[import-not-found]
from triton_viz.core import patch  # type: ignore[import-not-found]
from triton_viz.core.callbacks import ForLoopCallbacks, OpCallbacks  # type: ignore[import-not-found]
from triton_viz.core.data import ReduceMax, ReduceMin, ReduceSum  # type: ignore[import-not-found]
from triton_viz.frontends.base import OPERATION_REGISTRY  # type: ignore[import-not-found]
from triton_viz.wrapper import create_patched_jit  # type: ignore[import-not-found]

SymbolicExpr = sanitizer.SymbolicExpr
TIMEOUT_MS = 20_000
PASSES = 6


@dataclass
class Proof:
    """What is known of one launch.

    Attributes:
        kernel: by name.
        tensors: by parameter.
        accesses: `(tensor, "load" or "store")`, where some lane of some program is active.
        failures: one line for each access that is not proved to stay inside, and each integer that may wrap.
    """

    kernel: str
    tensors: set[str] = field(default_factory=set)
    accesses: set[tuple[str, str]] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)


@dataclass
class Loop:
    """A loop that is being followed.

    Attributes:
        counter: a symbol, for all passes.
        within: its bounds.
        length: passes in all.
        begun: passes until now.
        new: those that came to an address which had not been there.
    """

    counter: tl.tensor
    within: Any
    length: int
    begun: int = 0
    new: set[int] = field(default_factory=set)

    def carries(self) -> bool:
        """Whether addresses are carried from pass to pass: of many passes the last that are followed bring new ones.

        One alone may: the solver writes the same expression in another order when it is older than its parts.
        """
        self.new.add(self.begun)
        return self.begun == PASSES < self.length and self.begun - 1 in self.new


class Choice(NamedTuple):
    """What an `if` was taken for, and whether the other way is still to be followed."""

    taken: bool
    other: bool


@dataclass
class FollowedRange:
    """What a loop iterates over in place of its range."""

    passes: range
    loop: Loop

    def __iter__(self) -> Iterator[int]:
        return iter(self.passes)


class Prover(sanitizer.SymbolicSanitizer):
    """The client of triton-viz that every kernel is traced with."""

    def __init__(self) -> None:
        super().__init__(abort_on_error=False)
        self.proofs: list[Proof] = []
        self.loops: list[Loop | None] = []  # the innermost last; None is one that is unrolled
        self.tensors_at: dict[int, tuple[str, int]] = {}
        self.scalars: dict[str, tl.tensor] = {}
        self.seen: set[str] = set()
        self.solver = z3.Solver()
        self.grid: tuple[int, ...] = ()
        self.path: list[Choice] = []  # what each `if` on the way was taken for
        self.passed = 0  # of these, on the run that is under way
        self.need_full_grid = False

    def arg_callback(self, name: str, arg: Any, arg_cvt: Any) -> None:
        """An argument, before the launch: address, and bytes from the first to the last element of each tensor."""
        if isinstance(arg, tuple):
            for i, one in enumerate(arg):
                self.arg_callback(f"{name}[{i}]", one, None)
        elif hasattr(arg, "data_ptr") and 0 not in arg.shape:
            span = 1 + sum((size - 1) * stride for size, stride in zip(arg.shape, arg.stride(), strict=True))
            known, size = self.tensors_at.get(arg.data_ptr(), (name, 0))
            self.tensors_at[arg.data_ptr()] = (known, max(size, span * arg.element_size()))
        elif isinstance(arg_cvt, tl.tensor):
            self.scalars[name] = arg_cvt

    def grid_callback(self, grid: tuple[int, ...]) -> None:
        """The start of a launch, after its arguments."""
        self.grid, self.path, self.need_full_grid = grid, [], False
        self.begin()

    def begin(self) -> None:
        """One way through the kernel, of which nothing is known but the grid."""
        self.loops, self.seen, self.passed = [], set(), 0
        self.solver = z3.Solver()
        self.solver.set("timeout", TIMEOUT_MS)
        symbols = (SymbolicExpr.PID0, SymbolicExpr.PID1, SymbolicExpr.PID2)
        for symbol, extent in zip(symbols, self.grid, strict=True):
            self.solver.add(symbol >= 0, symbol < extent)

    def pre_run_callback(self, fn: Any) -> bool:
        """Asked before every program; the first stands for all. The interpreter knows no width that is declared."""
        for name, annotation in fn.__annotations__.items():
            if annotation == "tl.int64":
                scalar = self.scalars[name]
                scalar.dtype = scalar.type = scalar.handle.dtype = tl.int64
        if not self.path:
            self.proofs.append(Proof(fn.__name__, {name for name, _ in self.tensors_at.values()}))
        return True

    def post_run_callback(self, fn: Any) -> bool:
        """Whether to go on with the next program, which is taken for another way through the kernel."""
        while self.path and not self.path[-1].other:
            self.path.pop()
        if self.path:
            self.path[-1] = Choice(not self.path[-1].taken, other=False)
            self.begin()
            return True
        if self.need_full_grid:
            self.proofs[-1].failures.append("an address, a mask or a loop's bound depends on loaded values")
        self.tensors_at, self.scalars = {}, {}
        return False

    def decide(self, condition: Any) -> bool:
        """Which way an `if` on unknown numbers goes: one after the other, where both are possible."""
        value, constraints = condition._to_z3()
        self.need_full_grid = self.need_full_grid or condition.has_op("load")
        truth = value if z3.is_bool(value) else value != 0
        around = [loop.within for loop in self.loops if loop is not None]
        known = [z3.BoolVal(True) if constraints is None else constraints, *around]
        possible = [way for way in (True, False) if self.solver.check(*known, truth == way) != z3.unsat]
        taken = possible[0]
        if len(possible) == 2:
            if self.passed == len(self.path):
                self.path.append(Choice(True, other=True))
            taken = self.path[self.passed].taken
            self.passed += 1
            self.solver.add(truth == taken)
        return taken

    def check_width(self, expr: Any) -> None:
        """One integer that was computed, if it has at most 32 bits."""
        if expr.has_op("load") or not expr.dtype.scalar.is_int() or expr.dtype.scalar.int_bitwidth > 32:
            return
        bits = expr.dtype.scalar.int_bitwidth
        values, constraints = expr._to_z3()
        around = [loop.within for loop in self.loops if loop is not None]
        for value in values if isinstance(values, list) else [values]:
            inside = z3.And(value >= -(2 ** (bits - 1)), value < 2 ** (bits - 1))
            known = z3.And(z3.BoolVal(True) if constraints is None else constraints, *around)
            key = f"width {fingerprint(z3.And(inside, known))}"
            if z3.is_true(z3.simplify(inside)) or key in self.seen:
                continue
            self.seen.add(key)
            self.solver.push()
            self.solver.add(known, z3.Not(inside))
            result = self.solver.check()
            if result != z3.unsat:
                file, line, _ = sanitizer._get_user_code_location()
                example = "the solver gave up"
                if result == z3.sat:
                    example = str(self.solver.model().evaluate(value, model_completion=True))
                kernel = self.proofs[-1].kernel
                self.proofs[-1].failures.append(f"{kernel}: {expr.op} at {file}:{line} wraps int{bits}: {example}")
            self.solver.pop()

    def _handle_access_check(self, expr: Any) -> None:
        """One load or store."""
        addresses, constraints = expr._to_z3()
        constraints = z3.BoolVal(True) if constraints is None else constraints
        base = self._collect_tensor_base(expr.ptr)
        name, size = self.tensors_at[base]
        proof = self.proofs[-1]
        width = expr.ptr.dtype.scalar.element_ty.primitive_bitwidth // 8
        loops = [loop for loop in self.loops if loop is not None]
        around = [loop.within for loop in loops]
        for address in addresses if isinstance(addresses, list) else [addresses]:
            key = f"{expr.op} {fingerprint(z3.And(address == 0, constraints, *around))}"
            if key in self.seen:
                continue
            self.seen.add(key)
            carried = [loop.carries() for loop in loops]
            if any(carried):
                proof.failures.append(f"{proof.kernel}: {expr.op} {name}: the address is carried from pass to pass")
            self.solver.push()
            self.solver.add(constraints, *around)
            if (name, expr.op) not in proof.accesses and self.solver.check() == z3.sat:
                proof.accesses.add((name, expr.op))
            self.solver.add(z3.Or(address < base, address + width > base + size))
            result = self.solver.check()
            if result != z3.unsat:
                file, line, _ = sanitizer._get_user_code_location()
                example = "the solver gave up"
                if result == z3.sat:
                    offset = self.solver.model().evaluate(address, model_completion=True).as_long() - base
                    example = f"byte {offset} of {size}"
                proof.failures.append(f"{proof.kernel}: {expr.op} {name} at {file}:{line}: {example}")
            self.solver.pop()

    def register_op_callback(self, op_type: Any) -> OpCallbacks:
        """Reductions are followed further down, where the shape of the result is known."""
        return OpCallbacks() if op_type in (ReduceSum, ReduceMax, ReduceMin) else super().register_op_callback(op_type)

    def register_for_loop_callback(self) -> ForLoopCallbacks:
        """Unrolls static loops; any other has a symbol for its counter, between bounds that may be symbols too."""

        def wrap(iterable: Any, line: int, kind: str, arguments: tuple[Any, ...], *rest: Any) -> Any:
            if kind == "tl_static_range":
                return None
            expressions = [SymbolicExpr.from_value(value) for value in arguments]
            self.need_full_grid = self.need_full_grid or any(e.has_op("load") for e in expressions)
            bounds = [z3.simplify(e._to_z3()[0]) for e in expressions]
            start = bounds[0] if len(bounds) > 1 else z3.IntVal(0)
            stop = bounds[min(1, len(bounds) - 1)]
            step = bounds[2] if len(bounds) > 2 else z3.IntVal(1)
            symbol = z3.Int(f"loop_{len(self.loops)}_line_{line}")
            dtype = tl.int64 if any(e.dtype == tl.int64 for e in expressions) else tl.int32
            counter = SymbolicExpr.create("const", 0, dtype)
            counter.z3 = symbol
            within = z3.And(symbol >= start, symbol < stop, (symbol - start) % step == 0)
            known = all(z3.is_int_value(bound) for bound in (start, stop, step))
            passes = len(range(start.as_long(), stop.as_long(), step.as_long())) if known else PASSES + 1
            return FollowedRange(range(min(passes, PASSES)), Loop(tl.tensor(counter, dtype), within, passes))

        def enter(line: int, iterable: Any) -> None:
            self.loops.append(iterable.loop if isinstance(iterable, FollowedRange) else None)

        def count_on(line: int, value: Any) -> Any:
            loop = self.loops[-1]
            if loop is None:
                return value
            loop.begun += 1
            return loop.counter

        return ForLoopCallbacks(
            range_wrapper_factory=wrap,
            before_loop_callback=enter,
            loop_iter_overrider=count_on,
            after_loop_callback=lambda line: self.loops.pop(),
        )


def symbol_of_its_own(self: Any) -> tuple[Any, Any]:
    """The value of a `tl.arange`, marked with `?`: along which axis it lies is not known yet."""
    symbol = z3.Int(f"lane_{next(NUMBERS)}?")
    return symbol, z3.And(symbol >= self.start.to_py(), symbol < self.end.to_py())


def along_an_axis(self: Any) -> tuple[Any, Any]:
    """The value of `x[:, None]` or `x[None, :]`: lanes along one axis are independent of lanes along the other."""
    value, constraints = self.arg._to_z3()
    axis = self.axis.to_py()

    def placed(expr: Any) -> Any:
        lanes = {v for v in variables(expr) if v.decl().name().endswith("?")}
        return z3.substitute(expr, *[(v, z3.Int(v.decl().name().replace("?", f"@{axis}"))) for v in lanes])

    values = [placed(v) for v in value] if isinstance(value, list) else placed(value)
    return values, None if constraints is None else placed(constraints)


def fingerprint(expr: Any) -> str:
    """The same for expressions that differ in the names of their lanes alone: every pass makes new ones."""
    names: dict[str, str] = {}
    return re.sub(r"lane_\d+", lambda match: names.setdefault(match[0], f"lane {len(names)}"), expr.sexpr())


def variables(expr: Any) -> set[Any]:
    """The free symbols of an expression."""
    found, open_ends, visited = set(), [expr], set()
    while open_ends:
        node = open_ends.pop()
        if node.get_id() in visited:
            continue
        visited.add(node.get_id())
        if z3.is_const(node) and node.decl().kind() == z3.Z3_OP_UNINTERPRETED:
            found.add(node)
        open_ends += node.children()
    return found


def conjunction(self: Any, left: Any, right: Any) -> Any:
    """`&` of masks; triton-viz takes a constant mask for a number, whose bits are slow to reason about."""
    if isinstance(left, list) or isinstance(right, list):
        raise NotImplementedError("a mask made of alternatives")
    return z3.And(*(side if z3.is_bool(side) else side != 0 for side in (left, right)))


def either(self: Any) -> tuple[Any, Any]:
    """`tl.where`; triton-viz makes a list of one."""
    parts = [part._to_z3() for part in (self.cond, self.lhs, self.rhs)]
    condition, left, right = (value for value, _ in parts)
    known = [constraints for _, constraints in parts if constraints is not None]
    truth = condition if z3.is_bool(condition) else condition != 0
    return z3.If(truth, left, right), z3.And(*known) if known else None


def reduced(self: ReduceOps, input: tl.tensor) -> tl.tensor:
    """The result of a reduction: opaque, and of its shape."""
    shape = [size for axis, size in enumerate(input.shape) if axis != self.axis]
    expression = SymbolicExpr.create("reshape", input.handle, 0)
    return tl.tensor(expression, tl.block_type(input.dtype.scalar, shape) if shape else input.dtype.scalar)


def transposed(builder: InterpreterBuilder, values: Any, dims: Any) -> Any:
    """The values of `tl.trans`: opaque."""
    return SymbolicExpr.create("reshape", values, 0)


def width_checked(create: Any) -> Any:
    """An expression's `__init__`, whose value is then looked at."""

    def init(self: Any, op: str, *args: Any) -> None:
        create(self, op, *args)
        if op in ("add", "sub", "mul", "cast_impl"):
            PROVER.check_width(self)

    return init


report._FRAMEWORK_PATHS = (*report._FRAMEWORK_PATHS, __file__)  # so that a failure names the kernel's line
# Loops are rewritten in device functions too, in any module, but what watches them is named in the kernel's alone.
builtins._triton_viz_loop_patcher = patch._loop_patcher  # type: ignore[attr-defined]
NUMBERS = count()
SymbolicExpr.triton_scala_dtypes = (*SymbolicExpr.triton_scala_dtypes, tl.bfloat16)
sanitizer.ArangeSymbolicExpr._to_z3_impl = symbol_of_its_own
sanitizer.ExpandDimsSymbolicExpr._to_z3_impl = along_an_axis
sanitizer.BinarySymbolicExpr._Z3_BUILDERS["bitwise_and"] = conjunction
sanitizer.WhereSymbolicExpr._to_z3_impl = either
ReduceOps.apply = reduced
del OPERATION_REGISTRY["triton"].namespaces[tl]["trans"]  # its result would have the shape of a scalar
InterpreterBuilder.create_trans = transposed
PROVER = Prover()
sanitizer.SymbolicExprDataWrapper.__bool__ = lambda self: PROVER.decide(self.symbolic_expr)
for expression in (sanitizer.BinarySymbolicExpr, sanitizer.CastSymbolicExpr):
    expression.__init__ = width_checked(expression.__init__)
triton.jit = create_patched_jit(lambda kernel: triton_viz.trace(client=PROVER)(kernel))


@contextmanager
def proving() -> Iterator[list[Proof]]:
    """Proves every launch inside, into the list that is yielded."""
    PROVER.proofs = []
    yield PROVER.proofs
