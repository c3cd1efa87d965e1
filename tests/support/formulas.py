"""What the operators compute in every form: the reference in NumPy (`exact_…`), torch's own operations (`plain_…`)."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

import reference
from bench import peers as eager
from tam_triton.plain import training as plain


def activation(x: Tensor, norm: list[Tensor], eps: float) -> Tensor:
    """ReLU(BN(x)) with running statistics."""
    weight, bias, mean, variance = norm
    return functional.batch_norm(x, mean, variance, weight, bias, eps=eps).relu()


def exact_activation(x: np.ndarray, norm: list[np.ndarray], eps: float) -> np.ndarray:
    """The same of a clip view."""
    weight, bias, mean, variance = (vector[:, None, None] for vector in norm)
    return np.maximum((x - mean) / np.sqrt(variance + eps) * weight + bias, 0)


def exact_branches(
    squeezed: np.ndarray, global_branch: list[np.ndarray], local_branch: list[np.ndarray], **_: Any
) -> tuple[np.ndarray, np.ndarray]:
    parameters: dict[str, np.ndarray] = {}
    for name, (first, *norm, last) in (("G", global_branch), ("L", local_branch)):
        parameters |= {f"{name}.0.weight": first, f"{name}.3.weight": last}
        parameters |= zip((f"{name}.1.{key}" for key in reference.tam.BATCH_NORM), norm, strict=True)
    importance = reference.importance_map(squeezed, parameters, training=False)
    return importance.output, reference.adaptive_kernel(squeezed, parameters, training=False).output


def plain_branches(
    squeezed: Tensor, global_branch: list[Tensor], local_branch: list[Tensor], eps: float, **_: Any
) -> tuple[Tensor, Tensor]:
    g_first, *g_norm, g_last = global_branch
    l_first, *l_norm, l_last = local_branch
    rows = activation(functional.linear(squeezed.flatten(0, 1), g_first), g_norm, eps)
    hidden = activation(functional.conv1d(squeezed, l_first, padding=1), l_norm, eps)
    kernel = functional.linear(rows, g_last).softmax(-1).unflatten(0, squeezed.shape[:2])
    return functional.conv1d(hidden, l_last).sigmoid(), kernel


PARAMETERS = ("first", "weight", "bias", "second")
"""Of a branch in training."""


def as_state(parameters: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Parameters as the operators name them, by the names of the checkpoints; with statistics of no meaning."""
    state: dict[str, np.ndarray] = {}
    for branch in ("G", "L"):
        first, weight, bias, second = (parameters[f"{branch.lower()}_{name}"] for name in PARAMETERS)
        norm = zip(reference.tam.BATCH_NORM, (weight, bias, 0 * bias, 1 + 0 * bias), strict=True)
        state |= {f"{branch}.0.weight": first, f"{branch}.3.weight": second}
        state |= {f"{branch}.1.{name}": vector for name, vector in norm}
    return state


def exact_training(
    squeezed: np.ndarray, eps: float, channels_last: bool, **parameters: np.ndarray
) -> tuple[np.ndarray, ...]:
    """V, Θ, what enters L's BatchNorm, and the statistics of both."""
    state = as_state(parameters)
    local = reference.importance_map(squeezed, state, training=True)
    of_global = reference.adaptive_kernel(squeezed, state, training=True)
    return (
        local.output,
        of_global.output,
        local.projected,
        *(
            np.stack([values.mean(1), values.var(1, ddof=1), (values.var(1) + eps) ** -0.5])
            for values in (np.moveaxis(b.projected, 1, 0).reshape(b.projected.shape[1], -1) for b in (of_global, local))
        ),
    )


def exact_branch_gradients(
    d_importance: np.ndarray, d_kernel: np.ndarray, squeezed: np.ndarray, channels_last: bool, **arguments: np.ndarray
) -> tuple[np.ndarray, ...]:
    """dX̂ and the gradients of all parameters."""
    state = as_state(arguments)
    local = reference.importance_map(squeezed, state, training=True)
    of_global = reference.adaptive_kernel(squeezed, state, training=True)
    by_local, gradients = reference.importance_map_backward(d_importance, local, state)
    by_global, others = reference.adaptive_kernel_backward(d_kernel, of_global, state)
    gradients |= others
    names = [f"{branch}.{name}" for branch in "GL" for name in ("0.weight", "1.weight", "1.bias", "3.weight")]
    return by_local + by_global, *(gradients[name] for name in names)


