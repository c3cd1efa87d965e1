"""The model of a multiprocessor on traces whose time is known by hand; machine code and options as they are read."""

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from bench import predict
from bench.sm import amdgcn, devices, integers, model, sass
from bench.sm.facts import asked_ahead
from bench.sm.sass import NO_SCOREBOARD, Instruction
from bench.sm.values import MASK, MAYBE, TRUE, Values
from bench.sm.walk import Access
from tests.bench.test_static import run_bench

H100 = devices.DEVICES["sm_90"]
LATENCY, L2 = 800, 280


def step(pipe: str = "ALU", kind: int = model.PLAIN, **fields: Any) -> model.CStep:
    """One instruction that nothing waits for."""
    usual = {
        "interval": model.INTERVALS[pipe],
        "stall": 1,
        "write": NO_SCOREBOARD,
        "read": NO_SCOREBOARD,
        "latency": 30,
    }
    return model.CStep(pipe=model.NUMBERS[pipe], kind=kind, **(usual | fields))


def load(sectors: int = 16, board: int = 0, kind: int = model.LOAD_DRAM, **fields: Any) -> model.CStep:
    """Of 128 bits by each lane: 512 bytes, four lines."""
    size = sectors * 32
    return step("MEMORY", kind, write=board, unit=max(1, sectors // 4), l2=size, dram=size, latency=38, **fields)


def cycles(
    *warps: list[model.CStep], programs: int = 1, slots: int = 1, dram_bytes: float = 1e9, **fields: int
) -> float:
    """How long it takes, bandwidth of L2 apart."""
    usual = {"fma_pipes": 2, "l2": L2, "dram": LATENCY, "launch": 0, "barrier": 20} | fields
    setting = model.CSetting(
        warps=len(warps), slots=slots, programs=programs, l2_bytes=1e9, dram_bytes=dram_bytes, **usual
    )
    return float(model.simulate(warps, setting).cycles)


def test_a_warp_that_waits_for_each_load_pays_its_latency() -> None:
    trace = [part for _ in range(10) for part in (load(), step(wait=1))]
    assert cycles(trace) == pytest.approx(10 * LATENCY, rel=0.02)


def test_loads_at_once_pay_it_once() -> None:
    trace = [*(load() for _ in range(10)), step(wait=1)]
    assert cycles(trace) == pytest.approx(LATENCY + 40, rel=0.05)


def test_copies_are_waited_for_by_groups() -> None:
    """Three groups; two may be on their way when the first is needed, none when the last is."""
    group = [load(board=NO_SCOREBOARD, asynchronous=1), step("MEMORY", model.GROUP, write=0)]
    wait = [step("CONTROL", model.WAIT_GROUP, unit=0, keep=2), *([step(stall=15)] * 100)]
    everything = step("CONTROL", model.WAIT_GROUP, unit=0, keep=0)
    assert cycles([*group * 3, *wait, everything]) == pytest.approx(LATENCY + 1500, rel=0.05)
    assert cycles([*group * 3, *wait, *group, everything]) == pytest.approx(2 * LATENCY + 1500, rel=0.05)


def test_streaming_is_limited_by_bandwidth() -> None:
    """64 warps, two loads ahead each: 64 KB under way, where 10 bytes a cycle × 800 cycles ask for 8."""
    trace = [load(board=0), *(part for i in range(1, 20) for part in (load(board=i % 2), step(wait=1 << (i - 1) % 2)))]
    total = 64 * 20 * 512
    assert cycles(*[trace] * 8, programs=8, slots=8, dram_bytes=10) == pytest.approx(total / 10 + LATENCY, rel=0.02)


def test_too_few_bytes_ahead_are_limited_by_latency() -> None:
    """One warp, 512 bytes ahead, of 10 a cycle × 800 = 8000 that the bandwidth asks for."""
    trace = [part for _ in range(20) for part in (load(), step(wait=1))]
    assert cycles(trace, dram_bytes=10) == pytest.approx(20 * (LATENCY + 51), rel=0.02)


@pytest.mark.parametrize(
    ("pipes", "warps", "expected"),
    [
        (("ALU",), 64, 16 * 2),  # 16 lanes of a partition: two cycles an instruction, 16 warps in each
        (("FMA",), 64, 16 * 1),  # two such pipes
        (("ALU", "FMA"), 64, 16 * 2),  # side by side: one slot for instructions in each partition is the limit
        (("XU",), 64, 16 * 8),
        (("ALU",), 1, 4),  # alone: its own stalls
    ],
)
def test_instructions_are_limited_by_pipes_and_slots(pipes: tuple[str, ...], warps: int, expected: int) -> None:
    count = 200
    trace = [step(pipe, stall=4) for _ in range(count) for pipe in pipes]
    assert count * expected * 0.99 <= cycles(*[trace] * warps) <= count * expected * 1.2


def test_an_a100_has_one_pipe_for_float32() -> None:
    trace = [step("FMA", stall=4)] * 200
    assert cycles(*[trace] * 64, fma_pipes=1) == pytest.approx(2 * cycles(*[trace] * 64), rel=0.05)


def test_a_barrier_waits_for_the_slowest() -> None:
    slow, fast = [step(stall=10)] * 100, [step()]
    barrier, after = step("CONTROL", model.BARRIER), [step(stall=10)] * 50
    assert cycles([*slow, barrier, *after], [*fast, barrier, *after]) == pytest.approx(1500 + 20, rel=0.02)


def test_a_barrier_that_not_all_reach_ends_for_those_that_do() -> None:
    """A warp that has ended is not waited for, as on a GPU."""
    assert cycles([step(), step("CONTROL", model.BARRIER), step()], [step()]) < 60


def test_programs_follow_one_another() -> None:
    trace = [load(), step(wait=1)]
    one = cycles(trace)
    assert cycles(trace, programs=6, slots=2) == pytest.approx(3 * one, rel=0.05)
    assert cycles(trace, programs=6, slots=6) == pytest.approx(one, rel=0.05)


def test_small_tensors_come_from_dram_in_the_first_wave_alone() -> None:
    trace = [load(kind=model.LOAD_SHARED), step(wait=1)]
    assert cycles(trace, programs=1) == pytest.approx(LATENCY, rel=0.05)
    assert cycles(trace, programs=4) == pytest.approx(LATENCY + 3 * L2, rel=0.1)


def test_conflicts_take_the_unit_of_all_partitions() -> None:
    trace = [step("MEMORY", model.ON_CHIP, unit=32) for _ in range(50)]
    assert cycles(*[trace] * 4) == pytest.approx(4 * 50 * 32, rel=0.05)


CODE = """
	.section	.text.kernel,"ax",@progbits
.text.kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;                               /* 0x00000a00ff017b82 */
                                                                                        /* 0x000e220000000800 */
.L_x_0:
        /*0010*/              @!P0 LDG.E.128 R4, desc[UR6][R2.64+-0x10] ;               /* 0x0000000602040981 */
                                                                                        /* 0x001ea8000c1e1d00 */
        /*0020*/                   IADD3 R2, P1, -R7.reuse, c[0x0][0x210], RZ ;         /* 0x0000840007027a10 */
                                                                                        /* 0x004fca0007f3e1ff */
        /*0030*/               @P1 BRA `(.L_x_0) ;                                      /* 0xfffffff000001947 */
                                                                                        /* 0x000fea000383ffff */
"""


def test_machine_code_is_taken_apart() -> None:
    (first, second, third, fourth), labels = sass.parse(CODE)
    assert labels == {".L_x_0": 1}
    assert (first.stall, first.write, first.read, first.wait) == (1, 0, NO_SCOREBOARD, 0)
    assert second.opcode == ("LDG", "E", "128")
    assert second.access_bytes == 16
    assert second.guard is not None
    assert (second.guard.name, second.guard.minus) == ("P0", True)
    assert (second.operands[1].parts, second.operands[1].value) == ((("R2", "64"),), -16)
    assert (second.stall, second.write, second.wait) == (4, 2, 1)
    assert third.wait == 1 << 2  # for the load
    assert [operand.kind for operand in third.operands] == ["register", "predicate", "register", "constant", "register"]
    assert third.operands[2].minus
    assert (third.operands[3].bank, third.operands[3].value) == (0, 0x210)
    assert fourth.operands[0].name == "`(.L_x_0)"


def test_a_line_without_its_control_code_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no control code follows.*LDC"):
        sass.parse("\n".join([*CODE.splitlines()[:4], ".L_x_0:"]))


def instruction(text: str, **control: int) -> Instruction:
    """One instruction from its text."""
    guard, opcode, operands = "", *text.split(" ", 1)
    if opcode.startswith("@"):
        guard, (opcode, operands) = opcode[1:], operands.split(" ", 1)
    codes = {"stall": 1, "write": NO_SCOREBOARD, "read": NO_SCOREBOARD, "wait": 0} | control
    taken = tuple(sass.operand(part) for part in sass.split(operands))
    return Instruction(sass.operand(guard) if guard else None, tuple(opcode.split(".")), taken, text=text, **codes)


def signed(value: int) -> int:
    return (value ^ 1 << 31) - (1 << 31)


A, B, C = "R1", "R2", "R3"
FORMULAS: dict[str, Callable[[int, int, int], int]] = {
    "IADD3 R9, R1, -R2, R3": lambda a, b, c: a - b + c,
    "VIADD R9, R1, 0xfffffffe": lambda a, b, c: a - 2,
    "IMAD R9, R1, R2, R3": lambda a, b, c: a * b + c,
    "IMAD.MOV R9, RZ, RZ, -R3": lambda a, b, c: -c,
    "IMAD.HI.U32 R9, R1, R2, RZ": lambda a, b, c: a * b >> 32,
    "IMAD.HI R9, R1, R2, RZ": lambda a, b, c: signed(a) * signed(b) >> 32,
    "LEA R9, R1, R2, 0x3": lambda a, b, c: (a << 3) + b,
    "LEA.HI R9, R1, R2, R3, 0x5": lambda a, b, c: ((c << 32 | a) << 5 >> 32) + b,
    "LEA.HI.X.SX32 R9, R1, R2, 0x1, !PT": lambda a, b, c: (signed(a) << 1 >> 32) + b,
    "SHF.L.U32 R9, R1, 0x7, RZ": lambda a, b, c: a << 7,
    "SHF.L.U64.HI R9, R1, 0x7, R2": lambda a, b, c: (b << 32 | a) << 7 >> 32,
    "SHF.R.S32.HI R9, RZ, 0x1f, R1": lambda a, b, c: signed(a) >> 31,
    "SHF.R.U32.HI R9, RZ, 0x4, R1": lambda a, b, c: a >> 4,
    "SHF.R.U64 R9, R1, 0x9, R2": lambda a, b, c: (b << 32 | a) >> 9,
    "LOP3.LUT R9, R1, R2, R3, 0x78, !PT": lambda a, b, c: a ^ (b & c),
    "LOP3.LUT R9, R1, R2, R3, 0xf8, !PT": lambda a, b, c: a | (b & c),
    "PRMT R9, R1, 0x7632, R2": lambda a, b, c: a >> 16 | b >> 16 << 16,
    "PRMT R9, R1, 0x5410, R2": lambda a, b, c: a & 0xFFFF | (b & 0xFFFF) << 16,
    "SGXT.U32 R9, R1, 0x4": lambda a, b, c: a & 15,
    "SGXT R9, R1, 0x1": lambda a, b, c: -(a & 1),
    "IABS R9, R1": lambda a, b, c: abs(signed(a)),
    "IMNMX R9, R1, R2, PT": lambda a, b, c: min(signed(a), signed(b)),
    "VIMNMX.U32 R9, R1, R2, !PT": lambda a, b, c: max(a, b),
    "VIADDMNMX R9, R1, R2, R3, PT": lambda a, b, c: min(signed((a + b) & MASK), signed(c)),
    "SEL R9, R1, R2, P0": lambda a, b, c: a,
    "MOV R9, ~R1": lambda a, b, c: ~a,
    "HFMA2.MMA R9, -RZ, RZ, 0, 5.9604644775390625e-08": lambda a, b, c: 1,
    "UMOV R9, 0x400": lambda a, b, c: 0x400,
}


@pytest.mark.parametrize("text", FORMULAS)
def test_integers(text: str) -> None:
    """Each on many numbers at once, extremes among them; an operand that is not known makes the result so."""
    draw = random.Random(text)
    edges = [0, 1, 2, 3, 1 << 31, (1 << 31) - 1, MASK, MASK - 1]
    numbers = [
        [draw.choice(edges) if draw.random() < 0.4 else draw.getrandbits(32) for _ in range(64)] for _ in range(3)
    ]
    values = Values({}, {}, {name: np.array(column) for name, column in zip((A, B, C), numbers, strict=True)})
    values.predicates["P0"] = np.array([TRUE])
    one = instruction(text)
    integers.evaluate(values, one)
    expected = [FORMULAS[text](*column) & MASK for column in zip(*numbers, strict=True)]
    assert np.broadcast_to(values.registers["R9"], 64).tolist() == expected
    read = [operand.name for operand in one.operands[1:] if operand.kind == "register" and operand.name in (A, B, C)]
    for name in read:
        lost = Values({}, {}, dict(values.registers) | {name: np.array([-1])}, {"P0": np.array([MAYBE])})
        integers.evaluate(lost, one)
        assert (lost.registers["R9"] == -1).all()


@pytest.mark.parametrize("shape", ["IADD3", "ISETP", "IMAD.WIDE", "LEA"])
def test_sums_of_64_bits(shape: str) -> None:
    """Carries go from the lower word's predicate to the upper one."""
    code = {
        "IADD3": ["IADD3 R8, P1, R1, R3, RZ", "IADD3.X R9, R2, R4, RZ, P1, !PT"],
        "LEA": ["LEA R8, P1, R1, R3, 0x2", "LEA.HI.X R9, R1, R4, R2, 0x2, P1"],
        "IMAD.WIDE": ["IMAD.WIDE R8, R1, R2, R3"],
        "ISETP": ["ISETP.GE.U32.AND P1, PT, R1, R3, PT", "ISETP.GE.AND.EX P1, PT, R2, R4, PT, P1"],
    }[shape]
    draw = random.Random(shape)
    for _ in range(200):
        words = [draw.choice([0, 1, MASK, draw.getrandbits(32)]) for _ in range(4)]
        values = Values({}, {}, {f"R{i}": np.array([word]) for i, word in enumerate(words, 1)})
        for text in code:
            integers.evaluate(values, instruction(text))
        a, b = words[0] | words[1] << 32, words[2] | words[3] << 32
        if shape == "ISETP":
            upper = signed(words[1]), signed(words[3])
            assert bool(values.predicates["P1"][0] == TRUE) == ((upper[0], words[0]) >= (upper[1], words[2]))
            continue
        got = int(values.registers["R8"][0]) | int(values.registers["R9"][0]) << 32
        product = signed(words[0]) * signed(words[1]) + b
        assert got == {"IADD3": a + b, "LEA": (a << 2) + b, "IMAD.WIDE": product}[shape] & (1 << 64) - 1


def test_a_quotient_of_integers() -> None:
    """The usual sequence: a reciprocal in float32, and a step of Newton's in integers."""
    draw = random.Random(0)
    divisors = np.array([draw.randrange(1, 5000) for _ in range(500)])
    values = Values({}, {}, {"R1": divisors})
    for text in ("I2F.RP R2, R1", "MUFU.RCP R2, R2", "IADD3 R2, R2, 0xffffffe, RZ", "F2I.FTZ.U32.TRUNC.NTZ R3, R2"):
        integers.evaluate(values, instruction(text))
    estimate, exact = values.registers["R3"], (1 << 32) / divisors
    assert (estimate <= exact).all()
    assert (estimate >= exact * (1 - 2**-20) - 2).all()


def test_an_instruction_that_no_pipe_is_known_for_is_named() -> None:
    with pytest.raises(ValueError, match=r"QUUX.FAST R1, R2: no pipe is known.*model\.py"):
        model.pipe(instruction("QUUX.FAST R1, R2"))


def test_bytes_asked_for_ahead() -> None:
    """Two loads before the first is waited for, then one at a time."""
    access = Access("x_ptr", 512, 16, 4, 16)
    loads = [(instruction("LDG.E.128 R4, [R2.64]", write=board), access) for board in (0, 1)]
    waits = [(instruction("FADD R1, R4, R4", wait=1 << board), None) for board in (0, 1)]
    assert asked_ahead([*loads, *waits], {"x_ptr"}) == (1024 + 512) / 2
    assert asked_ahead([*loads, *waits], {"y_ptr"}) == 0
    copies = [(instruction("LDGSTS.E.128 [R1], [R2.64]"), access), (instruction("LDGDEPBAR R0", write=0), None)]
    assert asked_ahead([*copies * 3, (instruction("DEPBAR.LE SB0, 0x1"), None)], {"x_ptr"}) == 3 * 512


AMD = """
kernel:
	s_load_dwordx4 s[4:7], s[0:1], 0x0
	s_mov_b32 s20, s4                       ; x
	s_and_b32 s21, s5, 0xffff
	v_mov_b32_e32 v10, s6                   ; weight
	v_mov_b32_e32 v11, s7
.LBB0_1:                                ; a loop
	buffer_load_dwordx4 v[0:3], v9, s[20:23], 0 offen
	global_load_ushort v4, v[10:11], off
	v_add_f32_e32 v5, v5, v5
	s_waitcnt vmcnt(1)
	v_add_f32_e32 v5, v0, v5
	v_mov_b32_dpp v6, v5 row_shr:1
	s_waitcnt vmcnt(0)
	s_cbranch_scc1 .LBB0_1
	s_endpgm
    .args:
      - .address_space:  global
        .offset:         0
        .size:           8
        .value_kind:     global_buffer
      - .address_space:  global
        .offset:         8
        .size:           8
        .value_kind:     global_buffer
      - .offset:         16
        .size:           4
        .value_kind:     by_value
"""
ARGUMENTS = ["x_ptr", "weight_ptr", "n"]


def test_amd_code() -> None:
    """Eight instructions of a loop that loads 16 bytes of x, of whose two loads the other is of another tensor."""
    lines, labels = amdgcn.parse(AMD)
    assert (len(lines), labels) == (14, {".LBB0_1": 5})
    found = amdgcn.facts(AMD, 3, ARGUMENTS, {"x_ptr"})
    assert found is not None
    assert (found.instructions, found.shuffles) == (8, 1)
    assert found.in_flight == 16 * 64 * 3
    both = amdgcn.facts(AMD, 3, ARGUMENTS, {"x_ptr", "weight_ptr"})
    assert both is not None
    assert both.instructions == pytest.approx(8 / (18 / 16))
    assert both.in_flight == pytest.approx((18 + 2) / 2 * 64 * 3)
    assert amdgcn.facts(AMD, 3, ARGUMENTS, set()) is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("buffer_load_dwordx4", "buffer_load_wide", "buffer_load_wide: how many bytes it loads is not known"),
        ("v10, s6 ", "v10, s4 ", r"global_load_ushort .*leads to \['weight_ptr', 'x_ptr'\], expected one tensor"),
    ],
)
def test_amd_code_that_is_not_understood_is_named(old: str, new: str, message: str) -> None:
    assert old in AMD
    with pytest.raises(ValueError, match=message):
        amdgcn.facts(AMD.replace(old, new), 3, ARGUMENTS, {"x_ptr"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"operators": ("squeeeze",)}, "operators: got squeeeze, expected some of squeeze, "),
        ({"clips": 0}, "clips: got 0, expected at least 1"),
        ({"measure": True}, "measure: got True, but torch finds no GPU here"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predict.Predict(**options)


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(RuntimeError, match="install a C compiler"):
        model.library.__wrapped__()


def test_the_command(tmp_path: Path) -> None:
    """In a process of its own: here, kernels are interpreted."""
    out = tmp_path / "predict.csv"
    done = run_bench(
        "predict", "--operators", "input_gradient", "--shapes", "64", "7", "--jobs", "1", "--out", str(out)
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("PREDICTED for H100 (sm_90), compiled by triton 3.")
    rows = predict.read(out)
    assert [row["layout"] for row in rows] == ["nchw", "channels_last"]
    assert all(0 < float(row["predicted"]) < float(row["launched"]) < 20 for row in rows)
    assert sum("the four of a TAM" in line for line in done.stdout.splitlines()) == 2


@pytest.mark.parametrize(
    ("told", "bandwidth"),
    [({"memory_clock_rate": 3_201_000, "memory_bus_width": 6144}, 2 * 3.201e9 * 6144 / 8), ({}, H100.bandwidth)],
)
def test_the_gpu_that_is_there(told: dict[str, int], bandwidth: float) -> None:
    """Its own number of multiprocessors and bandwidth, where torch tells them."""
    properties = SimpleNamespace(name="NVIDIA H200", major=9, minor=0, multi_processor_count=132, **told)
    with mock.patch.object(torch.cuda, "get_device_properties", return_value=properties):
        found = devices.present()
    assert (found.name, found.target, found.multiprocessors) == ("NVIDIA H200", "sm_90", 132)
    assert found.bandwidth == pytest.approx(bandwidth)


def test_a_gpu_that_is_not_known_is_named() -> None:
    properties = SimpleNamespace(name="NVIDIA L4", major=8, minor=9, multi_processor_count=58)
    with (
        mock.patch.object(torch.cuda, "get_device_properties", return_value=properties),
        pytest.raises(ValueError, match=r"got NVIDIA L4 \(sm_89\), expected one of sm_80, sm_90, sm_100"),
    ):
        devices.present()


@pytest.mark.parametrize(("available", "minor", "expected"), [(True, 0, "sm_80"), (True, 9, None), (False, 0, None)])
def test_what_is_predicted_by_default(available: bool, minor: int, expected: str | None) -> None:
    """Of the GPU that is there, if there is one that the model knows."""
    properties = SimpleNamespace(name="NVIDIA GPU", major=8, minor=minor, multi_processor_count=108)
    with (
        mock.patch.object(torch.cuda, "is_available", return_value=available),
        mock.patch.object(torch.cuda, "get_device_properties", return_value=properties),
    ):
        assert devices.here() == expected
