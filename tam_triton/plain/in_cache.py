"""For torch executed call by call on the CPU: a form for each layout that crosses memory about once.

Contiguous rows of pixels are summed in weighted bags, and multiplied clip by clip as matrices. channels_last goes
through the pixels in pieces that stay in the cache. Half precision becomes float32 a piece or a clip at a time, and is
rounded once, as sums are written. No derivatives: results are written in place.
"""

import functools

import torch
from torch import Tensor
from torch.nn import functional

from tam_triton import layout
from tam_triton.plain.views import inside_clip, rows_of_pixels, taps, widened

PIECE_BYTES = 2**21  # of each operand in float32: smaller pieces fit the L2 cache, and cost more calls than that gains


def weighted_sum(
    frames: Tensor, weights: Tensor, offset: Tensor | None, transposed: bool, channels_last: bool
) -> Tensor:
    """As `by_tap.weighted_sum`."""
    form = weighted_sum_in_pieces if channels_last else weighted_sum_of_rows
    return form(frames, weights, offset, transposed)


def band(dy: Tensor, x: Tensor, T: int, K: int, channels_last: bool) -> Tensor:
    """As `by_tap.band`."""
    return (band_in_pieces if channels_last else band_of_rows)(dy, x, T, K)


def weighted_sum_of_rows(frames: Tensor, weights: Tensor, offset: Tensor | None, transposed: bool) -> Tensor:
    """Each row of pixels of a contiguous result is a weighted bag of the rows that its taps reach."""
    N, C, T, K = weights.shape
    if frames.dtype != weights.dtype:  # half precision
        result = layout.empty(frames, channels_last=False)
        offsets = [None] * N if offset is None else offset.split(1)
        clips = zip(result.split(T), frames.split(T), weights.split(1), offsets, strict=True)
        for target, clip, of_clip, its_offset in clips:
            target.copy_(weighted_sum_of_rows(clip.type_as(weights), of_clip, its_offset, transposed))
        return result
    rows, positions, starts = bags(C, T, K, transposed)
    clip = torch.arange(N, dtype=rows.dtype, device=rows.device)[:, None]
    total = functional.embedding_bag(
        (rows + clip * (T * C)).view(-1),
        layout.to_layout(frames, channels_last=False).view(N * T * C, -1),
        (starts + clip * rows.numel()).view(-1),
        mode="sum",
        per_sample_weights=weights.reshape(N, -1).index_select(1, positions).view(-1),
    )
    if offset is not None:
        total += offset.transpose(1, 2).reshape(-1, 1)
    return total.view(frames.shape)


@functools.lru_cache(maxsize=128)
def bags(C: int, T: int, K: int, transposed: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The bags of one clip, flat: rows `(T·C)` of frames, positions in weights `(C·T·K)`, and where each bag starts."""
    with torch.inference_mode(False):
        t = torch.arange(T, device="cpu")[:, None, None]
        c, k = torch.arange(C, device="cpu")[:, None], torch.arange(K, device="cpu")
        of = t - (k - K // 2) if transposed else t + (k - K // 2)
        inside = ((of >= 0) & (of < T)).expand(T, C, K)
        rows = (of * C + c)[inside]
        positions = ((c * T + (t if transposed else of)) * K + k)[inside]
        sizes = inside.sum(-1).flatten()
        return rows.int(), positions.int(), (sizes.cumsum(0) - sizes).int()


def weighted_sum_in_pieces(frames: Tensor, weights: Tensor, offset: Tensor | None, transposed: bool) -> Tensor:
    """A channels_last result: all taps of a few pixels while they are in the cache."""
    T, K = weights.shape[-2:]
    by_tap = weights.permute(3, 0, 2, 1).contiguous()[:, :, :, None]  # (K, N, T, 1, C)
    begin = None if offset is None else offset.transpose(1, 2).contiguous()[:, :, None]
    result = layout.empty(frames, channels_last=True)
    operands = (rows_of_pixels(frames, T, True), rows_of_pixels(result, T, True))
    for clip, target in zip(*(pieces(t) for t in operands), strict=True):
        clip = clip.type_as(weights)
        total = target if target.dtype == clip.dtype else torch.empty_like(clip)
        if begin is None:
            torch.mul(clip, by_tap[K // 2], out=total)
        else:
            torch.addcmul(begin, clip, by_tap[K // 2], out=total)
        for k, later, source in taps(T, K):
            if k != K // 2:
                to, of = (source, later) if transposed else (later, source)
                total[:, to].addcmul_(clip[:, of], by_tap[k][:, source])
        if total is not target:
            target.copy_(total)
    return result


def pieces(x: Tensor) -> tuple[Tensor, ...]:
    """`(N, T, P, C)` split by pixels."""
    N, T, _, C = x.shape
    return x.split(max(1, PIECE_BYTES // (N * T * C * 4)), dim=2)


def band_of_rows(dy: Tensor, x: Tensor, T: int, K: int) -> Tensor:
    """From contiguous tensors: the whole of `dY·Xᵀ`, a matrix `(T, T)` for each channel, at the cost of reading.

    Only a clip at a time has a stride that a batch of matrices can have.
    """
    clip, dclip = rows_of_pixels(x, T, False), rows_of_pixels(dy, T, False)  # (N, T, C, P)
    (N, _, C, _), half = clip.shape, K // 2
    margin = half * T  # the taps of a clip's end lie in another matrix, or in the margins
    products = widened(x.new_empty(0)).new_empty(N, margin + C * T * T + margin)
    for n in range(N):
        product = products[n, margin : margin + C * T * T].view(C, T, T)
        operands = (product, dclip[n].transpose(0, 1), clip[n].transpose(0, 1))
        some = max(1, PIECE_BYTES // (T * clip.shape[-1] * 4))
        for out, left, right in zip(*(operand.split(some) for operand in operands), strict=True):
            torch.bmm(widened(left), widened(right).transpose(1, 2), out=out)
    diagonals = products.as_strided((N, C, T, K), (products.shape[1], T * T, T + 1, T))  # k counts down
    return torch.where(inside_clip(T, K, x.device), diagonals.flip(-1), 0.0)


def band_in_pieces(dy: Tensor, x: Tensor, T: int, K: int) -> Tensor:
    """From channels_last tensors: pieces are added up pixel by pixel, then the pixels of one piece."""
    clips, dclips = pieces(rows_of_pixels(x, T, True)), pieces(rows_of_pixels(dy, T, True))  # (N, T, pixels, C)
    sums: list[Tensor] = []
    for dclip, clip in zip(map(widened, dclips), map(widened, clips), strict=True):
        if not sums:
            sums = [dclip[:, target] * clip[:, source] for _, target, source in taps(T, K)]
            continue
        for total, (_, target, source) in zip(sums, taps(T, K), strict=True):
            total[:, :, : clip.shape[2]].addcmul_(dclip[:, target], clip[:, source])
    result = sums[0].new_zeros(x.shape[0] // T, x.shape[1], T, K)
    for total, (k, _, source) in zip(sums, taps(T, K), strict=True):
        result[:, :, source, k] = total.sum(2).transpose(1, 2)
    return result
