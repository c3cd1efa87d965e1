"""Device functions of both branches: products, what enters them, and BatchNorm by what programs leave of their parts.

Columns are the frames of all clips, `n·T + t`; rows are the channels of all clips, `n·C + c`. Tiles have features,
hidden channels, taps or channels first, and columns or rows last. A part is what one program has gone through.
"""

import triton
import triton.language as tl

from tam_triton.kernels.frames import relu


@triton.jit
def product(a, b, total):
    """total + a·b, summed in total's dtype."""
    a, b = a.to(total.dtype), b.to(total.dtype)
    if total.dtype == tl.float64:
        total += tl.sum(a[:, :, None] * b[None, :, :] + 0.0, axis=1)
    else:  # what follows a return is compiled by older releases of Triton
        total = tl.dot(a, b, total, input_precision="ieee")
    return total


@triton.jit
def load_windows(squeezed_ptr, k, column, columns, C, T: tl.constexpr, TAPS: tl.constexpr):
    """X̂[n,c,t+j−TAPS//2] for k = c·TAPS + j by columns; 0 beyond a clip."""
    n, t = (column // T).to(tl.int64)[None, :], (column % T)[None, :]
    c, s = (k // TAPS)[:, None], t + (k % TAPS)[:, None] - TAPS // 2
    inside = (c < C) & (column < columns)[None, :] & (s >= 0) & (s < T)
    return tl.load(squeezed_ptr + (n * C + c) * T + s, mask=inside, other=0.0)


@triton.jit
def load_columns(values_ptr, c, column, columns, C, T: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Values `(N, C, T)` of channels by columns; stored channels fastest, or frames."""
    n, t = (column // T).to(tl.int64)[None, :], (column % T)[None, :]
    inside = (c < C)[:, None] & (column < columns)[None, :]
    at = (n * T + t) * C + c[:, None] if CHANNELS_LAST else (n * C + c[:, None]) * T + t
    return tl.load(values_ptr + at, mask=inside, other=0.0)


@triton.jit
def load_matrix(matrix_ptr, row, rows, column, columns):
    """A block of a matrix `(rows, columns)`."""
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    return tl.load(matrix_ptr + row[:, None] * columns + column[None, :], mask=inside, other=0.0)


@triton.jit
def load_vector(vector_ptr, i, size, ACC: tl.constexpr):
    """Elements of a vector."""
    return tl.load(vector_ptr + i, mask=i < size, other=0.0).to(ACC)


@triton.jit
def project_rows(squeezed_ptr, first_ptr, w, row, WIDTH, rows, T: tl.constexpr, FRAMES: tl.constexpr, total):
    """total + W₁·X̂[row]; rows are int64."""
    for t0 in range(0, T, FRAMES):
        t = t0 + tl.arange(0, FRAMES)
        first = load_matrix(first_ptr, w, WIDTH, t, T)
        squeezed = tl.load(
            squeezed_ptr + row[None, :] * T + t[:, None], mask=(row < rows)[None, :] & (t < T)[:, None], other=0.0
        )
        total = product(first, squeezed, total)
    return total


@triton.jit
def quotient(a, b):
    """a / b rounded to nearest, of float32 too, whose own division may be off by two units in the last place."""
    if b.dtype == tl.float32:  # noqa: SIM108  # this is known when Triton compiles
        result = tl.div_rn(a.to(tl.float32), b)
    else:
        result = a / b
    return result


@triton.jit
def add_moments(mean, variance, seen, values, present):
    """Mean and variance of each row after more values (Chan, Golub and LeVeque: no digits are lost)."""
    count = tl.sum(present.to(mean.dtype), axis=0)
    other = quotient(tl.sum(tl.where(present[None, :], values, 0.0), axis=1), count)
    off = tl.where(present[None, :], values - other[:, None], 0.0)
    # off · (off / count) + 0: a sum over lanes must not take the product into itself, and of a square LLVM knows that
    # + 0 changes nothing.
    other_variance = tl.sum(off * (off * quotient(tl.full([], 1, count.dtype), count)) + 0.0, axis=1)
    share, apart = quotient(count, seen + count), other - mean
    variance += (other_variance - variance) * share + apart * apart * (share * (1 - share))
    return mean + apart * share, variance, seen + count


@triton.jit
def batch_statistics(moments_ptr, i, size, parts, of_part, count, PARTS: tl.constexpr, ACC: tl.constexpr):
    """Mean and biased variance of channels i over all `count` values, from those of the parts `(2, parts, size)`."""
    part = tl.arange(0, PARTS)[None, :]
    inside = (i < size)[:, None] & (part < parts)
    at = part * size + i[:, None]
    means = tl.load(moments_ptr + at, mask=inside, other=0.0)
    variances = tl.load(moments_ptr + parts * size + at, mask=inside, other=0.0)
    share = quotient(
        tl.where(part < parts, tl.minimum(count - part * of_part, of_part), 0).to(ACC), tl.full([], 0, ACC) + count
    )
    mean = tl.sum(means * share + 0.0, axis=1)
    off = tl.where(inside, means - mean[:, None], 0.0)
    return mean, tl.sum((variances + off * off) * share + 0.0, axis=1)


@triton.jit
def sum_of_parts(parts_ptr, i, known, size, parts, PARTS: tl.constexpr):
    """Elements i of sums `(parts, size)`, added up over the parts."""
    part = tl.arange(0, PARTS)[None, :]
    inside = known[:, None] & (part < parts)
    return tl.sum(tl.load(parts_ptr + part * size + i[:, None], mask=inside, other=0.0), axis=1)


@triton.jit
def normalize(values, mean, scale, bias):
    """BatchNorm, and ReLU after it."""
    return relu((values - mean[:, None]) * scale[:, None] + bias[:, None])
