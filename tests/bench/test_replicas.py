"""Whether lanes that store to one address store one value, told from PTX alone."""

import pickle

import pytest

from bench.ptx import KernelError
from bench.ptx.replicas import disagreements
from tests.support.ptx import HEAD, TAIL

LOADED = "ld.global.b32 %r10, [%rd4]; ld.global.b32 %r11, [%rd5];"
STORED = "and.b32 %r12, %r1, 31; shr.u32 %r13, %r1, 5; shl.b32 %r13, %r13, 2; st.shared.b32 [%r13], %r20;"


def butterfly(step: str) -> str:
    """A sum over the lanes of a warp, which all lanes store to one word."""
    steps = (step.format(lane=lane) for lane in (16, 8, 4, 2, 1))
    return LOADED + "mul.f32 %r20, %r10, %r11;" + "".join(steps) + STORED


MAXIMUM = "shfl.sync.bfly.b32 %r15, %r20, {lane}, 31, -1; max.f32 %r20, %r20, %r15;"
AGREE = {
    "each lane its own word": f"{LOADED} st.shared.b32 [%r4], %r10;",
    "one lane stores": "setp.eq.b32 %p1, %r1, 5; @%p1 st.shared.b32 [0], %r1;",
    "one lane of each warp stores": f"{LOADED} and.b32 %r14, %r1, 31; setp.eq.b32 %p1, %r14, 0; shr.u32 %r13, %r1, 5;"
    " shl.b32 %r13, %r13, 2; @%p1 st.shared.b32 [%r13], %r10;",
    "what does not depend on the thread": "mad.lo.s32 %r5, %r2, 3, 4; st.shared.b32 [0], %r5;",
    "terms in another order": butterfly("shfl.sync.bfly.b32 %r15, %r20, {lane}, 31, -1; add.rn.f32 %r20, %r15, %r20;"),
    "a sum that was computed in two ways": f"{LOADED} add.s32 %r5, %r2, 8; add.s32 %r5, %r5, %r2; shl.b32 %r6, %r2, 1;"
    " add.s32 %r6, %r6, 8; setp.lt.s32 %p1, %r1, 9; selp.b32 %r20, %r5, %r6, %p1; st.shared.b32 [0], %r20;",
    "values within a loop": butterfly(MAXIMUM).replace(
        STORED, f"mov.u32 %r21, 0;\n$L1:\nadd.f32 %r20, %r20, %r20; add.s32 %r21, %r21, 1;\n"
        f"setp.lt.s32 %p2, %r21, %r2;\n@%p2 bra $L1;\n{STORED}"
    ),
    "pairs": f"{LOADED} mov.b64 %rd6, {{%r10, %r11}}; shfl.sync.bfly.b32 %r15, %r10, 1, 31, -1;"
    " shfl.sync.bfly.b32 %r16, %r11, 1, 31, -1; mov.b64 %rd7, {%r15, %r16}; add.rn.f32x2 %rd6, %rd7, %rd6;"
    " mov.b64 {%r20, _}, %rd6; and.b32 %r13, %r4, 248; st.shared.b32 [%r13], %r20;",
}  # fmt: skip
DIFFER = {
    "each lane its own value": "st.shared.b32 [0], %r1;",
    "warps store to one word": f"{LOADED} and.b32 %r13, %r4, 124; st.shared.b32 [%r13], %r10;",
    "a product contracted into its sum": butterfly(
        "shfl.sync.bfly.b32 %r15, %r20, {lane}, 31, -1; fma.rn.f32 %r20, %r10, %r11, %r15;"
    ),
    "a product that ptxas may contract": butterfly(
        "shfl.sync.bfly.b32 %r15, %r20, {lane}, 31, -1; add.f32 %r20, %r15, %r20;"
    ),
    "a lane is left out": butterfly(
        "shfl.sync.bfly.b32 %r15, %r20, {lane}, 31, -1; add.rn.f32 %r20, %r15, %r20;"
    ).replace("%r20, 4, 31", "%r20, 0, 31"),
    "paths on which lanes differ": f"{LOADED} mov.u32 %r20, 0;\nsetp.eq.s32 %p1, %r2, 0;\n@%p1 bra $L1;\n"
    f"mov.u32 %r20, %r10;\n$L1:\n{STORED}",
    "lanes come to differ in a loop": f"mov.u32 %r20, 0;\n$L1:\nshl.b32 %r22, %r20, 5; add.s32 %r20, %r22, %r1;\n"
    f"setp.lt.s32 %p2, %r20, %r2;\n@%p2 bra $L1;\n{STORED}",
    "a loop that is entered at its end": f"mov.u32 %r20, 0;\nbra.uni $L2;\n$L1:\nmov.u32 %r20, %r1;\n$L2:\n"
    f"setp.lt.s32 %p2, %r2, 3;\n@%p2 bra $L1;\n{STORED}",
    "lanes go different ways": f"mov.u32 %r20, 0;\nand.b32 %r22, %r1, 1;\nsetp.eq.s32 %p1, %r22, 0;\n@%p1 bra $L1;\n"
    f"mov.u32 %r20, 1;\n$L1:\n{STORED}",
    "lanes differ after one more round": "mov.u32 %r20, 0; mov.u32 %r22, 0;\n$L1:\n"
    f"mov.u32 %r20, %r22; mov.u32 %r22, %r1;\nsetp.lt.s32 %p2, %r2, 3;\n@%p2 bra $L1;\n{STORED}",
}


@pytest.mark.parametrize("case", AGREE)
def test_copies_that_agree(case: str) -> None:
    assert disagreements(HEAD + AGREE[case] + TAIL) == []


@pytest.mark.parametrize("case", DIFFER)
def test_copies_that_may_differ(case: str) -> None:
    (found,) = disagreements(HEAD + DIFFER[case] + TAIL)
    assert found.startswith("st.shared.b32")
    assert found.endswith("(kernel.py:20:0)")


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(KernelError, match=r"opcode: wmma\.load is not known"):
        disagreements(HEAD + "wmma.load %r5, [%rd4];" + TAIL)


def test_an_error_passes_from_one_process_to_another() -> None:
    error = pickle.loads(pickle.dumps(KernelError("bounds", "too far")))
    assert (error.check, str(error)) == ("bounds", "bounds: too far")
