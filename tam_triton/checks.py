"""What is refused, before anything is computed. A message names the argument, what came and what was expected.

TypeError is for what can never be such an argument (another kind of object, dtype or memory layout), ValueError for
values, shapes and devices that do not fit. A bool is not taken for an int, nor is any number that merely equals one.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
ADDRESSABLE_BYTES = 2**47  # of a process
BATCH_NORM = ("weight", "bias", "running mean", "running variance")


def fails(condition: bool | torch.SymBool) -> bool:
    """Whether a condition on sizes does not hold; what a compiler cannot know yet, its program asserts as it runs."""
    if not torch.compiler.is_compiling():
        return not condition
    from torch.fx.experimental.symbolic_shapes import guard_or_true  # which imports sympy

    if not guard_or_true(condition):
        return True
    torch._check(condition)
    return False


def holds_clips(x: Tensor, num_segments: int) -> bool:
    """Whether the frames of x are whole clips, one at least; that tells a compiler that N is not 0."""
    return not fails(x.shape[0] % num_segments == 0) and not fails(x.shape[0] >= num_segments)


def check_impl(impl: str | None) -> None:
    """Raises TypeError or ValueError unless `impl` is one of the three."""
    if impl is not None and not isinstance(impl, str):
        raise TypeError(f'impl: got {type(impl).__name__}, expected "triton", "torch" or None')
    if impl not in ("triton", "torch", None):
        raise ValueError(f'impl: got {impl!r}, expected "triton", "torch" or None')


def check_int(name: str, value: int) -> None:
    """Raises TypeError unless `value` is an int, or one that a compiler does not know yet."""
    if isinstance(value, bool) or not isinstance(value, int | torch.SymInt):
        raise TypeError(f"{name}: got {type(value).__name__}, expected an int")


def check_count(name: str, value: int) -> None:
    """Raises TypeError or ValueError unless `value` is an int above 0."""
    check_int(name, value)
    if value < 1:
        raise ValueError(f"{name}: got {value}, expected at least 1")


def check_taps(name: str, value: int) -> None:
    """Raises TypeError or ValueError unless `value` is an odd number of taps."""
    check_int(name, value)
    if value < 1 or value % 2 == 0:
        raise ValueError(f"{name}: got {value}, expected an odd number above 0")


def check_parameter(name: str, value: int, elements: int) -> None:
    """Raises ValueError if `value` makes a parameter of so many elements that no memory can hold it."""
    if elements * torch.get_default_dtype().itemsize > ADDRESSABLE_BYTES:
        raise ValueError(
            f"{name}: got {value}, which makes a parameter of {elements} elements, "
            f"expected at most {ADDRESSABLE_BYTES} bytes"
        )


def check_eps(eps: float) -> None:
    """Raises TypeError or ValueError unless `eps` is a finite number above 0."""
    if isinstance(eps, bool) or not isinstance(eps, int | float | torch.SymFloat):
        raise TypeError(f"eps: got {type(eps).__name__}, expected a float")
    if not 0 < eps < math.inf:
        raise ValueError(f"eps: got {eps}, expected a finite number above 0")


def check_dense(name: str, value: Tensor) -> None:
    """Raises TypeError unless `value` is a Tensor with strides: neither sparse nor nested."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a Tensor")
    if value.is_nested:
        raise TypeError(f"{name}: got a nested tensor, expected a dense (strided) tensor")
    if value.layout != torch.strided:
        raise TypeError(f"{name}: got layout {value.layout}, expected a dense (strided) tensor")


def check_tensor(name: str, value: Tensor) -> None:
    """Raises TypeError unless `value` is a dense Tensor in one of the four dtypes."""
    check_dense(name, value)
    if value.dtype not in FLOATS:
        raise TypeError(f"{name}: got dtype {value.dtype}, expected one of {', '.join(map(str, FLOATS))}")


def check_addressable(x: Tensor) -> None:
    """Raises ValueError if x claims more bytes than there are addresses, as only an expanded tensor can."""
    # To a compiler this would be an upper bound of the batch, which an exported program would have to keep.
    if not torch.compiler.is_compiling() and x.numel() * x.element_size() > ADDRESSABLE_BYTES:
        raise ValueError(f"x: got shape {tuple(x.shape)} in {x.dtype}, expected at most {ADDRESSABLE_BYTES} bytes")


