"""The operators, each in the form that suits its operands."""

from types import ModuleType

import torch
from torch import Tensor, nn

from tam_triton import layout
from tam_triton.plain import by_frame, by_shift, by_tap, in_cache
from tam_triton.plain.views import accumulator, clip_view, inside_clip, widened


def squeeze(x: Tensor, num_segments: int) -> Tensor:
    """X̂[n,c,t] = mean over pixels of x; `(N, C, T)` (equation 1)."""
    mean = x.flatten(2).mean(-1, dtype=accumulator(x)).type_as(x)
    return clip_view(mean, num_segments).transpose(1, 2).clone(memory_format=torch.contiguous_format)


def aggregate(
    x: Tensor, importance: Tensor | None, kernel: Tensor, num_segments: int | None = None, after: bool = False
) -> Tensor:
    """Y[t] = Σ_k Θ[k]·V[t+k−K//2]·X[t+k−K//2] (equations 4 and 5), or, with `after`, V[t]·Σ_k Θ[k]·X[t+k−K//2].

    V `(N, C, T)` may be None, if T is told; Θ is `(N, C, K)`, or `(C, K)` for all clips.
    """
    T = layout.segments(importance, num_segments)
    return weighted_sum(x, importance, kernel, None, T, False, after, layout.is_channels_last(x))


def input_gradient(
    dy: Tensor,
    importance: Tensor | None,
    kernel: Tensor,
    d_squeezed: Tensor | None,
    channels_last: bool,
    num_segments: int | None = None,
    after: bool = False,
) -> Tensor:
    """dX[s] = V[s]·Σ_k Θ[k]·dY[s−k+K//2] + dX̂[s]/P, dense in the given layout; V at dY's frame with `after`."""
    T = layout.segments(importance, num_segments)
    offset = None if d_squeezed is None else d_squeezed.to(accumulator(dy)) / (dy.shape[2] * dy.shape[3])
    return weighted_sum(dy, importance, kernel, offset, T, True, after, channels_last)


def weighted_sum(
    frames: Tensor,
    importance: Tensor | None,
    kernel: Tensor,
    offset: Tensor | None,
    T: int,
    transposed: bool,
    after: bool,
    channels_last: bool,
) -> Tensor:
    """`by_tap.weighted_sum` with the weights Θ[k]·V[s]; never a view of what the form made.

    A band with V at its other end is the transpose of one with its taps reversed.

    The result of an autograd function must not be a view: it could not be modified in place, and torch.compile of torch
    2.11 gives such a function's inputs gradients of zero.
    """
    theta = widened(kernel.flip(-1) if after else kernel)
    clips = frames.shape[0] // T
    weights = theta.expand(clips, *theta.shape[-2:])[:, :, None].expand(-1, -1, T, -1)
    if importance is not None:
        weights = widened(importance)[..., None] * weights
    form = form_for(T, channels_last, frames, weights, *(() if offset is None else (offset,)))
    result = form.weighted_sum(frames, weights, offset, transposed != after, channels_last)
    if torch.jit.is_tracing():  # its graph would keep this size for all
        return result
    return torch.ops.aten._unsafe_view.default(result, result.shape)  # the same tensor, without its past


def weight_gradients(
    dy: Tensor,
    x: Tensor,
    importance: Tensor | None,
    kernel: Tensor,
    num_segments: int | None = None,
    after: bool = False,
) -> tuple[Tensor, Tensor]:
    """Gradients of V `(N, C, T)`, as if it were 1 where it is None, and of Θ, shaped as Θ.

    dV[s] = Σ_k Θ[k]·B[s,k] and dΘ[k] = Σ_s V[s]·B[s,k], with the band B of `dY·Xᵀ` (`by_tap.band`).
    """
    T, K = layout.segments(importance, num_segments), kernel.shape[-1]
    dtype = accumulator(x)
    channels_last = layout.is_channels_last(x)
    operands = (dy, x, kernel) if importance is None else (dy, x, kernel, importance)
    form = form_for(T, channels_last, *operands)
    theta = kernel.to(dtype)
    if after:
        x, dy, theta = dy, x, theta.flip(-1)
    band = by_tap.band(dy, x, T, K) if form is by_tap else form.band(dy, x, T, K, channels_last)
    inside = inside_clip(T, K, x.device)  # beyond it is nothing, not 0·Θ, which may be NaN
    d_importance = (band * theta[..., None, :]).where(inside, 0.0).sum(-1)
    if importance is not None:
        band = band * importance.to(dtype)[..., None]
    d_kernel = band.where(inside, 0.0).sum(2 if kernel.dim() == 3 else (0, 2))
    if after:
        d_kernel = d_kernel.flip(-1)
    return d_importance.to(kernel.dtype if importance is None else importance.dtype), d_kernel.to(kernel.dtype)


def form_for(T: int, channels_last: bool, *operands: Tensor) -> ModuleType:
    """The form for these operands: written for the CPU, unless they need derivatives or another device's code."""
    if any(t.device.type != "cpu" for t in operands) or torch.jit.is_tracing():  # whose graph is for all sizes
        return by_tap
    if torch.compiler.is_compiling():
        if torch.onnx.is_in_onnx_export():  # it has no loops to fuse
            return by_tap
        return by_frame if channels_last and T <= by_frame.MAX_FRAMES else by_shift
    plain = all(type(t) in (Tensor, nn.Parameter) and t.dtype != torch.float64 for t in operands)
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in operands)
    return in_cache if plain and not recorded else by_tap
