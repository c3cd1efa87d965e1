"""Both branches in evaluation, BatchNorm folded on the fly, in two launches (equations 2 and 3).

The first computes the local branch's hidden layer; the second V from it, and Θ of the same channels from X̂. All of it
is small, `(N, C, T)`: what counts is the number of launches, where the layers of torch take a dozen. Clips of many
frames go in blocks of few, so that registers and shared memory are those of a short clip.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from tam_triton import layout
from tam_triton.kernels import launch, metadata
from tam_triton.kernels.frames import folded_norm, relu

# Blocks of products, whatever T is: rows and frames, of which a product takes 16 at least, and what is summed over. At
# twice the frames, compilers run out of registers from T = 64 on.
OUTPUTS = 16
INPUTS = 32


@triton.jit(launch_metadata=metadata.hidden)
def hidden_kernel(
    squeezed_ptr, conv_ptr, norm, hidden_ptr,
    C, HIDDEN, blocks, times, eps,
    T: tl.constexpr, FRAMES: tl.constexpr, TAPS: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_C: tl.constexpr,
    INDEX: tl.constexpr,
):  # fmt: skip
    """hidden[n,h,t] = ReLU(BN(Σ_{c,j} W₃[h,c,j]·X̂[n,c,t+j−1]))."""
    n = (tl.program_id(0) // (blocks * times)).to(tl.int64)
    h = (tl.program_id(0) // times % blocks).to(INDEX) * BLOCK_H + tl.arange(0, BLOCK_H)
    t = tl.program_id(0) % times * FRAMES + tl.arange(0, FRAMES)
    present = (h < HIDDEN)[:, None]
    total = tl.zeros([BLOCK_H, FRAMES], tl.float32)
    for c0 in range(0, C, BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)
        for j in tl.static_range(TAPS):
            s = t + j - TAPS // 2
            weight = tl.load(
                conv_ptr + (h[:, None] * C + c[None, :]) * TAPS + j, mask=present & (c < C)[None, :], other=0.0
            )
            frames = tl.load(
                squeezed_ptr + (n * C + c[:, None]) * T + s[None, :],
                mask=(c < C)[:, None] & (s >= 0)[None, :] & (s < T)[None, :], other=0.0,
            )  # fmt: skip
            total = tl.dot(weight.to(tl.float32), frames.to(tl.float32), total, input_precision="ieee")
    scale, shift = folded_norm(norm, eps, h[:, None], present, tl.float32)
    total = relu(total * scale + shift)
    tl.store(hidden_ptr + (n * HIDDEN + h[:, None]) * T + t[None, :], total, mask=present & (t < T)[None, :])


@triton.jit(launch_metadata=metadata.weights)
def weights_kernel(
    squeezed_ptr, hidden_ptr, conv_ptr, first_ptr, norm, second_ptr,
    importance_ptr, kernel_ptr,
    C, HIDDEN, blocks, eps,
    T: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr, FRAMES: tl.constexpr, WIDE: tl.constexpr,
    TAPS: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr,
    INDEX: tl.constexpr,
):  # fmt: skip
    """V[n,c,t] = σ(W₄·hidden) and Θ[n,c,:] = softmax(W₂·ReLU(BN(W₁·X̂[n,c,:])))."""
    n = (tl.program_id(0) // blocks).to(tl.int64)
    c = (tl.program_id(0) % blocks).to(INDEX) * BLOCK_C + tl.arange(0, BLOCK_C)
    present = (c < C)[:, None]
    for t0 in range(0, T, FRAMES):
        t = t0 + tl.arange(0, FRAMES)
        total = tl.zeros([BLOCK_C, FRAMES], tl.float32)
        for h0 in range(0, HIDDEN, BLOCK_H):
            h = h0 + tl.arange(0, BLOCK_H)
            weight = tl.load(
                conv_ptr + c[:, None] * HIDDEN + h[None, :], mask=present & (h < HIDDEN)[None, :], other=0.0
            )
            hidden = tl.load(
                hidden_ptr + (n * HIDDEN + h[:, None]) * T + t[None, :],
                mask=(h < HIDDEN)[:, None] & (t < T)[None, :], other=0.0,
            )  # fmt: skip
            total = tl.dot(weight.to(tl.float32), hidden, total, input_precision="ieee")
        where = t[None, :].to(INDEX) * C + c[:, None] if CHANNELS_LAST else c[:, None] * T + t[None, :]
        power = tl.exp(-tl.abs(total))  # the sigmoid by a power that cannot overflow
        importance = (tl.where(total >= 0, 1.0, power) / (1 + power)).to(importance_ptr.dtype.element_ty)
        tl.store(importance_ptr + n * C * T + where, importance, mask=present & (t < T)[None, :])

    k = tl.arange(0, TAPS)
    scores = tl.zeros([BLOCK_C, TAPS], tl.float32)
    for w0 in range(0, WIDTH, WIDE):
        w = w0 + tl.arange(0, WIDE)
        known = (w < WIDTH)[None, :]
        wide = tl.zeros([BLOCK_C, WIDE], tl.float32)
        for t0 in range(0, T, FRAMES):
            t = t0 + tl.arange(0, FRAMES)
            squeezed = tl.load(
                squeezed_ptr + (n * C + c[:, None]) * T + t[None, :], mask=present & (t < T)[None, :], other=0.0
            )
            first = tl.load(first_ptr + w[None, :].to(INDEX) * T + t[:, None], mask=(t < T)[:, None] & known, other=0.0)
            wide = tl.dot(squeezed.to(tl.float32), first.to(tl.float32), wide, input_precision="ieee")
        scale, shift = folded_norm(norm, eps, w[None, :], known, tl.float32)
        wide = relu(wide * scale + shift)
        second = tl.load(
            second_ptr + k[None, :].to(INDEX) * WIDTH + w[:, None], mask=(w < WIDTH)[:, None] & (k < K)[None, :],
            other=0.0,
        )  # fmt: skip
        scores = tl.dot(wide, second.to(tl.float32), scores, input_precision="ieee")
    scores = tl.where(k[None, :] < K, scores, float("-inf"))
    powers = tl.exp(scores - tl.max(scores, axis=1)[:, None])
    theta = (powers / tl.sum(powers, axis=1)[:, None]).to(kernel_ptr.dtype.element_ty)
    where = k[None, :].to(INDEX) * C + c[:, None] if CHANNELS_LAST else c[:, None] * K + k[None, :]
    tl.store(kernel_ptr + n * C * K + where, theta, mask=present & (k < K)[None, :])


def branches(
    squeezed: Tensor, global_branch: Sequence[Tensor], local_branch: Sequence[Tensor], eps: float, channels_last: bool
) -> tuple[Tensor, Tensor]:
    """importance V `(N, C, T)` and kernel Θ `(N, C, K)` of X̂ `(N, C, T)`, in X̂'s dtype; arguments as in `plain`."""
    squeezed = squeezed.contiguous()
    g_first, *g_norm, g_second = (tensor.contiguous() for tensor in global_branch)
    l_first, *l_norm, l_second = (tensor.contiguous() for tensor in local_branch)
    clips, channels, num_segments = squeezed.shape
    hidden_channels, width, kernel_size = l_first.shape[0], g_first.shape[0], g_second.shape[0]
    hidden = squeezed.new_empty((clips, hidden_channels, num_segments), dtype=torch.float32)
    importance = layout.empty_weights(squeezed, num_segments, channels_last)
    kernel = layout.empty_weights(squeezed, kernel_size, channels_last)
    rows = max(hidden_channels, channels, width, kernel_size)
    index = launch.offset_dtype(rows * max(channels * l_first.shape[-1], width, num_segments), OUTPUTS * INPUTS)
    hidden_blocks, blocks = launch.ceil_div(hidden_channels, OUTPUTS), launch.ceil_div(channels, OUTPUTS)
    times = launch.ceil_div(num_segments, OUTPUTS)
    with launch.on_device(squeezed):
        hidden_kernel[(clips * hidden_blocks * times,)](
            squeezed, l_first, tuple(l_norm), hidden, channels, hidden_channels, hidden_blocks, times, eps,
            T=num_segments, FRAMES=OUTPUTS, TAPS=l_first.shape[-1], BLOCK_H=OUTPUTS, BLOCK_C=INPUTS, INDEX=index,
            num_warps=launch.warps(launch.ROW_THREADS), **launch.OPTIONS,
        )  # fmt: skip
        weights_kernel[(clips * blocks,)](
            squeezed, hidden, l_second, g_first, tuple(g_norm), g_second, importance, kernel,
            channels, hidden_channels, blocks, eps,
            T=num_segments, K=kernel_size, WIDTH=width, FRAMES=OUTPUTS, WIDE=min(INPUTS, launch.product_size(width)),
            TAPS=launch.product_size(kernel_size), CHANNELS_LAST=channels_last, BLOCK_C=OUTPUTS, BLOCK_H=INPUTS,
            INDEX=index,
            num_warps=launch.warps(launch.ROW_THREADS), **launch.OPTIONS,
        )  # fmt: skip
    return importance, kernel
