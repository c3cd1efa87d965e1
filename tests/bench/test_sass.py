"""Machine code as it is taken apart, and the integers that decide its branches and addresses."""

import random
from collections.abc import Callable

import numpy as np
import pytest

from bench.sm import amdgcn, integers, sass
from bench.sm.sass import NO_SCOREBOARD, Instruction
from bench.sm.values import MASK, MAYBE, TRUE, Values

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
