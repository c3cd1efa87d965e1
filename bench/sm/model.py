"""The time of a launch, predicted by a model of one multiprocessor that issues what `walk` found.

What it has: warps that issue in order, after the stalls and scoreboards of their code; four partitions, one instruction
a cycle each; pipes with their rates; one load-store unit, which takes a 128-byte line, or a pass over the banks of
shared memory, a cycle; the share of L2's and of DRAM's bandwidth that falls to this multiprocessor; barriers; programs
that follow one another. What it leaves out: hits of X in L2, sets and capacity of L1, pages of DRAM and its turning
between reads and writes, translation of addresses, clocks that change, and everything between two launches.

Every program does what the one in the middle of the grid does, and every multiprocessor what the one with most programs
does. A sector that a program touches for the first time comes from DRAM. Where the sectors of all programs together are
more than the tensor has, as for V and Θ, a part comes from L2 instead: all that programs ask for which start after
the first wave. What a program touches again is in L1.
"""

import ctypes
import functools
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.compiled import MULTIPROCESSORS, resources
from bench.offline import Launch
from bench.sm.devices import PARTITIONS, Device
from bench.sm.sass import Instruction
from bench.sm.walk import LOADS, SECTOR, SHARED, Access, Walk

PIPES = {
    "ALU": (
        "BMSK BREV CS2R F2FP F2IP FCHK FLO FMNMX FMNMX3 FSEL FSETP HMNMX2 HSETP2 I2FP IABS IADD3 IMNMX ISETP LEA LOP3 "
        "MOV P2R PLOP3 POPC PRMT R2P SEL SGXT SHF VABSDIFF VIADD VIADDMNMX VIMNMX VIMNMX3 VOTE"
    ),
    "FMA": "FADD FADD2 FFMA FFMA2 FHADD FHFMA FMUL FMUL2 HADD2 HFMA2 HMUL2",
    "HEAVY": "IDP IMAD",
    "XU": "F2F F2I FRND I2F I2I MUFU",
    "MEMORY": "LDC LDG LDGDEPBAR LDGSTS LDL LDS LDSM MOVM REDUX S2R S2UR SHFL STG STL STS STSM",
    "UNIFORM": "LDCU R2UR",
    "TENSOR": "DMMA HMMA IMMA",
    "DOUBLE": "DADD DFMA DMNMX DMUL DSETP",
    "CONTROL": "ACQBULK BAR BRA BREAK BSSY BSYNC CALL CCTL DEPBAR ERRBAR EXIT MEMBAR NOP PREEXIT RET WARPSYNC YIELD",
}
"""Names of SASS instructions: "CUDA Binary Utilities"; a U before one is the uniform pipe's. HEAVY is that of FMA's two
pipes which multiplies integers too."""
NUMBERS = {name: number for number, name in enumerate(PIPES)}
PIPE_OF = {name: pipe for pipe, names in PIPES.items() for name in names.split()}
# Cycles between two instructions of one warp width: 16 lanes take two, the special functions' four take eight.
INTERVALS = {"ALU": 2, "FMA": 2, "HEAVY": 2, "XU": 8, "MEMORY": 2, "UNIFORM": 2, "TENSOR": 8, "DOUBLE": 4, "CONTROL": 1}
SHUFFLE_CYCLES, SHARED_CYCLES, VARIABLE_CYCLES, BARRIER_CYCLES = 24, 30, 30, 20
PLAIN, LOAD_L1, LOAD_SHARED, LOAD_DRAM, STORE, ON_CHIP, BARRIER, GROUP, WAIT_GROUP = range(9)
SHUFFLES = ("SHFL",)
OF_ONE_PROGRAM = 0.5  # a tensor of which each program touches its own part mostly


class CStep(ctypes.Structure):
    """One instruction of a trace; `Step` in model.c."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in (
            "pipe", "interval", "stall", "write", "read", "wait", "kind", "unit", "latency", "keep", "asynchronous",
        )),
        ("l2", ctypes.c_float), ("dram", ctypes.c_float),
    )  # fmt: skip


class CSetting(ctypes.Structure):
    """`Setting` in model.c."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in (
            "warps", "slots", "programs", "fma_pipes", "l2", "dram", "launch", "barrier",
        )),
        ("l2_bytes", ctypes.c_double), ("dram_bytes", ctypes.c_double),
    )  # fmt: skip


class CResult(ctypes.Structure):
    """`Result` in model.c."""

    _fields_ = (("cycles", ctypes.c_double), ("issued", ctypes.c_double))


@dataclass(frozen=True)
class Prediction:
    """What the model says of one launch.

    Attributes:
        microseconds: from the first program's start to the last one's end.
        issue_share: of the slots for instructions that were used.
    """

    microseconds: float
    issue_share: float


def pipe(instruction: Instruction) -> str:
    """The pipe that executes it.

    Raises:
        ValueError: it is not known.
    """
    name = instruction.name
    found = PIPE_OF.get(name) or (PIPE_OF.get(name.removeprefix("U")) and "UNIFORM")
    if found is None:
        raise ValueError(f"{instruction.text}: no pipe is known for it; add it to PIPES in {__file__}")
    return found