def plain_training(
    squeezed: Tensor, eps: float, channels_last: bool = False, **parameters: Tensor
) -> tuple[Tensor, ...]:
    """As the layers have it, in the arguments' precision."""
    outputs, entered = [], []
    for branch in "gl":
        first, weight, bias, second = (parameters[f"{branch}_{name}"] for name in PARAMETERS)
        if branch == "g":
            values = functional.linear(squeezed.flatten(0, 1), first)
        else:
            values = functional.conv1d(squeezed, first, padding=1)
        hidden = functional.batch_norm(values, None, None, weight, bias, training=True, eps=eps).relu()
        scores = functional.linear(hidden, second) if branch == "g" else functional.conv1d(hidden, second)
        outputs.append(scores.softmax(-1).unflatten(0, squeezed.shape[:2]) if branch == "g" else scores.sigmoid())
        entered.append(values.detach().to(torch.promote_types(values.dtype, torch.float32)))
    return outputs[1], outputs[0], entered[1], *(plain.statistics(values, eps) for values in entered)


def plain_branch_gradients(
    d_importance: Tensor, d_kernel: Tensor, squeezed: Tensor, channels_last: bool, **arguments: Tensor
) -> tuple[Tensor, ...]:
    """By autograd."""
    names = ["squeezed", *(f"{branch}_{name}" for branch in "gl" for name in PARAMETERS)]
    leaves = [value.detach().requires_grad_() for value in (squeezed, *(arguments[name] for name in names[1:]))]
    given: dict[str, Any] = dict(zip(names, leaves, strict=True))
    importance, kernel, *_ = plain_training(**given, eps=reference.layers.EPSILON)
    return torch.autograd.grad((importance, kernel), leaves, (d_importance, d_kernel))


def exact_normalized(name: str, **a: Any) -> Any:
    """What the operators behind a BatchNorm in training compute, by their name and arguments."""
    if name == "batch_statistics":
        mean, variance = reference.batch_statistics(a["x"])
        count = a["x"].size // a["x"].shape[2]
        return np.stack([mean, variance * count / (count - 1), (variance + a["eps"]) ** -0.5])
    if name == "batch_norm_gradients":
        (of_mask, of_normalized), (counts, projections) = a["d_sums"], a["sums"]
        return reference.norm_gradients(of_mask, of_normalized, counts, projections, a["d_squeezed"], a["pixels"])
    mean, _, inverse = a["statistics"]
    norm = reference.normalize(a["x"], a["weight"], a["bias"], mean, 1 / inverse)
    if name == "normalized_squeeze":
        return reference.squeeze(norm.activated), np.stack(norm.sums())
    if name == "normalized_aggregate":
        return reference.excite_and_aggregate(norm.activated, a["importance"], a["kernel"])
    if name == "normalized_gradients":
        d_importance, d_kernel, *sums = reference.norm_bands(a["dy"], norm, a["importance"], a["kernel"])
        return d_importance, d_kernel, np.stack(sums)
    gradients = None if a["d_weight"] is None else (a["d_weight"], a["d_bias"])
    return reference.norm_input_gradient(a["dy"], norm, a["importance"], a["kernel"], a["d_squeezed"], gradients)


def plain_normalized(name: str, **a: Any) -> Any:
    """The same, from torch's BatchNorm and ReLU, which round A to the dtype of x, and the usual formulation."""
    if name == "batch_statistics":
        wide = torch.promote_types(a["x"].dtype, torch.float32)
        values = a["x"].to(wide).transpose(0, 1).flatten(1)
        return torch.stack([values.mean(1), values.var(1), (values.var(1, correction=0) + a["eps"]).rsqrt()])
    if name == "batch_norm_gradients":
        spread = a["d_squeezed"].to(a["sums"].dtype) / a["pixels"]
        of_mask, of_normalized = (a["d_sums"][i] + spread * a["sums"][i] for i in (0, 1))
        return of_normalized.sum((0, 2)), of_mask.sum((0, 2))
    x, (mean, _, inverse) = a["x"], a["statistics"].to(a["x"].dtype)
    normalized = (x - mean[:, None, None]) * inverse[:, None, None]
    activated = (normalized * a["weight"][:, None, None] + a["bias"][:, None, None]).relu()
    mask = (activated > 0).to(x.dtype)
    if name == "normalized_squeeze":
        squeezed = eager.squeeze(activated, a["num_segments"])
        sums = [one.double().sum((2, 3)).unflatten(0, (-1, a["num_segments"])).mT for one in (mask, mask * normalized)]
        return squeezed, torch.stack(sums).to(a["statistics"].dtype)
    if name == "normalized_aggregate":
        return eager.excite_and_aggregate(activated, a["importance"], a["kernel"])
    importance, kernel = a["importance"], a["kernel"]
    d_activated, d_importance, d_kernel = plain_gradients(activated, importance, kernel, a["dy"])
    if name == "normalized_gradients":
        T = importance.shape[-1]
        sums = [(d_activated * one).sum((2, 3)).unflatten(0, (-1, T)).mT for one in (mask, mask * normalized)]
        return d_importance, d_kernel, torch.stack(sums).to(a["statistics"].dtype)
    d_squeezed = a["d_squeezed"] / (x.shape[2] * x.shape[3])
    centred = (d_activated + d_squeezed.transpose(1, 2).reshape(-1, x.shape[1], 1, 1)) * mask
    if a["d_weight"] is not None:
        count = x.numel() // x.shape[1]
        d_bias, d_weight = ((a[name] / count).to(x.dtype)[:, None, None] for name in ("d_bias", "d_weight"))
        centred = centred - d_bias - normalized * d_weight
    return (a["weight"] * inverse)[:, None, None] * centred


