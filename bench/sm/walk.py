"""Follows the warps of one program through machine code: which instructions they issue, which memory those touch.

Integers, predicates and addresses are computed as the launch's own arguments and the program's number give them, so
that loops run as often as they would and every access is known to its bytes; other values are not known. Tensors lie
far apart, so an address tells its tensor.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.offline import Bytes, Launch
from bench.sm.integers import evaluate, unknown
from bench.sm.sass import Instruction, Operand, Program
from bench.sm.values import FALSE, MAYBE, TRUE, Array, Values

WARP, SECTOR, LINE, BANK, INSTRUCTION_BYTES = 32, 32, 128, 4, 16
LONGEST = 200_000  # instructions of a warp: beyond, a loop has no end
APART = 40  # tensors start at multiples of 2⁴⁰ bytes
LOADS = ("LDG", "LDGSTS")
GLOBAL = (*LOADS, "STG")
SHARED = ("LDS", "STS", "LDSM", "STSM")
LOCAL = ("LDL", "STL")
OTHER_MEMORY = ("LD", "ST", "ATOM", "ATOMG", "ATOMS", "RED", "REDG", "UBLKCP", "UTMALDG", "UTMASTG", "SUATOM")
JUMPS = ("BRA", "CALL")
WITHOUT_RESULT = ("STG", "STS", "STSM", "STL", "LDGSTS", "BAR", "DEPBAR", "EXIT", "RET", *JUMPS)
STACK = 0x1000000


@dataclass(frozen=True)
class Access:
    """What one instruction of one warp does to memory.

    Attributes:
        tensor: the parameter's name; "" for shared and local memory.
        bytes: that its lanes ask for.
        sectors: of 32 bytes, that these lie in.
        lines: of 128 bytes; of shared memory, passes over its banks.
        fresh: sectors among them that no warp of the program touched before.
    """

    tensor: str
    bytes: int
    sectors: int
    lines: int
    fresh: int


Step = tuple[Instruction, Access | None]


@dataclass
class Walk:
    """What the warps of one program do.

    Attributes:
        warps: of each the instructions it issues, and what those do to memory.
        touched: of each tensor the sectors that the program touches.
    """

    warps: list[list[Step]]
    touched: dict[str, set[int]] = field(default_factory=dict)


def walk(program: Program, grid: Sequence[int], number: int, num_warps: int, arguments: Mapping[str, Any]) -> Walk:
    """Runs one program of a launch.

    Args:
        program: the machine code.
        grid: programs along x, y and z.
        number: of the program, counted along x first.
        num_warps: of a program.
        arguments: of the kernel, by name, in order: integers, floats (not looked at), and `Bytes`.

    Raises:
        ValueError: the code does what is not known here: a branch or an address depends on values that were loaded, or
            an instruction reaches memory in a way that is not modelled.
    """
    x, y, z = (*grid, 1, 1)[:3]
    threads = num_warps * WARP
    special = {"SR_TID.X": np.arange(threads), "SR_LANEID": np.arange(threads) % WARP}
    for axis, at in zip("XYZ", (number % x, number // x % y, number // (x * y)), strict=True):
        special[f"SR_CTAID.{axis}"] = np.array([at])
    special |= {name: np.array([0]) for name in ("SR_TID.Y", "SR_TID.Z", "SR_CgaCtaId")}
    values = Values(constants(program, (threads, 1, 1), (x, y, z), list(arguments.values())), special)
    names = [name for name, value in arguments.items() if isinstance(value, Bytes)]
    return Machine(program, values, num_warps, names).run()


def constants(program: Program, block: Sequence[int], grid: Sequence[int], arguments: Sequence[Any]) -> dict[int, int]:
    """Words of constant bank 0: extents of block and grid, and the parameters.

    The extents stand at the beginning, or, since Blackwell, 32 bytes before the parameters.
    """
    extents = 0 if program.parameters < 0x300 else program.parameters - 0x20
    words = {extents + 4 * i: extent for i, extent in enumerate(block)}
    words |= {extents + (12 if extents == 0 else 16) + 4 * i: extent for i, extent in enumerate(grid)}
    words[0x28 if extents == 0 else program.parameters - 4] = STACK
    tensors = 0
    ends = [*program.offsets[1:], program.offsets[-1] + 8]
    for i, (start, end) in enumerate(zip(program.offsets, ends, strict=True)):
        value = arguments[i] if i < len(arguments) else 0  # Triton adds pointers to scratch memory, which are null
        if isinstance(value, Bytes):
            tensors += 1
            value = tensors << APART
        if isinstance(value, int):
            for k in range(2 if end - start >= 8 else 1):
                words[program.parameters + start + 4 * k] = int(value) >> 32 * k & 0xFFFFFFFF
    return words


class Machine:
    """The lanes of one program; those that are behind go first, as where warps part they meet again."""

    def __init__(self, program: Program, values: Values, num_warps: int, tensors: list[str]) -> None:
        self.program, self.values, self.tensors = program, values, tensors
        self.at = np.zeros(num_warps * WARP, np.int64)
        self.result = Walk([[] for _ in range(num_warps)], {name: set() for name in tensors})

    def run(self) -> Walk:
        """To the end of every lane."""
        instructions, done = self.program.instructions, len(self.program.instructions)
        for _ in range(LONGEST * len(self.result.warps)):
            step = int(self.at.min())
            if step == done:
                return self.result
            active = self.at == step
            instruction = instructions[step]
            try:
                self.issue(instruction, active, step)
            except (ValueError, IndexError, StopIteration, TypeError) as error:
                raise ValueError(f"{instruction.text} (instruction {step}): {error}") from error
        raise ValueError(f"a warp issues more than {LONGEST} instructions")

    def issue(self, instruction: Instruction, active: NDArray[np.bool_], step: int) -> None:
        """One instruction, in the lanes that are at it."""
        name = instruction.name
        may = self.guarded(instruction, active)
        acts = active & (may == TRUE)
        self.at[active] = step + 1
        if name in JUMPS or name in ("EXIT", "RET"):
            self.jump(instruction, active, may, step)
        accesses: dict[int, Access] = {}
        if name in (*GLOBAL, *SHARED):
            if (may[active] == MAYBE).any():
                raise ValueError("whether it acts depends on values that were loaded")
            accesses = self.globally(instruction, acts) if name in GLOBAL else self.shared(instruction, acts)
        elif name in OTHER_MEMORY:
            raise ValueError("accesses of this kind are not modelled")
        for warp in np.flatnonzero(active.reshape(-1, WARP).any(1)):
            self.result.warps[warp].append((instruction, accesses.get(int(warp))))
        if (may[active] == MAYBE).any():
            self.values.mask = active & (may != FALSE)
            if name not in WITHOUT_RESULT:
                unknown(self.values, instruction)  # either the old value or the new one
        elif acts.any():
            self.values.mask = None if acts.all() else acts
            if name in LOCAL:
                self.local(instruction)
            elif name not in WITHOUT_RESULT:
                evaluate(self.values, instruction)

    def local(self, instruction: Instruction) -> None:
        """What is put aside on the stack and taken up again may be an address."""
        count = instruction.access_bytes // 4
        memory = next(operand for operand in instruction.operands if operand.kind == "memory")
        register = next(operand for operand in instruction.operands if operand.kind == "register")
        start = self.values.address(memory)
        if (start < 0).any() or (start != start[0]).any():
            raise ValueError("where on the stack is not known")
        at = Operand("register", f"L{int(start[0]) // 4}")  # the stack as registers of one more kind
        if instruction.name == "STL":
            self.values.set(at, *(self.values.value(register, i) for i in range(count)))
        else:
            self.values.set(register, *(self.values.value(at, i) for i in range(count)))

    def guarded(self, instruction: Instruction, active: NDArray[np.bool_]) -> Array:
        """Of each lane, whether the instruction acts: FALSE, MAYBE or TRUE."""
        may: Array = np.full(len(active), TRUE)
        guards = [] if instruction.guard is None else [instruction.guard]
        if instruction.name in JUMPS:
            guards += [operand for operand in instruction.operands if operand.kind == "predicate"]
        for guard in guards:
            may = np.minimum(may, self.values.predicate(guard))
        return may

    def jump(self, instruction: Instruction, active: NDArray[np.bool_], may: Array, step: int) -> None:
        """Branches, calls and the end."""
        end = len(self.program.instructions)
        if instruction.name == "RET":
            target = self.values.value(next(o for o in instruction.operands if o.kind == "register"))
            if (target < 0).any():
                raise ValueError("where it returns to is not known")
            self.at[active] = np.broadcast_to(target // INSTRUCTION_BYTES, self.at.shape)[active]
            return
        if instruction.name == "EXIT":
            target_step = end
        else:
            label = next(o.name for o in instruction.operands if o.kind == "other").strip("`()")
            target_step = self.program.labels[label]
        if (may[active] == MAYBE).any():
            # Quotients and roots test their operands for rare ranges, which a subroutine then takes care of.
            skipped = self.program.instructions[step + 1 : target_step]
            if instruction.name != "BRA" or not any(one.name == "CALL" for one in skipped):
                raise ValueError("the branch depends on values that were loaded")
            may = np.where(active, TRUE, may)
        self.at[active & (may == TRUE)] = target_step

    def globally(self, instruction: Instruction, acts: NDArray[np.bool_]) -> dict[int, Access]:
        """What each warp touches in tensors."""
        memory = [operand for operand in instruction.operands if operand.kind == "memory"]
        for operand in instruction.operands[2:] if instruction.name == "LDGSTS" else ():
            if operand.kind == "predicate":  # where it does not hold, zeros are stored
                acts = acts & (np.broadcast_to(self.values.predicate(operand), acts.shape) == TRUE)
        address = np.broadcast_to(
            self.values.address(memory[-1] if instruction.name != "STG" else memory[0]), acts.shape
        )
        if (address[acts] < 0).any():
            raise ValueError("the address depends on values that were loaded")
        size = instruction.access_bytes
        found = {}
        for warp in np.flatnonzero(acts.reshape(-1, WARP).any(1)):
            lanes = np.arange(warp * WARP, (warp + 1) * WARP)
            mine = np.unique(address[lanes[acts[lanes]]])
            numbers = mine >> APART
            if (numbers != numbers[0]).any() or not 0 < numbers[0] <= len(self.tensors):
                raise ValueError(f"the address {mine[0]:#x} lies in no tensor")
            name = self.tensors[int(numbers[0]) - 1]
            sectors = {int(s) for byte in (0, size - 1) for s in (mine + byte) // SECTOR}
            touched = self.result.touched[name]
            fresh = len(sectors - touched)
            touched |= sectors
            lines = len({sector * SECTOR // LINE for sector in sectors})
            found[int(warp)] = Access(name, size * len(mine), len(sectors), lines, fresh)
        return found

    def shared(self, instruction: Instruction, acts: NDArray[np.bool_]) -> dict[int, Access]:
        """Passes over the banks of shared memory that each warp needs; the fewest where addresses are not known."""
        operand = next(operand for operand in instruction.operands if operand.kind == "memory")
        address = np.broadcast_to(self.values.address(operand), acts.shape)
        size, lanes_used = instruction.access_bytes, WARP
        if instruction.name in ("LDSM", "STSM"):
            count = int(instruction.opcode[-1]) if instruction.opcode[-1].isdigit() else 1
            size, lanes_used = 16, 8 * min(count, 4)
        found = {}
        for warp in np.flatnonzero(acts.reshape(-1, WARP).any(1)):
            lanes = np.arange(warp * WARP, warp * WARP + lanes_used)
            at, who = address[lanes], acts[lanes]
            passes = 0
            together = min(WARP, BANK * WARP // size)
            for start in range(0, lanes_used, together):
                part = np.unique(at[start : start + together][who[start : start + together]])
                if len(part) == 0:
                    continue
                if (part < 0).any():
                    passes += 1
                    continue
                words = np.unique((part[:, None] + np.arange(0, size, BANK)) // BANK)
                passes += int(np.bincount(words % WARP).max())
            found[int(warp)] = Access("", int(size * who.sum()), 0, max(1, passes), 0)
        return found


def middle(launch: Launch, program: Program) -> Walk:
    """Of a launch the program in the middle of the grid.

    Raises:
        ValueError: as `walk`, with the kernel's name.
    """
    try:
        return walk(program, launch.grid, launch.programs // 2, launch.num_warps, launch.arguments)
    except ValueError as error:
        raise ValueError(f"{launch.kernel}: {error}") from error