def step(instruction: Instruction, access: Access | None, shares: dict[str, float], device: Device) -> CStep:
    """One instruction as the model takes it; `shares` of each tensor's sectors come from DRAM."""
    name, where = instruction.name, pipe(instruction)
    result = CStep(
        pipe=NUMBERS[where], interval=INTERVALS[where], stall=instruction.stall, write=instruction.write,
        read=instruction.read, wait=instruction.wait, kind=PLAIN, latency=VARIABLE_CYCLES,
        asynchronous=name == "LDGSTS",
    )  # fmt: skip
    if access is not None:
        result.unit = max(1, access.lines)
        result.l2 = access.fresh * SECTOR
        result.dram = result.l2 * shares.get(access.tensor, 0)
        result.kind, result.latency = STORE, VARIABLE_CYCLES
        if name in LOADS:
            far = shares[access.tensor] > OF_ONE_PROGRAM
            result.kind = LOAD_L1 if not access.fresh else LOAD_DRAM if far else LOAD_SHARED
            result.latency = round(device.l1)
        elif name in SHARED:
            result.kind, result.latency = ON_CHIP, SHARED_CYCLES
        else:
            result.l2 = access.sectors * SECTOR
    elif name in SHUFFLES:
        result.kind, result.unit, result.latency = ON_CHIP, 1, SHUFFLE_CYCLES
    elif name in ("STL", "LDL"):
        result.kind, result.unit, result.latency = LOAD_L1, max(1, instruction.access_bytes // 4), round(device.l1)
    elif name == "BAR" and instruction.opcode[1] in ("SYNC", "RED"):
        result.kind = BARRIER
    elif name == "LDGDEPBAR":
        result.kind = GROUP
    elif name == "DEPBAR":
        result.kind = WAIT_GROUP
        result.unit, result.keep = waited_group(instruction)
    return result


def waited_group(instruction: Instruction) -> tuple[int, int]:
    """Of DEPBAR: the scoreboard, and how many of its last groups of copies need not have arrived."""
    board, *keep = instruction.operands
    return int(board.name.removeprefix("SB")), keep[0].value if keep and keep[0].kind == "number" else 0


def dram_shares(walk: Walk, launch: Launch) -> dict[str, float]:
    """Of each tensor: its bytes over those of the sectors that all programs touch."""
    programs = launch.programs
    return {
        name: launch.arguments[name].nbytes / (len(touched) * SECTOR * programs)
        for name, touched in walk.touched.items()
        if touched
    }


def resident(launch: Launch, device: Device) -> int:
    """Programs that are on one multiprocessor at once: what its resources and the grid allow."""
    used, limits = resources(launch.compiled), MULTIPROCESSORS[device.target]
    share = limits.occupancy(used.registers, used.shared_bytes, launch.num_warps)
    return min(round(share * limits.warps / launch.num_warps), math.ceil(launch.programs / device.multiprocessors))


def predict(walk: Walk, launch: Launch, device: Device) -> Prediction:
    """The time of a launch.

    Raises:
        ValueError: an instruction is none that the model knows.
    """
    programs = launch.programs
    here = math.ceil(programs / device.multiprocessors)
    shares = dram_shares(walk, launch)
    steps = [[step(one, access, shares, device) for one, access in warp] for warp in walk.warps]
    # All multiprocessors share the bandwidth; this one has its part of the programs.
    per_cycle = here / programs / (device.gigahertz * 1e9)
    setting = CSetting(
        warps=launch.num_warps, slots=resident(launch, device), programs=here, fma_pipes=device.fma_pipes,
        l2=round(device.l2), dram=round(device.dram), launch=round(device.launch), barrier=BARRIER_CYCLES,
        l2_bytes=device.l2_bandwidth * per_cycle, dram_bytes=device.copied * per_cycle,
    )  # fmt: skip
    result = simulate(steps, setting)
    return Prediction(1e-3 * result.cycles / device.gigahertz, result.issued / (PARTITIONS * result.cycles))


def simulate(warps: Sequence[Sequence[CStep]], setting: CSetting) -> CResult:
    """Runs the model on the traces of one program's warps.

    Raises:
        ValueError: not all warps of a program reach a barrier.
    """
    arrays = [(CStep * len(steps))(*steps) for steps in warps]
    traces = (ctypes.POINTER(CStep) * len(arrays))(*(ctypes.cast(a, ctypes.POINTER(CStep)) for a in arrays))
    lengths = (ctypes.c_int32 * len(arrays))(*map(len, arrays))
    result = CResult()
    if status := library().simulate(traces, lengths, ctypes.byref(setting), ctypes.byref(result)):
        raise ValueError("warps wait for one another without end" if status == 2 else "out of memory")
    return result


FOLDER = tempfile.TemporaryDirectory(prefix="tam-model-")


@functools.cache
def library() -> ctypes.CDLL:
    """model.c, compiled once a process.

    Raises:
        RuntimeError: there is no C compiler, or it fails.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise RuntimeError("the model is compiled at first use: install a C compiler (gcc or clang), or name it in CC")
    built = Path(FOLDER.name, "model.so")
    source = Path(__file__).with_name("model.c")
    command = [*compiler.split(), "-O2", "-shared", "-fPIC", "-o", str(built), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return ctypes.CDLL(str(built))
