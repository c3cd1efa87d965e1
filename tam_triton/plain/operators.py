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


def aggregate(x: Tensor, importance: Tensor, kernel: Tensor) -> Tensor:
    """Y[t] = Σ_k Θ[k]·V[t+k−K//2]·X[t+k−K//2] (equations 4 and 5)."""
    return weighted_sum(x, importance, kernel, None, False, layout.is_channels_last(x))


def input_gradient(
    dy: Tensor, importance: Tensor, kernel: Tensor, d_squeezed: Tensor | None, channels_last: bool
) -> Tensor:
    """dX[s] = V[s]·Σ_k Θ[k]·dY[s−k+K//2] + dX̂[s]/P, dense in the given layout."""
    offset = None if d_squeezed is None else d_squeezed.to(accumulator(dy)) / (dy.shape[2] * dy.shape[3])
    return weighted_sum(dy, importance, kernel, offset, True, channels_last)


def weighted_sum(
    frames: Tensor, importance: Tensor, kernel: Tensor, offset: Tensor | None, transposed: bool, channels_last: bool
) -> Tensor:
    """`by_tap.weighted_sum` with the weights Θ[k]·V[s]; never a view of what the form made.

    The result of an autograd function must not be one: it could not be modified in place, and torch.compile of torch
    2.11 gives such a function's inputs gradients of zero.
    """
    weights = widened(importance)[..., None] * widened(kernel)[:, :, None]
    form = form_for(importance.shape[-1], channels_last, frames, weights, *(() if offset is None else (offset,)))
    wide = frames.type_as(weights) if form is in_cache else frames
    result = form.weighted_sum(wide, weights, offset, transposed, channels_last).type_as(frames)
    return torch.ops.aten._unsafe_view.default(result, result.shape)  # the same tensor, without its past


def weight_gradients(dy: Tensor, x: Tensor, importance: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of V `(N, C, T)` and Θ `(N, C, K)`: dV[s] = Σ_k Θ[k]·B[s,k] and dΘ[k] = Σ_s V[s]·B[s,k].

    B is the band of `dY·Xᵀ` (`by_tap.band`).
    """
    T, K = importance.shape[-1], kernel.shape[-1]
    dtype = accumulator(x)
    channels_last = layout.is_channels_last(x)
    form = form_for(T, channels_last, dy, x, importance, kernel)
    if form is by_tap:
        band = by_tap.band(dy, x, T, K)
    else:
        if form is in_cache:
            dy, x = dy.to(dtype), x.to(dtype)
        band = form.band(dy, x, T, K, channels_last)
    inside = inside_clip(T, K, x.device)  # beyond it is nothing, not 0·Θ, which may be NaN
    d_importance = (band * kernel.to(dtype)[:, :, None]).where(inside, 0.0).sum(-1)
    d_kernel = (band * importance.to(dtype)[..., None]).where(inside, 0.0).sum(2)
    return d_importance.to(importance.dtype), d_kernel.to(kernel.dtype)


def form_for(T: int, channels_last: bool, *operands: Tensor) -> ModuleType:
    """The form for these operands: written for the CPU, unless they need derivatives or another device's code."""
    if any(t.device.type != "cpu" for t in operands):
        return by_tap
    if torch.compiler.is_compiling():
        if torch.onnx.is_in_onnx_export():  # it has no loops to fuse
            return by_tap
        return by_frame if channels_last and T <= by_frame.MAX_FRAMES else by_shift
    plain = all(type(t) in (Tensor, nn.Parameter) and t.dtype != torch.float64 for t in operands)
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in operands)
    return in_cache if plain and not recorded else by_tap
