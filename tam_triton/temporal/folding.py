"""Whether kernels that read raw parameters compute what a TAM's layers would: the one place that decides.

A layer is known by what it is: its exact class with the forward that torch gave it, its configuration, its tensors, and
nothing attached to it. Anything else, known or unknown, is called as a layer. Under torch.compile and torch.export the
decision falls once, while tracing; what it read is guarded as that of torch's own layers is: a hook that comes later is
noticed if `torch._dynamo.config.skip_nnmodule_hook_guards` is False.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from tam_triton.checks import is_autocasting, transforming

BATCH_NORMS_1D: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.SyncBatchNorm)
BATCH_NORMS_2D: tuple[type[nn.Module], ...] = (nn.BatchNorm2d, nn.SyncBatchNorm)
# As they were when this file was imported: a class whose forward was replaced since is another class.
KINDS: tuple[Any, ...] = (
    *(nn.Sequential, nn.Linear, nn.Conv1d, nn.ReLU, nn.Softmax, nn.Sigmoid),
    *(*BATCH_NORMS_1D, nn.BatchNorm2d),
)
FORWARDS = {kind: kind.forward for kind in KINDS}
CONV_FORWARD = nn.Conv1d._conv_forward
GLOBAL_HOOKS = (
    nn_module._global_forward_pre_hooks,
    nn_module._global_forward_hooks,
    nn_module._global_backward_pre_hooks,
    nn_module._global_backward_hooks,
)
HALVES_AND_SINGLE = (torch.float32, torch.float16, torch.bfloat16)


class Folded(NamedTuple):
    """What the kernels of evaluation take; as in `functional.evaluate`."""

    global_branch: list[Tensor]
    local_branch: list[Tensor]
    eps: float


class Normalized(NamedTuple):
    """A BatchNorm before a ReLU: γ, β, and the running mean and variance it is frozen at; None: it is in training."""

    weight: Tensor
    bias: Tensor
    frozen: tuple[Tensor, Tensor] | None


class Trained(NamedTuple):
    """What the kernels of training take, as in `functional.training_branches`, and the BatchNorms to be told of it."""

    global_branch: list[Tensor]
    local_branch: list[Tensor]
    eps: float
    norms: list[Any]


def fold(x: Tensor, global_branch: nn.Module, local_branch: nn.Module, kernel_size: int) -> Folded | None:
    """The tensors of both branches, or None where the layers have to be called.

    Args:
        x: the feature map, of which dtype and kind of tensor matter.
        global_branch: G, from X̂ to Θ; as built Linear, BatchNorm1d, ReLU, Linear, Softmax.
        local_branch: L, from X̂ to V; as built Conv1d, BatchNorm1d, ReLU, Conv1d, Sigmoid.
        kernel_size: K, which the last weight of G must give.
    """
    if (layers := known_layers(x, global_branch, local_branch, kernel_size)) is None:
        return None
    g_first, g_norm, g_second, l_first, l_norm, l_second = layers
    g_vectors, l_vectors = fold_norm(g_norm, BATCH_NORMS_1D), fold_norm(l_norm, BATCH_NORMS_1D)
    if g_vectors is None or l_vectors is None or g_norm.eps != l_norm.eps or not g_norm.eps > 0:
        return None
    folded = Folded(
        [g_first.weight, *g_vectors, g_second.weight], [l_first.weight, *l_vectors, l_second.weight], g_norm.eps
    )
    return folded if all(fits(tensor, x) for tensor in (*folded.global_branch, *folded.local_branch)) else None


def fold_training(
    squeezed: Tensor, global_branch: nn.Module, local_branch: nn.Module, kernel_size: int
) -> Trained | None:
    """The same of branches whose BatchNorms take the statistics of the batch; of X̂ `(N, C, T)`, or None."""
    if (layers := known_layers(squeezed, global_branch, local_branch, kernel_size)) is None:
        return None
    g_first, g_norm, g_second, l_first, l_norm, l_second = layers
    if not all(is_batch_norm_in_training(norm, nn.BatchNorm1d) for norm in (g_norm, l_norm)):
        return None
    if g_norm.eps != l_norm.eps or not g_norm.eps > 0:
        return None
    tensors = [
        *(g_first.weight, g_norm.weight, g_norm.bias, g_second.weight),
        *(l_first.weight, l_norm.weight, l_norm.bias, l_second.weight),
    ]
    (clips, channels, num_segments), width, hidden = squeezed.shape, tensors[0].shape[0], tensors[4].shape[0]
    if clips * channels == 1 or clips * num_segments == 1:  # no variance, as BatchNorm says itself
        return None
    shapes: tuple[tuple[int, ...], ...] = (
        *((width, num_segments), (width,), (width,), (kernel_size, width)),
        *((hidden, channels, 3), (hidden,), (hidden,), (channels, hidden, 1)),
    )
    for tensor, shape in zip(tensors, shapes, strict=True):
        if tensor is None or tensor.shape != shape or not fits(tensor, squeezed):
            return None
    return Trained(tensors[:4], tensors[4:], g_norm.eps, [g_norm, l_norm])


def known_layers(x: Tensor, global_branch: nn.Module, local_branch: nn.Module, kernel_size: int) -> list[Any] | None:
    """First layer, BatchNorm and second layer of G and of L, where all of both are what they were built as."""
    if not may_be_replaced(x) or not (is_plain(global_branch, nn.Sequential) and is_plain(local_branch, nn.Sequential)):
        return None
    layers: list[Any] = [*global_branch._modules.values(), *local_branch._modules.values()]
    if len(global_branch._modules) != 5 or len(layers) != 10:
        return None
    g_first, g_norm, g_relu, g_second, softmax, l_first, l_norm, l_relu, l_second, sigmoid = layers
    known = (
        is_linear(g_first)
        and is_linear(g_second)
        and is_conv(l_first, taps=3)
        and is_conv(l_second, taps=1)
        and is_relu(g_relu)
        and is_relu(l_relu)
        and is_plain(softmax, nn.Softmax)
        and softmax.dim in (-1, 1)  # of (N·C, K)
        and is_plain(sigmoid, nn.Sigmoid)
    )
    if not known or g_second.weight.shape[0] != kernel_size:
        return None
    return [g_first, g_norm, g_second, l_first, l_norm, l_second]


def may_be_replaced(x: Tensor) -> bool:
    """Whether any layer that takes x may be: nothing watches all layers, and no transform runs through them."""
    if not is_ordinary(x) or any(GLOBAL_HOOKS):
        return False
    return torch.compiler.is_compiling() or not (transforming() or torch.jit.is_tracing())


def fold_normalized(x: Tensor, norm: Any, activation: Any) -> Normalized | None:
    """A BatchNorm before a ReLU where gradients are wanted or its statistics move; None where both have to be called.

    A SyncBatchNorm is: its sums go over processes. So are all where a program is exported, which is to be trained, too.
    """
    if torch.compiler.is_exporting():
        return None
    if not may_be_replaced(x) or not is_relu(activation) or not is_plain(norm, nn.BatchNorm2d) or not norm.eps > 0:
        return None
    vectors = [norm.weight, norm.bias]
    if norm.training:
        frozen = None
        values = x.shape[0] * x.shape[2] * x.shape[3]
        if values == 1 or not is_batch_norm_in_training(norm, nn.BatchNorm2d):  # no variance, as BatchNorm says itself
            return None
    else:
        frozen = (norm.running_mean, norm.running_var)
        vectors += frozen
    # Without autocast, too, a BatchNorm in float32 takes and gives half precision.
    dtypes = (x.dtype,) if x.dtype == torch.float64 else (x.dtype, torch.float32)
    known = all(
        one is not None and is_ordinary(one) and one.dtype in dtypes and one.device == x.device
        and one.shape == x.shape[1:2] for one in vectors
    )  # fmt: skip
    return Normalized(norm.weight, norm.bias, frozen) if known else None


def fold_activated(x: Tensor, norm: Any, activation: Any, eps: float) -> list[Tensor] | None:
    """Weight, bias, running mean and variance of a BatchNorm before a ReLU, or None where both have to be called.

    `eps` is that of the branches, and x is ordinary: `fold` said so.
    """
    if not is_relu(activation):
        return None
    vectors = fold_norm(norm, BATCH_NORMS_2D)
    if vectors is None or norm.eps != eps or vectors[0].shape != x.shape[1:2]:
        return None
    # Without autocast, too, a BatchNorm in float32 takes and gives half precision.
    known = all(is_ordinary(v) and v.dtype in (x.dtype, torch.float32) and v.device == x.device for v in vectors)
    return vectors if known else None


def is_plain(layer: Any, *kinds: type[nn.Module]) -> bool:
    """Whether a call of `layer` is torch's own forward of exactly one of these classes, and nothing beside it."""
    kind = type(layer)
    return kind in kinds and is_bare(layer, FORWARDS[kind])


