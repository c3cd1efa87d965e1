"""A kernel of a few instructions, for the machine that executes PTX."""

from typing import Any

import numpy as np

from bench.ptx import Region, execute

THREADS = 64
HEAD = """.version 8.8
.target sm_90a
.extern .shared .align 16 .b8 global_smem[];
.visible .entry kernel(
	.param .u64 .ptr .global .align 1 kernel_param_0,
	.param .u64 .ptr .global .align 1 kernel_param_1,
	.param .u32 kernel_param_2
)
.reqntid 64
{
	.reg .pred 	%p<9>;
	.reg .b16 	%rs<9>;
	.reg .b32 	%r<30>;
	.reg .b64 	%rd<9>;
	.loc	1 20 0                          // kernel.py:20:0
	ld.param.b64 	%rd1, [kernel_param_0];
	ld.param.b64 	%rd2, [kernel_param_1];
	mov.u32 	%r1, %tid.x;
	mov.u32 	%r2, %ctaid.x;
	mad.lo.s32 	%r3, %r2, 64, %r1;
	mul.wide.s32 	%rd3, %r3, 4;
	add.s64 	%rd4, %rd1, %rd3;
	add.s64 	%rd5, %rd2, %rd3;
	shl.b32 	%r4, %r1, 2;
"""
TAIL = "\n\tret;\n}\n"
COPY = "ld.global.b32 %r5, [%rd4]; st.global.b32 [%rd5], %r5;"


def run(body: str, x: Any = None, programs: int = 1, size: int = 0, shared: int = 256, **options: Any) -> np.ndarray:
    """What the body stores to `%rd2 …`, given x at `%rd1 …`; `%rd4` and `%rd5` are the thread's own words of these."""
    words = np.zeros(THREADS * programs, np.uint32) if x is None else np.asarray(x).copy()
    y = np.zeros(size or words.nbytes, np.uint8)
    regions = [Region("x", 1 << 20, words.view(np.uint8)), Region("y", 1 << 21, y)]
    execute(HEAD + body + TAIL, (programs,), [*regions, 7], shared, **options)
    return y.view(np.uint32)
