"""The operators in plain torch, for the CPU and for any device without Triton.

Shapes: `x`, `dy` `(N·T, C, H, W)`; importance V `(N, C, T)`; kernel Θ `(N, C, K)`. Sums accumulate in float32
(float64 for float64) and are rounded once.

Each of the two formulas over pixels stands here twice. `banded_sum` and `band` say what is computed, tap by tap, on
anything: they have derivatives, and a compiler fuses them into one loop. Executed as they stand they would cross memory
several times, so the CPU takes (in float32) a form for its layout that crosses it about once (`suits_eager`):
contiguous rows of pixels are summed in weighted bags and multiplied clip by clip as matrices; channels_last goes
through the pixels in pieces that stay in the cache.
"""

import torch
from torch import Tensor
from torch.nn import functional

from tam_triton import layout

PIECE_BYTES = 2**20  # of each operand: two or three of them fit the L2 caches of two cores


def accumulator(x: Tensor) -> torch.dtype:
    """The dtype in which sums over `x` are taken."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def suits_eager(*operands: Tensor) -> bool:
    """Whether the forms for execution as it stands apply: on the CPU, no graph recorded or compiled."""
    return (
        not torch.compiler.is_compiling()
        and all(t.dtype != torch.float64 and t.device.type == "cpu" for t in operands)
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in operands))
    )


def clip_view(x: Tensor, num_segments: int) -> Tensor:
    """`(N·T, C, H, W)` as `(N, T, C, H, W)`, without a copy."""
    return x.unflatten(0, (x.shape[0] // num_segments, num_segments))


def rows_of_pixels(x: Tensor, num_segments: int, channels_last: bool) -> Tensor:
    """`x` as `(N, T, C, P)`, or as `(N, T, P, C)` if channels_last: a view if `x` is dense in that layout."""
    dense = layout.to_layout(x, channels_last)
    pixels = dense.permute(0, 2, 3, 1).flatten(1, 2) if channels_last else dense.flatten(2)
    return clip_view(pixels, num_segments)


def per_pixel(weights: Tensor) -> Tensor:
    """`(N, C, T)` as `(N, T, C, 1, 1)`, to be broadcast over pixels."""
    return weights.transpose(1, 2)[..., None, None]


def squeeze(x: Tensor, num_segments: int) -> Tensor:
    """X̂[n,c,t] = mean over pixels of x; `(N, C, T)` (equation 1)."""
    mean = x.flatten(2).mean(-1, dtype=accumulator(x)).to(x.dtype)
    return clip_view(mean, num_segments).transpose(1, 2).clone(memory_format=torch.contiguous_format)


def taps(length: int, kernel_size: int) -> list[tuple[int, slice, slice]]:
    """For each tap k that reaches inside the clip: (k, frames t, frames t + k − K//2)."""
    shifts = [(k, k - kernel_size // 2) for k in range(kernel_size)]
    return [
        (k, slice(max(0, -d), min(length, length - d)), slice(max(0, d), min(length, length + d)))
        for k, d in shifts
        if abs(d) < length
    ]


def banded_sum(
    frames: Tensor, importance: Tensor, kernel: Tensor, offset: Tensor | None, transposed: bool, channels_last: bool
) -> Tensor:
    """M·frames, or Mᵀ·frames, with the band M[t, t+k−K//2] = Θ[k]·V[t+k−K//2], plus an offset `(N, C, T)`."""
    T, K = importance.shape[-1], kernel.shape[-1]
    dtype = accumulator(frames)
    clip, v, theta = clip_view(frames, T).to(dtype), importance.to(dtype), kernel.to(dtype)
    terms = [] if offset is None else [per_pixel(offset)]
    for k, target, source in taps(T, K):
        to, of = (source, target) if transposed else (target, source)
        term = clip[:, of] * per_pixel(v[..., source] * theta[..., k, None])
        terms.append(functional.pad(term, (0, 0, 0, 0, 0, 0, to.start, T - to.stop)))
    total = sum(terms[1:], start=terms[0])
    return layout.to_layout(total.flatten(0, 1).to(frames.dtype), channels_last)


def banded_sum_of_rows(
    frames: Tensor, importance: Tensor, kernel: Tensor, offset: Tensor | None, transposed: bool
) -> Tensor:
    """The same for a contiguous result: each of its rows of pixels is a weighted bag of K rows.

    A tap outside the clip has weight 0 on the nearest frame inside, which is in the bag already.
    """
    (N, C, T), K = importance.shape, kernel.shape[-1]
    t, k = torch.arange(T, dtype=torch.int32)[:, None], torch.arange(K, dtype=torch.int32)
    frame = t - (k - K // 2) if transposed else t + (k - K // 2)  # (T, K)
    nearest = frame.clamp(0, T - 1)
    row = torch.arange(N * T * C, dtype=torch.int32).view(N, T, C, 1) + ((nearest - t) * C)[:, None]
    v = importance.transpose(1, 2)
    if transposed:
        weights = v[..., None] * (kernel[:, None] * (frame == nearest)[:, None])
    else:
        weights = functional.pad(v, (0, 0, K // 2, K // 2)).unfold(1, K, 1) * kernel[:, None]
    total = functional.embedding_bag(
        row.view(-1, K),
        layout.to_layout(frames, channels_last=False).view(N * T * C, -1),
        per_sample_weights=weights.reshape(-1, K),
        mode="sum",
    )
    if offset is not None:
        total += offset.transpose(1, 2).reshape(-1, 1)
    return total.view(frames.shape)


def banded_sum_in_pieces(
    frames: Tensor, importance: Tensor, kernel: Tensor, offset: Tensor | None, transposed: bool
) -> Tensor:
    """The same for a channels_last result: all taps of a few pixels while they are in the cache."""
    T, centre = importance.shape[-1], kernel.shape[-1] // 2
    v, theta = importance.transpose(1, 2).contiguous(), kernel.transpose(1, 2).contiguous()  # channels adjacent
    weights = {k: (v[:, source] * theta[:, k, None])[:, :, None] for k, _, source in taps(T, kernel.shape[-1])}
    begin = None if offset is None else offset.transpose(1, 2).contiguous()[:, :, None]
    result = layout.empty(frames, channels_last=True)
    operands = (rows_of_pixels(frames, T, True), rows_of_pixels(result, T, True))
    for clip, total in zip(*(pieces(t) for t in operands), strict=True):
        if begin is None:
            torch.mul(clip, weights[centre], out=total)
        else:
            torch.addcmul(begin, clip, weights[centre], out=total)
        for k, target, source in taps(T, kernel.shape[-1]):
            if k != centre:
                to, of = (source, target) if transposed else (target, source)
                total[:, to].addcmul_(clip[:, of], weights[k])
    return result


def pieces(x: Tensor) -> tuple[Tensor, ...]:
    """`(N, T, P, C)` split by pixels."""
    N, T, _, C = x.shape
    return x.split(max(1, PIECE_BYTES // (N * T * C * x.element_size())), dim=2)


def choose_banded_sum(
    frames: Tensor, importance: Tensor, kernel: Tensor, offset: Tensor | None, transposed: bool, channels_last: bool
) -> Tensor:
    """`banded_sum` in the form that suits the operands."""
    if not suits_eager(frames, importance, kernel, *(() if offset is None else (offset,))):
        return banded_sum(frames, importance, kernel, offset, transposed, channels_last)
    form = banded_sum_in_pieces if channels_last else banded_sum_of_rows
    return form(frames.float(), importance.float(), kernel.float(), offset, transposed).to(frames.dtype)


def aggregate(x: Tensor, importance: Tensor, kernel: Tensor) -> Tensor:
    """Y[t] = Σ_k Θ[k]·V[t+k−K//2]·X[t+k−K//2] (equations 4 and 5)."""
    return choose_banded_sum(x, importance, kernel, None, False, layout.is_channels_last(x))


def input_gradient(
    dy: Tensor, importance: Tensor, kernel: Tensor, d_squeezed: Tensor | None, channels_last: bool
) -> Tensor:
    """dX[s] = V[s]·Σ_k Θ[k]·dY[s−k+K//2] + dX̂[s]/P, dense in the given layout."""
    offset = None if d_squeezed is None else d_squeezed.to(accumulator(dy)) / (dy.shape[2] * dy.shape[3])
    return choose_banded_sum(dy, importance, kernel, offset, True, channels_last)


def weight_gradients(dy: Tensor, x: Tensor, importance: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of V `(N, C, T)` and Θ `(N, C, K)`, both read off the band Σ_p dY[t,p]·X[s,p] of `dY·Xᵀ`."""
    T, K = importance.shape[-1], kernel.shape[-1]
    dtype = accumulator(x)
    v, theta = importance.to(dtype), kernel.to(dtype)
    d_importance, d_kernel = torch.zeros_like(v), torch.zeros_like(theta)
    form = band
    if suits_eager(dy, x, importance, kernel):
        dy, x = dy.float(), x.float()
        form = band_in_pieces if layout.is_channels_last(x) else band_of_rows
    for (k, _, source), diagonal in zip(taps(T, K), form(dy, x, T, K), strict=True):
        d_importance[..., source] += theta[..., k, None] * diagonal
        d_kernel[..., k] = (v[..., source] * diagonal).sum(-1)
    return d_importance.to(importance.dtype), d_kernel.to(kernel.dtype)


def band(dy: Tensor, x: Tensor, T: int, K: int) -> list[Tensor]:
    """The diagonals Σ_p dY[t,p]·X[t+k−K//2,p] of `dY·Xᵀ`: `(N, C, frames)` for each of the `taps`."""
    clip, dclip = clip_view(x, T), clip_view(dy, T)
    dtype = accumulator(x)
    return [
        (dclip[:, target].to(dtype) * clip[:, source].to(dtype)).sum((3, 4)).transpose(1, 2)
        for _, target, source in taps(T, K)
    ]


def band_of_rows(dy: Tensor, x: Tensor, T: int, K: int) -> list[Tensor]:
    """The same from contiguous tensors: the whole product, a matrix `(T, T)` for each channel, at the cost of reading.

    Only a clip at a time has a stride that a batch of matrices can have.
    """
    clip, dclip = rows_of_pixels(x, T, False), rows_of_pixels(dy, T, False)  # (N, T, C, P)
    product = x.new_empty(clip.shape[0], clip.shape[2], T, T)
    for n in range(clip.shape[0]):
        torch.bmm(dclip[n].transpose(0, 1), clip[n].permute(1, 2, 0), out=product[n])
    return [product.diagonal(k - K // 2, 2, 3) for k, _, _ in taps(T, K)]


def band_in_pieces(dy: Tensor, x: Tensor, T: int, K: int) -> list[Tensor]:
    """The same from channels_last tensors: pieces are added up pixel by pixel, then the pixels of one piece."""
    clips, dclips = pieces(rows_of_pixels(x, T, True)), pieces(rows_of_pixels(dy, T, True))  # (N, T, pixels, C)
    sums = [dclips[0][:, target] * clips[0][:, source] for _, target, source in taps(T, K)]
    for dclip, clip in zip(dclips[1:], clips[1:], strict=True):
        for total, (_, target, source) in zip(sums, taps(T, K), strict=True):
            total[:, :, : clip.shape[2]].addcmul_(dclip[:, target], clip[:, source])
    return [total.sum(2).transpose(1, 2) for total in sums]