def check_features(x: Tensor) -> None:
    """Raises TypeError or ValueError unless x is `(N·T, C, H, W)`, float, dense, not empty and not beyond memory."""
    check_tensor("x", x)
    if x.dim() != 4:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected 4 dimensions (N·T, C, H, W)")
    if any(fails(size > 0) for size in x.shape):
        raise ValueError(f"x: got empty shape {tuple(x.shape)}, expected every dimension of (N·T, C, H, W) above 0")
    check_addressable(x)


def check_segments(x: Tensor, num_segments: int) -> None:
    """Raises TypeError or ValueError unless T divides the frames of x."""
    check_int("num_segments", num_segments)
    if num_segments < 1 or not holds_clips(x, num_segments):
        raise ValueError(f"num_segments: got {num_segments}, expected a divisor of x's N·T = {x.shape[0]}")


def check_excitation(excitation: str) -> None:
    """Raises TypeError or ValueError unless `excitation` is one of the two."""
    if not isinstance(excitation, str):
        raise TypeError(f'excitation: got {type(excitation).__name__}, expected "before" or "after"')
    if excitation not in ("before", "after"):
        raise ValueError(f'excitation: got {excitation!r}, expected "before" or "after" the aggregation')


def check_weights(x: Tensor, importance: Tensor | None, kernel: Tensor, num_segments: int | None = None) -> int:
    """T; raises TypeError or ValueError unless V, if any, and Θ fit one another, T and x, which has been checked."""
    check_tensor("kernel", kernel)
    if kernel.dim() not in (2, 3) or any(fails(size > 0) for size in kernel.shape):
        raise ValueError(f"kernel: got shape {tuple(kernel.shape)}, expected dimensions above 0: (N, C, K) or (C, K)")
    if importance is None:
        if num_segments is None:
            raise ValueError("num_segments: got None, expected T, the frames of a clip, where importance is None")
        check_segments(x, num_segments)
        T = num_segments
    else:
        T = check_importance(x, importance, num_segments)
    rows = (x.shape[0] // T, x.shape[1])
    weights = [("kernel", kernel)] if importance is None else [("importance", importance), ("kernel", kernel)]
    for name, weight in weights:
        names, expected = ("C", rows[1:]) if weight.dim() == 2 else ("(N, C)", rows)
        if any(fails(size == row) for size, row in zip(weight.shape, expected, strict=False)):
            got = tuple(weight.shape[:-1]) if weight.dim() == 3 else weight.shape[0]
            raise ValueError(
                f"{name}: got {names} = {got}, expected {expected if weight.dim() == 3 else rows[1]} for x of shape "
                f"{tuple(x.shape)} with T = {T}"
            )
        if weight.device != x.device:
            raise ValueError(f"{name}: got device {weight.device}, expected x's {x.device}")
        if (x.dtype == torch.float64) != (weight.dtype == torch.float64):
            wanted = "float64" if x.dtype == torch.float64 else "float32, float16 or bfloat16"
            raise TypeError(f"{name}: got dtype {weight.dtype}, expected {wanted} for x in {x.dtype}")
    if kernel.shape[-1] % 2 == 0:
        raise ValueError(f"kernel: got K = {kernel.shape[-1]} taps, expected an odd number")
    return T


def check_importance(x: Tensor, importance: Tensor, num_segments: int | None) -> int:
    """T, that of V; raises TypeError or ValueError unless it divides the frames of x and is what was told."""
    check_tensor("importance", importance)
    if importance.dim() != 3 or any(fails(size > 0) for size in importance.shape):
        raise ValueError(f"importance: got shape {tuple(importance.shape)}, expected 3 dimensions above 0: (N, C, T)")
    T = importance.shape[-1]
    if not holds_clips(x, T):
        raise ValueError(
            f"importance: got T = {T} frames in shape {tuple(importance.shape)}, "
            f"expected a divisor of x's N·T = {x.shape[0]}"
        )
    if num_segments is not None and fails(num_segments == T):
        raise ValueError(f"importance: got T = {T}, expected num_segments={num_segments}")
    return T


def check_branch_results(
    x: Tensor, results: Any, num_segments: int, kernel_size: int, excited: bool
) -> tuple[Tensor | None, Tensor]:
    """What a branch function returned, as V (None unless `excited`) and Θ; raises TypeError or ValueError otherwise."""
    if not isinstance(results, tuple | list):
        raise TypeError(f"branches: got {type(results).__name__} from the call, expected a pair (importance, kernel)")
    if len(results) != 2:
        raise ValueError(f"branches: got {len(results)} results from the call, expected a pair (importance, kernel)")
    importance, kernel = results
    if not excited and importance is not None:
        raise ValueError(f"importance: got {type(importance).__name__}, expected None, as excitation=None says")
    if excited and importance is None:
        check_tensor("importance", importance)  # type: ignore[arg-type]
    check_weights(x, importance, kernel, num_segments)
    if kernel.dim() != 3:
        raise ValueError(f"kernel: got shape {tuple(kernel.shape)}, expected (N, C, K), a kernel for each clip")
    if kernel.shape[-1] != kernel_size:
        raise ValueError(f"kernel: got {kernel.shape[-1]} taps, expected kernel_size={kernel_size}")
    return importance, kernel


def check_statistics(branches: object) -> None:
    """Raises NotImplementedError if torch.func is to transform BatchNorms that update statistics it does not know."""
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        return
    function = branches.func if isinstance(branches, partial) else branches
    module = getattr(function, "__self__", function)
    for layer in module.modules() if isinstance(module, nn.Module) else ():
        counter = getattr(layer, "num_batches_tracked", None) if layer.training else None
        if counter is not None and not torch._C._functorch.is_functorch_wrapped_tensor(counter):
            raise NotImplementedError(IN_PLACE)


IN_PLACE = (
    "tam_triton: torch.func has no transform of a BatchNorm in training, which updates its statistics in place; "
    "call torch.func.replace_all_batch_norm_modules_(module) before, or give torch.func.functional_call the buffers as "
    "arguments of what is transformed"
)


def transforming() -> bool:
    """Whether torch.func transforms what is called now, or forward-mode derivatives are taken."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def is_transformed(tensor: Tensor) -> bool:
    """Whether the tensor is inside a transform of torch.func, or has a tangent."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor) or forward_ad.unpack_dual(tensor).tangent is not None


def check_folded(
    x: Tensor,
    global_branch: Sequence[Tensor],
    local_branch: Sequence[Tensor],
    norm: Sequence[Tensor] | None,
    num_segments: int,
) -> None:
    """Raises TypeError or ValueError unless the branches and the BatchNorm are those of a TAM on x, without gradients.

    A kernel believes these shapes: one that was too small would be read beyond its end.
    """
    if x.dtype == torch.float64:
        raise TypeError("x: got dtype torch.float64, expected float32, float16 or bfloat16, as branches are folded in")
    width, taps = leading("global_branch", global_branch, 0, -1)
    (hidden,) = leading("local_branch", local_branch, 0)
    check_taps("global_branch[5].shape[0]", taps)
    channels = x.shape[1]
    expected: dict[str, tuple[Sequence[Tensor], list[tuple[int, ...]]]] = {
        "global_branch": (global_branch, [(width, num_segments), *[(width,)] * 4, (taps, width)]),
        "local_branch": (local_branch, [(hidden, channels, 3), *[(hidden,)] * 4, (channels, hidden, 1)]),
    }
    if norm is not None:
        check_length("norm", norm, len(BATCH_NORM))
        expected["norm"] = (norm, [(channels,)] * 4)
    recording = torch.is_grad_enabled()
    transformed = not torch.compiler.is_compiling() and transforming()
    if recording and x.requires_grad:
        raise ValueError(NO_GRADIENT.format("x"))
    if transformed and is_transformed(x):
        raise NotImplementedError(NO_TRANSFORM.format("x"))
    for branch, (tensors, shapes) in expected.items():
        for i, (tensor, shape) in enumerate(zip(tensors, shapes, strict=True)):
            if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.dtype not in FLOATS:
                check_tensor(f"{branch}[{i}]", tensor)
            if tensor.shape != shape:
                raise ValueError(
                    f"{branch}[{i}]: got shape {tuple(tensor.shape)}, expected {shape} for x of shape {tuple(x.shape)} "
                    f"with T = {num_segments}"
                )
            if tensor.device != x.device:
                raise ValueError(f"{branch}[{i}]: got device {tensor.device}, expected x's {x.device}")
            if recording and tensor.requires_grad:
                raise ValueError(NO_GRADIENT.format(f"{branch}[{i}]"))
            if transformed and is_transformed(tensor):
                raise NotImplementedError(NO_TRANSFORM.format(f"{branch}[{i}]"))


NO_GRADIENT = "{}: got requires_grad=True, expected none, or torch.no_grad(): a folded BatchNorm has no gradient"
NO_TRANSFORM = (
    "tam_triton: {} is inside a transform of torch.func or has a tangent, and a folded BatchNorm has neither; "
    "use TAM's layers: a TAM where gradients are enabled"
)


def leading(name: str, tensors: Sequence[Tensor], *indices: int) -> list[int]:
    """The first dimension of some tensors of a branch, each above 0."""
    check_length(name, tensors, 6)
    sizes = []
    for i in indices:
        place = f"{name}[{i % len(tensors)}]"
        check_tensor(place, tensors[i])
        if tensors[i].dim() < 2 or 0 in tensors[i].shape:
            raise ValueError(
                f"{place}: got shape {tuple(tensors[i].shape)}, expected a weight, every dimension above 0"
            )
        sizes.append(tensors[i].shape[0])
    return sizes


def check_length(name: str, tensors: Sequence[Tensor], length: int) -> None:
    """Raises TypeError or ValueError unless there is a list or tuple of so many."""
    if not isinstance(tensors, list | tuple):
        raise TypeError(f"{name}: got {type(tensors).__name__}, expected a sequence of {length} tensors")
    if len(tensors) != length:
        raise ValueError(f"{name}: got {len(tensors)} tensors, expected {length}")


def check_module(name: str, module: nn.Module) -> None:
    """Raises TypeError unless `module` is one."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"{name}: got {type(module).__name__}, expected a Module")


def check_clip_length(network: nn.Module, num_segments: int, layer: str = "") -> None:
    """Raises ValueError if the modules around a layer, the nearest that tell a T, are for clips of another length.

    One that contains the layer tells it for all inside.
    """
    lengths: dict[int, str] = {}
    while not lengths:
        for name, module in network.get_submodule(layer).named_modules(prefix=layer):
            if isinstance(length := getattr(module, "num_segments", None), int):
                lengths.setdefault(length, f"{type(module).__name__} {name}".rstrip())
                if name == layer:
                    break
        if not layer:
            break
        layer = layer.rpartition(".")[0]
    if lengths and num_segments not in lengths:
        length, where = next(iter(lengths.items()))
        raise ValueError(f"num_segments: got {num_segments}, expected {length}, as {where} has it")


def check_device(x: Tensor, module: nn.Module) -> None:
    """Raises ValueError if x is on another device than all of the module's parameters."""
    if x.device == next(module.parameters(), x).device:
        return
    devices = {weight.device for weight in module.parameters()}
    # Offloaded parameters wait on meta until their layers run.
    if len(devices) == 1 and x.device not in devices and "meta" not in map(str, devices) and not _is_hooked(module):
        raise ValueError(f"x: got device {x.device}, expected the module's {devices.pop()}")


def check_dtype(x: Tensor, module: nn.Module) -> None:
    """Raises TypeError if x has another dtype than all of the module's parameters, and no autocast unites them."""
    if x.dtype == next(module.parameters(), x).dtype:
        return
    dtypes = {weight.dtype for weight in module.parameters() if weight.dtype in FLOATS}  # quantised ones say nothing
    if len(dtypes) != 1 or x.dtype in dtypes or _is_hooked(module):
        return
    wide = torch.float64 in (x.dtype, *dtypes)  # autocast leaves it alone
    if wide or not is_autocasting(x):
        way_out = "" if wide else " or autocast"
        raise TypeError(f"x: got dtype {x.dtype}, expected the module's {dtypes.pop()}{way_out}")


def is_autocasting(x: Tensor) -> bool:
    """Whether autocast is on for x's device; never on meta, of which torch raises if it is asked."""
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)


def _is_hooked(module: nn.Module) -> bool:
    """Whether a layer may fetch or cast its parameters or its input when it runs: sharded and offloaded ones do.

    Hooks under a name are this library's, by which temporal modules act, and do neither.
    """
    return any(
        "forward" in vars(layer) or any(not isinstance(key, str) for key in layer._forward_pre_hooks)
        for layer in module.modules()
    )
