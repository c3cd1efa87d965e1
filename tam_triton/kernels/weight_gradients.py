"""Gradients of V and Θ in one pass over X and dY.

Both are sums over the band B[s,k] = Σ_p dY[s−k+K//2,p]·X[s,p] of dY·Xᵀ:
dV[s] = Σ_k Θ[k]·B[s,k] and dΘ[k] = Σ_s V[s]·B[s,k]. The first kernel reads X and dY once. Where a program sees all
pixels of a channel it finishes both; else it writes the band of its part, and a second kernel, on tensors of
`(N, C, T, K)`, adds the parts in a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tam_triton import layout
from tam_triton.kernels import launch
from tam_triton.kernels.frames import load_tile


@triton.jit
def band_kernel(
    dy_ptr, x_ptr, importance_ptr, kernel_ptr, band_ptr, d_importance_ptr, d_kernel_ptr,
    C, P, tiles, parts, frame: tl.int64, rows: tl.int64,
    T: tl.constexpr, K: tl.constexpr, WHOLE: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, RUN: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """The band of one part of the pixels; if that is the WHOLE of them, the gradients themselves."""
    HALF: tl.constexpr = K // 2
    part = tl.program_id(0) % parts
    tile = tl.program_id(0) // parts
    c0 = (tile % tiles) * BLOCK_C
    p0 = part * BLOCK_P
    n = (tile // tiles).to(tl.int64)
    c = c0 + tl.arange(0, BLOCK_C)
    present = c < C
    row = n * C + c
    dy_ptr += n * T * frame
    x_ptr += n * T * frame
    band_ptr += part * T * K * rows + row

    window = ()  # frames s − K//2 … s + K//2 − 1 of dY
    for i in tl.static_range(K - 1):
        t = i - HALF
        inside = (t >= 0) & (t < T)
        window = window + (
            load_tile(dy_ptr + t * frame, c0, p0, C, P, inside, CHANNELS_LAST, BLOCK_C, BLOCK_P, RUN, INDEX),
        )
    taps = ()
    d_kernel = ()
    for k in tl.static_range(K):
        taps = taps + (tl.load(kernel_ptr + row * K + k, mask=present & WHOLE, other=0.0).to(ACC),)
        d_kernel = d_kernel + (tl.zeros([BLOCK_C], ACC),)
    for s in range(T):
        t = s + HALF
        x = load_tile(x_ptr + s * frame, c0, p0, C, P, True, CHANNELS_LAST, BLOCK_C, BLOCK_P, RUN, INDEX).to(ACC)
        window = window + (
            load_tile(dy_ptr + t * frame, c0, p0, C, P, t < T, CHANNELS_LAST, BLOCK_C, BLOCK_P, RUN, INDEX),
        )
        dv = tl.zeros([BLOCK_C], ACC)
        if WHOLE:
            v = tl.load(importance_ptr + row * T + s, mask=present, other=0.0).to(ACC)
        added = ()
        for k in tl.static_range(K):
            product = tl.sum(window[K - 1 - k].to(ACC) * x, axis=1)
            if WHOLE:
                dv += taps[k] * product
                added = added + (d_kernel[k] + v * product,)
            else:
                tl.store(band_ptr + (s * K + k) * rows, product, mask=present)
        if WHOLE:
            tl.store(d_importance_ptr + row * T + s, dv.to(d_importance_ptr.dtype.element_ty), mask=present)
            d_kernel = added
        window = window[1:]
    if WHOLE:
        for k in tl.static_range(K):
            tl.store(d_kernel_ptr + row * K + k, d_kernel[k].to(d_kernel_ptr.dtype.element_ty), mask=present)


@triton.jit
def finish_kernel(
    band_ptr, importance_ptr, kernel_ptr, d_importance_ptr, d_kernel_ptr,
    parts, rows: tl.int64,
    T: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    d_kernel = ()
    for _ in tl.static_range(K):
        d_kernel = d_kernel + (tl.zeros([BLOCK], ACC),)
    for s in range(T):
        v = tl.load(importance_ptr + row * T + s, mask=inside, other=0.0).to(ACC)
        dv = tl.zeros([BLOCK], ACC)
        added = ()
        for k in tl.static_range(K):
            band = tl.zeros([BLOCK], ACC)
            for part in range(parts):
                band += tl.load(band_ptr + ((part * T + s) * K + k) * rows + row, mask=inside, other=0.0)
            dv += tl.load(kernel_ptr + row * K + k, mask=inside, other=0.0).to(ACC) * band
            added = added + (d_kernel[k] + v * band,)
        d_kernel = added
        tl.store(d_importance_ptr + row * T + s, dv.to(d_importance_ptr.dtype.element_ty), mask=inside)
    for k in tl.static_range(K):
        tl.store(d_kernel_ptr + row * K + k, d_kernel[k].to(d_kernel_ptr.dtype.element_ty), mask=inside)


def weight_gradients(dy: Tensor, x: Tensor, importance: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """dV `(N, C, T)` and dΘ `(N, C, K)` from dy and x `(N·T, C, H, W)`."""
    channels_last = layout.is_channels_last(x)
    x, dy = layout.to_layout(x, channels_last), layout.to_layout(dy, channels_last)
    importance, kernel = importance.contiguous(), kernel.contiguous()
    clips, channels, num_segments = importance.shape
    kernel_size, pixels = kernel.shape[-1], x.shape[2] * x.shape[3]
    tile = launch.reduction_tile(channels, pixels, channels_last, x.element_size())
    tiles, parts = launch.ceil_div(channels, tile.channels), launch.ceil_div(pixels, tile.pixels)
    rows = clips * channels
    whole = parts == 1
    band = x.new_empty(0 if whole else (parts, num_segments, kernel_size, rows), dtype=launch.partial_dtype(x.dtype))
    d_importance, d_kernel = torch.empty_like(importance), torch.empty_like(kernel)
    accumulator = launch.accumulator(x.dtype)
    with launch.on_device(x):
        band_kernel[(clips * tiles * parts,)](
            dy, x, importance, kernel, band, d_importance, d_kernel,
            channels, pixels, tiles, parts, channels * pixels, rows,
            T=num_segments, K=kernel_size, WHOLE=whole, CHANNELS_LAST=channels_last,
            BLOCK_C=tile.channels, BLOCK_P=tile.pixels, RUN=tile.run, ACC=accumulator,
            INDEX=launch.offset_dtype(channels * pixels, tile.channels * tile.pixels),
            num_warps=launch.warps(tile.threads), **launch.OPTIONS,
        )  # fmt: skip
        if not whole:
            finish_kernel[(launch.ceil_div(rows, launch.ROW_THREADS),)](
                band, importance, kernel, d_importance, d_kernel, parts, rows,
                T=num_segments, K=kernel_size, BLOCK=launch.ROW_THREADS, ACC=accumulator,
                num_warps=launch.warps(launch.ROW_THREADS), **launch.OPTIONS,
            )  # fmt: skip
    return d_importance, d_kernel