def plain_gradients(
    x: Tensor, importance: Tensor | None, kernel: Tensor, dy: Tensor, num_segments: int = 0, after: bool = False
) -> tuple[Tensor, ...]:
    """dX, dV and dΘ by autograd; dV as if V were 1 where it is None."""
    if importance is None:
        importance = x.new_ones(x.shape[0] // num_segments, x.shape[1], num_segments)
    x, importance, kernel = leaves = [t.detach().clone().requires_grad_() for t in (x, importance, kernel)]
    return torch.autograd.grad(plain_aggregate(x, importance, kernel, after=after), leaves, dy)


def plain_input_gradient(
    dy: Tensor, importance: Tensor | None, kernel: Tensor, d_squeezed: Tensor | None, channels_last: bool, **form: Any
) -> Tensor:
    dx = plain_gradients(dy, importance, kernel, dy, **form)[0]
    if d_squeezed is None:
        return dx
    return dx + (d_squeezed / (dy.shape[2] * dy.shape[3])).transpose(1, 2).reshape(-1, dy.shape[1], 1, 1)


def exact_input_gradient(
    dy: np.ndarray, importance: np.ndarray | None, kernel: np.ndarray, d_squeezed: np.ndarray | None, **form: Any
) -> np.ndarray:
    dx = exact_gradients(dy, dy, importance, kernel, **form)[0]
    return dx if d_squeezed is None else dx + reference.squeeze_backward(d_squeezed, dy.shape)


def exact_aggregate(
    x: np.ndarray, importance: np.ndarray | None, kernel: np.ndarray, after: bool = False, **_: Any
) -> np.ndarray:
    """The reference of every form, of equations 4 and 5 by themselves."""
    kernel = np.broadcast_to(kernel, (len(x), *kernel.shape[-2:]))
    excited = x if importance is None or after else reference.excite(x, importance)
    y = reference.aggregate(excited, kernel)
    return y if importance is None or not after else reference.excite(y, importance)


def exact_gradients(
    dy: np.ndarray, x: np.ndarray, importance: np.ndarray | None, kernel: np.ndarray, after: bool = False, **_: Any
) -> tuple[np.ndarray, ...]:
    """dX, dV and dΘ of every form; dV as if V were 1 where it is None."""
    (N, T, C), taps = x.shape[:3], np.broadcast_to(kernel, (len(x), *kernel.shape[-2:]))
    v = np.ones((N, C, T)) if importance is None else importance
    if after:
        y = reference.aggregate(x, taps)
        dy, d_importance = reference.excite_backward(dy, y, v)
        dx, d_kernel = reference.aggregate_backward(dy, x, taps)
    else:
        dx, d_importance, d_kernel = reference.excite_and_aggregate_backward(dy, x, v, taps)
    return dx, d_importance, d_kernel if kernel.ndim == 3 else d_kernel.sum(0)


def plain_aggregate(
    x: Tensor, importance: Tensor | None, kernel: Tensor, num_segments: int = 0, after: bool = False
) -> Tensor:
    """The usual formulation of every form."""
    T = num_segments if importance is None else importance.shape[-1]
    if importance is None:
        importance = x.new_ones(x.shape[0] // T, x.shape[1], T)
    taps = kernel.expand(len(importance), *kernel.shape[-2:])
    return (eager.aggregate_and_excite if after else eager.excite_and_aggregate)(x, importance, taps)
