"""Executes PTX: all threads of several programs as lanes of NumPy arrays, in lock-step from barrier to barrier.

A value that nothing wrote may travel, as on a GPU; it must not be stored, be an address or decide anything. Where
threads of a program part, those that are behind go first, until all are at one instruction; what needs all of them,
such as a barrier, is an error before that. Whatever instruction is not known to the letter is refused.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from bench.ptx import arithmetic
from bench.ptx.arithmetic import Array, as_bits, typed
from bench.ptx.memory import WARP, Bytes, Counts, GlobalMemory, Index, KernelError, Mask, Region, SharedMemory
from bench.ptx.program import Instruction, Operand, Program, parse

Known = Mask | None
"""Which lanes hold a value that something wrote, or which half of it, if there are two columns; None: all."""
Value = tuple[Array, Known]
TOGETHER = {"bar", "ldmatrix", "stmatrix", "shfl"}
"""What all threads of a program do at the same time, here: on a GPU those of a warp would do for some."""
Order = Callable[[int], Sequence[int]]
"""Of so many things, as a permutation of their numbers."""
Handler = Callable[["Machine", "Lanes", Instruction, Mask | None], None]


@dataclass
class Lanes:
    """Threads that execute the same instructions at the same time; whole warps.

    Attributes:
        program: of each lane, by its number in the grid.
        slot: of each lane, where its program's shared memory is.
        thread: of each lane, within its program.
        step: the next instruction.
        apart: that of each lane, while threads of a program go different ways.
        registers: their bits, one element for all lanes or one for each, and which are known.
        copies: asynchronous ones, by the groups they were committed in; the last is still open.
    """

    program: Index
    slot: Index
    thread: Index
    step: int = 0
    apart: Index | None = None
    registers: dict[str, Value] = field(default_factory=dict)
    copies: list[list[tuple[Index, Bytes, Mask]]] = field(default_factory=lambda: [[]])

    def __len__(self) -> int:
        return len(self.thread)

    @property
    def warp(self) -> Index:
        """A number of each lane's warp that no other program's has."""
        return self.program * WARP + self.thread // WARP

    def chosen(self, mask: Mask, step: int) -> "Lanes":
        """Some of them, to go on by themselves."""

        def part(array: Array) -> Array:
            return array if len(array) == 1 else array[mask]

        registers = {name: (part(v), None if k is None else part(k)) for name, (v, k) in self.registers.items()}
        copies = [[(at[mask], data[mask], who[mask]) for at, data, who in group] for group in self.copies]
        return Lanes(self.program[mask], self.slot[mask], self.thread[mask], step, None, registers, copies)

    def next(self) -> Mask | None:
        """Sets the step to that of the lanes which are behind; these, or None: all."""
        if self.apart is None:
            return None
        self.step = int(self.apart.min())
        behind = self.apart == self.step
        if behind.all():
            self.apart = None
            return None
        return behind


def execute(
    ptx: str,
    grid: tuple[int, ...],
    arguments: Sequence[int | float | Region],
    shared_bytes: int,
    *,
    order: Order = range,
    batch: int = 16,
    warp_order: Order | None = None,
    error: float = 0.0,
) -> Counts:
    """Executes one launch, and writes what it stores into the regions.

    Args:
        ptx: a module with one kernel.
        grid: programs along x, y and z.
        arguments: by position; parameters beyond them, which Triton adds, are null.
        shared_bytes: of dynamic shared memory, for each program.
        order: of the programs.
        batch: so many programs are executed together.
        warp_order: in which warps of a program go from barrier to barrier, one after the other. None: together.
        error: of approximate functions, as a share, in −1 … 1, of what the manual allows.

    Raises:
        KernelError: the kernel does what none may do. Nothing is written back.
    """
    if np.float32(1e-45) * np.float32(1) == 0:
        raise RuntimeError(
            "this process flushes denormals to zero; the machine cannot be trusted with PTX that does not"
        )
    program = parse(ptx)
    counts = Counts()
    memory = GlobalMemory([argument for argument in arguments if isinstance(argument, Region)], counts)
    values = [memory.addresses[a] if isinstance(a, Region) else a for a in arguments]
    extra = len(program.parameters) - len(values)
    machine = Machine(program, (*grid, 1, 1)[:3], [*values, *[0] * extra], memory, counts, shared_bytes, error)
    programs = np.asarray(order(int(np.prod(grid))))
    with np.errstate(all="ignore"):
        for start in range(0, len(programs), batch):
            machine.run(programs[start : start + batch], warp_order)
    memory.write_back()
    return counts


class Machine:
    """One launch."""

    def __init__(
        self,
        program: Program,
        grid: tuple[int, ...],
        arguments: Sequence[int | float],
        memory: GlobalMemory,
        counts: Counts,
        shared_bytes: int,
        error: float,
    ) -> None:
        self.code, self.grid, self.memory, self.counts, self.error = program, grid, memory, counts, error
        self.shared_bytes = shared_bytes
        self.arguments = {
            name: np.array([value]).astype(arithmetic.TYPES[kind])
            for (kind, name), value in zip(program.parameters, arguments, strict=True)
        }

    def run(self, programs: Index, warp_order: Order | None) -> None:
        """From the first instruction to the last."""
        threads = self.code.threads
        self.shared = SharedMemory(len(programs), self.shared_bytes, self.counts)
        every = Lanes(
            np.repeat(programs, threads), np.repeat(np.arange(len(programs)), threads),
            np.tile(np.arange(threads), len(programs)),
        )  # fmt: skip
        ready = [every]
        if warp_order is not None:
            ready = [every.chosen(every.thread // WARP == warp, 0) for warp in warp_order(threads // WARP)]
        while ready:
            waiting = []
            while ready:
                lanes = ready.pop(0)
                parts = self.until_barrier(lanes)
                ready = parts + ready if parts is not None else ready
                if parts is None and lanes.step < len(self.code.instructions):
                    waiting.append(lanes)
            self.meet(waiting)
            ready = waiting

    def meet(self, waiting: list[Lanes]) -> None:
        """All threads of a program are at one barrier, or none is."""
        if not waiting:
            return
        slots = np.concatenate([lanes.slot for lanes in waiting])
        steps = np.concatenate([np.full(len(lanes), lanes.step) for lanes in waiting])
        for slot in np.unique(slots):
            there = steps[slots == slot]
            if len(there) != self.code.threads or len(np.unique(there)) != 1:
                raise KernelError("barrier", f"{len(there)} of {self.code.threads} threads of a program are there")
        self.shared.reads.order_programs(np.unique(slots))
        self.shared.writes.order_programs(np.unique(slots))

    def until_barrier(self, lanes: Lanes) -> list[Lanes] | None:
        """Executes up to the next barrier or the end; or to a branch where programs part, and returns the parts."""
        instructions = self.code.instructions
        while True:
            behind = lanes.next()
            if lanes.step == len(instructions):
                return None
            instruction = instructions[lanes.step]
            name = instruction.opcode[0]
            try:
                active = self.guard(lanes, instruction, behind)
                lanes.step += 1
                if lanes.apart is not None:
                    lanes.apart[behind] = lanes.step
                self.count(lanes, name, behind)
                if name in ("bra", "ret"):
                    end = name == "ret"
                    target = len(instructions) if end else self.code.labels[str(instruction.operands[0])]
                    if parts := self.jump(lanes, target, active):
                        return parts
                elif name in TOGETHER and active is not None:
                    raise KernelError("divergence", "some threads alone")
                elif instruction.opcode[:2] == ("bar", "sync"):
                    return None
                elif active is None or active.any():
                    handler(instruction.opcode)(self, lanes, instruction, active)
            except KernelError as fault:
                where = f"{self.code.name}: {instruction}"
                raise KernelError(fault.check, f"{fault.message} in {where}") from None

    def count(self, lanes: Lanes, name: str, behind: Mask | None) -> None:
        """Once for each warp."""
        there = np.ones(len(lanes), bool) if behind is None else behind
        self.counts.instructions[name] += int(there.reshape(-1, WARP).any(1).sum())

    def guard(self, lanes: Lanes, instruction: Instruction, behind: Mask | None) -> Mask | None:
        """The lanes that take part, of those that are at the instruction; None: all."""
        if instruction.guard is None:
            return behind
        values, known = self.read(lanes, instruction.guard.lstrip("!"), "pred")
        if known is not None and not (known if behind is None else known | ~behind).all():
            raise KernelError("unwritten", "a value that nothing wrote decides")
        active = np.broadcast_to(~values if instruction.guard[0] == "!" else values, len(lanes))
        active = active if behind is None else active & behind
        return None if active.all() else active

    def jump(self, lanes: Lanes, target: int, active: Mask | None) -> list[Lanes]:
        """Sets the next step of those that jump; where programs differ, each that has some goes on by itself."""
        if lanes.apart is not None:
            lanes.apart[active] = target
        elif active is None:
            lanes.step = target
        elif active.any():
            ways = active.reshape(-1, np.count_nonzero(lanes.slot == lanes.slot[0]))
            if len(ways) == 1:
                lanes.apart = np.where(active, target, lanes.step)
                return []
            all_jump, none = (np.repeat(mask, ways.shape[1]) for mask in (ways.all(1), ~ways.any(1)))
            alone = [lanes.slot == slot for slot in np.unique(lanes.slot[~all_jump & ~none])]
            parts = [lanes.chosen(all_jump, target)] if all_jump.any() else []
            parts += [lanes.chosen(none, lanes.step)] if none.any() else []
            for mask in alone:
                part = lanes.chosen(mask, lanes.step)
                part.apart = np.where(active[mask], target, lanes.step)
                parts.append(part)
            return parts
        return []

    def read(self, lanes: Lanes, operand: Operand, kind: str) -> Value:
        """A register, or a constant, as values of a type; of pairs each half may be known."""
        values, known = self.halves(lanes, operand, kind)
        return values, known if known is None or kind.endswith("x2") else np.asarray(known.all(1))

    def halves(self, lanes: Lanes, operand: Operand, kind: str) -> Value:
        """The same, with one column for each half that may be known alone."""
        name = str(operand)
        if name in lanes.registers:
            bits, known = lanes.registers[name]
            return typed(bits, kind), known
        if name[0] != "%":
            return constant(name, kind), None
        if name == "%tid.x":
            return typed(lanes.thread.astype(np.uint32), kind), None
        axis = "xyz".find(name[-1])
        if name.startswith("%ctaid."):
            place = lanes.program // int(np.prod(self.grid[:axis])) % self.grid[axis]
            return typed(place.astype(np.uint32), kind), None
        if name.startswith("%nctaid."):
            return typed(np.full(1, self.grid[axis], np.uint32), kind), None
        width = self.code.width(name)
        return typed(np.zeros(1, np.bool_ if width == 1 else f"u{width // 8}"), kind), np.zeros((1, 1), bool)

    def write(self, lanes: Lanes, operand: Operand, values: Array, known: Known, active: Mask | None) -> None:
        """Into a register, of the active lanes."""
        name = str(operand)
        if name == "_":
            return
        bits = as_bits(values, self.code.width(name))
        known = known[:, None] if known is not None and known.ndim == 1 else known
        if active is not None:
            old, old_known = lanes.registers.get(name, (np.zeros(1, bits.dtype), np.zeros((1, 1), bool)))
            bits = np.where(active, bits, old)
            if known is not None or old_known is not None:
                new, old = (np.ones((1, 1), bool) if mask is None else mask for mask in (known, old_known))
                known = np.where(active[:, None], new, old)
        lanes.registers[name] = bits, known

    def sure(self, lanes: Lanes, operand: Operand, kind: str, active: Mask | None) -> Array:
        """A value of each active lane, all of which something wrote."""
        values, known = self.read(lanes, operand, kind)
        if known is not None and not (known | (False if active is None else ~active)).all():
            raise KernelError("unwritten", f"nothing wrote {operand}, which leaves the registers")
        return chosen(values, lanes, active)

    def address(self, lanes: Lanes, operand: Operand, active: Mask | None) -> Index:
        """Of each active lane, in bytes."""
        base, _, offset = str(operand)[1:-1].partition("+")
        kind = "u64" if base[:3] == "%rd" else "u32"
        return self.sure(lanes, base, kind, active).astype(np.int64) + int(offset or "0", 0)


def chosen(values: Array, lanes: Lanes, active: Mask | None) -> Array:
    """Of each active lane its own."""
    every = np.broadcast_to(values, (len(lanes), *values.shape[1:]))
    return every if active is None else every[active]


def all_known(*known: Known) -> Known:
    """Where all are."""
    masks = [mask for mask in known if mask is not None]
    return np.logical_and.reduce(np.broadcast_arrays(*masks)) if masks else None


@cache
def constant(text: str, kind: str) -> Array:
    """A number, or the start of shared memory."""
    if text == "global_smem":
        return np.zeros(1, arithmetic.TYPES[kind])
    if text[:2] in ("0f", "0d"):
        return np.array([int(text[2:], 16)], f"u{(len(text) - 2) // 2}").view(arithmetic.TYPES[kind])
    number = int(text, 0)
    if kind == "pred":
        return np.array([number != 0])
    width = np.dtype(arithmetic.TYPES[kind]).itemsize * (2 if kind.endswith("x2") else 1)
    return typed(np.array([number % (1 << 8 * width)], f"u{width}"), kind)


@cache
def handler(opcode: tuple[str, ...]) -> Handler:
    """What executes an opcode."""
    from bench.ptx.instructions import FORMS

    text = ".".join(opcode)
    for form, execute in FORMS.items():
        if re.fullmatch(form, text):
            return execute
    raise KernelError("opcode", f"{text} is not known")
