"""The machine that executes PTX: each of its checks against the fault that it is for."""

import pytest

from bench.ptx import KernelError
from tests.support.ptx import COPY, run

FAULTS = {
    "opcode: wmma.load is not known": "wmma.load %r5, [%rd4];",
    "alignment: 8 bytes at address": "ld.global.v2.b32 {%r5, %r6}, [%rd4]; st.global.b32 [%rd5], %r5;",
    r"bounds: load of 4 bytes from byte 256 of x \(256 bytes\)": "ld.global.b32 %r5, [%rd4+4];",
    r"bounds: store of 4 bytes from byte -4 of x \(256 bytes\)": "st.global.b32 [%rd4+-4], %r1;",
    "bounds: store of 4 bytes at 256 of 256 in shared memory": "st.shared.b32 [%r4+4], %r1;",
    "unwritten: nothing wrote %r9": "st.global.b32 [%rd5], %r9;",
    "unwritten: nothing wrote %r5": "setp.lt.s32 %p1, %r1, 9; @%p1 mov.u32 %r5, %r1; st.global.b32 [%rd5], %r5;",
    "unwritten: a value that nothing wrote decides": "setp.eq.b32 %p1, %r9, 1; @%p1 st.global.b32 [%rd5], %r1;",
    "unwritten: nothing wrote %r6": "ld.shared.b32 %r6, [%r4]; st.global.b32 [%rd5], %r6;",
    "race in shared memory: load of what another thread wrote": "st.shared.b32 [%r4], %r1; xor.b32 %r5, %r4, 4;"
    " ld.shared.b32 %r6, [%r5];",
    "race in shared memory: store to what another thread loaded": "st.shared.b32 [%r4], %r1; bar.sync 0;"
    " xor.b32 %r5, %r4, 128; ld.shared.b32 %r6, [%r5]; bar.warp.sync -1; st.shared.b32 [%r4], %r1;",
    "race in shared memory: two threads write different values": "st.shared.b32 [%r4], %r1; xor.b32 %r5, %r4, 4;"
    " st.shared.b32 [%r5], %r1;",
    "replicated store: lanes write different values to one byte of shared": "st.shared.b32 [0], %r1;",
    r"replicated store: lanes write different values to byte 0 of y": "st.global.b32 [%rd2], %r1;",
    "race in global memory: store to byte 0 of x.*touched before": "ld.global.b32 %r5, [%rd4];"
    " st.global.b32 [%rd4], %r5;",
    "race in global memory: load of byte 0 of y.*which the launch writes": f"{COPY} ld.global.b32 %r6, [%rd5];",
    "divergence: some threads alone in kernel: bar": "setp.lt.s32 %p1, %r1, 9;\n@%p1 bra $L1;\nbar.sync 0;\n$L1:\n",
    "divergence: some threads alone in kernel: shfl": "setp.lt.s32 %p1, %r1, 9;\n@%p1 bra $L1;\n"
    "shfl.sync.bfly.b32 %r5, %r1, 8, 31, -1;\n$L1:\n",
    "unwritten: a value that nothing wrote decides in": "setp.lt.s32 %p1, %r1, 9;\n@%p1 bra $L1;\n"
    "setp.lt.s32 %p2, %r1, 90;\n$L1:\n@%p2 bra $L1;\n",
    "divergence: some threads alone": "setp.lt.s32 %p1, %r1, 32; @%p1 bar.sync 0;",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(fault: str) -> None:
    with pytest.raises(KernelError, match=rf"{fault}.*\(kernel.py:20:0\)") as told:
        run(FAULTS[fault])
    assert told.value.check == fault.partition(":")[0]


def test_two_programs_must_not_write_one_byte() -> None:
    with pytest.raises(KernelError, match="race in global memory: two programs write byte 0 of y"):
        run("mov.u32 %r5, 1; st.global.b32 [%rd2], %r5;", programs=2)
    with pytest.raises(KernelError, match=r"race in global memory: store to byte 0 of y .*touched before"):
        run("mov.u32 %r5, 1; st.global.b32 [%rd2], %r5;", programs=2, batch=1)


def test_a_barrier_that_one_warp_misses() -> None:
    body = "setp.lt.s32 %p1, %r1, 32;\n@%p1 bra $L1;\nbar.sync 0;\n$L1:\n"
    with pytest.raises(KernelError, match="barrier: 32 of 64 threads of a program are there"):
        run(body, warp_order=range)


def test_what_barriers_order() -> None:
    """The same accesses as among the faults, with what orders them between."""
    for barrier in ("bar.sync 0;", "bar.warp.sync -1;"):
        run(f"st.shared.b32 [%r4], %r1; {barrier} xor.b32 %r5, %r4, 4; ld.shared.b32 %r6, [%r5]; {barrier}"
            " st.shared.b32 [%r4], %r1;")  # fmt: skip
    with pytest.raises(KernelError, match="race in shared memory: load"):
        run("st.shared.b32 [%r4], %r1; bar.warp.sync -1; xor.b32 %r5, %r4, 128; ld.shared.b32 %r6, [%r5];")