def is_bare(layer: Any, forward: Any) -> bool:
    """Whether a call of `layer` is this forward: nothing hooked to it, patched or compiled in its place."""
    own = layer.__dict__
    return (
        getattr(layer.forward, "__func__", None) is forward
        and layer._compiled_call_impl is None
        and "_call_impl" not in own
        and not is_hooked(layer)
    )


def is_hooked(layer: nn.Module) -> bool:
    """Whether a call of `layer` runs hooks of its own."""
    own = layer.__dict__
    return bool(
        own["_forward_pre_hooks"] or own["_forward_hooks"] or own["_backward_pre_hooks"] or own["_backward_hooks"]
    )


def is_linear(layer: Any) -> bool:
    """A Linear without bias."""
    return is_plain(layer, nn.Linear) and layer.bias is None


def is_conv(layer: Any, taps: int) -> bool:
    """A Conv1d over so many frames that keeps their number, dense in its channels, without bias."""
    return (
        is_plain(layer, nn.Conv1d)
        and getattr(layer._conv_forward, "__func__", None) is CONV_FORWARD  # a common place to change the padding
        and layer.bias is None
        and layer.weight.shape[2:] == (taps,)
        and layer.padding == (taps // 2,)
        and layer.padding_mode == "zeros"
        and layer.stride == (1,)
        and layer.dilation == (1,)
        and layer.groups == 1
    )


def is_relu(layer: Any) -> bool:
    """A ReLU, in place or not."""
    return is_plain(layer, nn.ReLU)


def fold_norm(layer: Any, kinds: tuple[type[nn.Module], ...]) -> list[Tensor] | None:
    """Weight, bias, running mean and running variance of a BatchNorm that uses them as they stand."""
    if not is_plain(layer, *kinds) or layer.training:
        return None
    vectors = [layer.weight, layer.bias, layer.running_mean, layer.running_var]
    return None if any(vector is None for vector in vectors) else vectors


def is_batch_norm_in_training(layer: Any, kind: type[nn.Module]) -> bool:
    """A BatchNorm that takes the batch's statistics and, if it tracks them, has all to do so, beside its weight."""
    if not is_plain(layer, kind) or not layer.training or layer.weight is None:
        return False
    if not layer.track_running_stats:
        return True
    device = layer.weight.device
    tracked = (layer.running_mean, layer.running_var, layer.num_batches_tracked)
    return all(one is not None and is_ordinary(one) and one.device == device for one in tracked)


def fits(tensor: Tensor, x: Tensor) -> bool:
    """Whether a layer that holds `tensor` takes x, by itself or under autocast."""
    if not is_ordinary(tensor) or tensor.device != x.device:
        return False
    if tensor.dtype == x.dtype:
        return True
    both = tensor.dtype in HALVES_AND_SINGLE and x.dtype in HALVES_AND_SINGLE
    return both and is_autocasting(x)


def is_ordinary(tensor: Tensor) -> bool:
    """Whether `tensor` holds its own numbers: no subclass that means something else by them, as quantised ones do."""
    if torch.compiler.is_compiling():  # tensors are then stand-ins, of classes of the compiler's own
        return not is_traceable_wrapper_subclass(tensor)
    return type(tensor) in (Tensor, nn.Parameter, nn.Buffer)
