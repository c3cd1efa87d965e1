"""What users do to the layers of a TAM: each change alters what they compute, or where their numbers lie."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from tam_triton import TAM


class ScaledLinear(nn.Linear):
    """As LoRA and quantised layers do: the weight that is multiplied is not the one that is stored."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 1.5 + 0.1


class ScaledConv(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 1.5 + 0.1


class ScaledBatchNorm(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 1.5 + 0.1


def conv(old: nn.Conv1d, kind: type[nn.Conv1d] = nn.Conv1d, taps: int = 3, **options: Any) -> nn.Conv1d:
    """One of the same channels, without bias, that keeps the number of frames unless told otherwise."""
    return kind(old.in_channels, old.out_channels, taps, **{"padding": taps // 2, "bias": False, **options})


class FrozenBatchNorm(nn.Module):
    """Buffers alone, as in detection."""

    def __init__(self, norm: nn.BatchNorm1d) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, getattr(norm, name).detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, mean, variance = self.buffers()
        shape = (1, -1) if x.dim() == 2 else (1, -1, 1)
        scale = weight * (variance + 0.1).rsqrt()
        return x * scale.view(shape) + (bias - mean * scale).view(shape)


class Doubled(nn.Module):
    """A parametrisation."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class OtherBranches(TAM):
    def branches(self, squeezed: Tensor) -> tuple[Tensor, Tensor]:
        importance, kernel = super().branches(squeezed)
        return importance * 0.5, kernel.flip(-1)


class OneFrameLater(nn.Module):
    """A normalisation over frames, where GroupNorm and LayerNorm need their own shapes."""

    def forward(self, x: Tensor) -> Tensor:
        return x.roll(1, -1)


def swap(branch: str, place: int, make: Callable[[Any], nn.Module]) -> Callable[[TAM], None]:
    """Puts another layer in the place of one, made from it; it keeps the weights that fit."""

    def change(module: TAM) -> None:
        old = getattr(module, branch)[place]
        new = make(old)
        shapes = {key: tensor.shape for key, tensor in new.state_dict().items()}
        kept = {key: tensor for key, tensor in old.state_dict().items() if shapes.get(key) == tensor.shape}
        new.load_state_dict(kept, strict=False)
        getattr(module, branch)[place] = new.train(old.training)

    return change


def trained(branch: str, place: int) -> Callable[[TAM], None]:
    def change(module: TAM) -> None:
        getattr(module, branch)[place].train()

    return change


def set_on(branch: str, place: int, **attributes: Any) -> Callable[[TAM], None]:
    def change(module: TAM) -> None:
        for name, value in attributes.items():
            setattr(getattr(module, branch)[place], name, value)

    return change


def hook(branch: str, place: int | None, register: str) -> Callable[[TAM], None]:
    def after(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output * 0.7

    def before(layer: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (inputs[0] + 0.3,)

    def change(module: TAM) -> None:
        part = getattr(module, branch)
        layer = part if place is None else part[place]
        getattr(layer, register)(before if register.endswith("pre_hook") else after)

    return change


def patch_forward(branch: str, place: int) -> Callable[[TAM], None]:
    def change(module: TAM) -> None:
        layer = getattr(module, branch)[place]
        original = layer.forward
        layer.forward = lambda x: original(x) * 0.5 + 0.2

    return change


def patch_padding(module: TAM) -> None:
    """The known way to make a convolution circular without another module."""
    layer: Any = module.L[0]
    layer._conv_forward = lambda x, weight, bias: nn.functional.conv1d(
        nn.functional.pad(x, (1, 1), "circular"), weight, bias
    )


def no_eps(module: TAM) -> None:
    module.G[1].eps = module.L[1].eps = 0.0  # type: ignore[assignment]


def insert_dropout(module: TAM) -> None:
    """Left in training mode with p = 1, it gives zeros always."""
    module.G.insert(3, nn.Dropout(1.0).train())


def append_scale(module: TAM) -> None:
    module.L.append(FrozenBatchNorm(nn.BatchNorm1d(module.channels)))


def parametrised(branch: str, place: int) -> Callable[[TAM], None]:
    def change(module: TAM) -> None:
        parametrize.register_parametrization(getattr(module, branch)[place], "weight", Doubled())

    return change


def with_tool(branch: str, place: int, tool: Callable[..., Any], **options: Any) -> Callable[[TAM], None]:
    def change(module: TAM) -> None:
        tool(getattr(module, branch)[place], **options)

    return change


def subclassed(module: TAM) -> None:
    module.__class__ = OtherBranches


def branches_on_the_object(module: TAM) -> None:
    original, target = module.branches, cast(Any, module)
    target.branches = lambda x: (original(x)[0] * 0.8, original(x)[1])


def quantised(module: TAM) -> None:
    with warnings.catch_warnings(action="ignore"):  # torch would have people use torchao
        torch.ao.quantization.quantize_dynamic(module.G, {nn.Linear}, inplace=True)


def no_parameter(module: TAM) -> None:
    """As functional_call and replicas have them: a tensor that is no Parameter, under the name of one."""
    layer: Any = module.G[0]
    weight = layer.weight.detach().clone() * 1.3
    del layer.weight
    layer.weight = weight


# By name; what a name has before the colon can be changed once.
CHANGES: dict[str, Callable[[TAM], None]] = {
    "G.2: another activation": swap("G", 2, lambda _: nn.GELU()),
    "G.2: subclass of ReLU": swap("G", 2, lambda _: nn.ReLU6()),
    "L.2: another activation": swap("L", 2, lambda _: nn.SiLU()),
    "L.4: another gate": swap("L", 4, lambda _: nn.Hardsigmoid()),
    "G.4: another softmax": swap("G", 4, lambda _: nn.Softmax(0)),
    "G.4: no softmax": swap("G", 4, lambda _: nn.Identity()),
    "G.1: another eps": set_on("G", 1, eps=0.3),
    "L.1: another eps": set_on("L", 1, eps=0.3),
    "G.1: training": trained("G", 1),
    "L.1: training": trained("L", 1),
    "G.1: subclass": swap("G", 1, lambda old: ScaledBatchNorm(old.num_features)),
    "L.1: subclass": swap("L", 1, lambda old: ScaledBatchNorm(old.num_features)),
    "G.0: subclass": swap("G", 0, lambda old: ScaledLinear(old.in_features, old.out_features, bias=False)),
    "G.3: subclass": swap("G", 3, lambda old: ScaledLinear(old.in_features, old.out_features, bias=False)),
    "L.0: subclass": swap("L", 0, lambda old: conv(old, ScaledConv)),
    "G.0: bias": swap("G", 0, lambda old: nn.Linear(old.in_features, old.out_features)),
    "G.3: bias": swap("G", 3, lambda old: nn.Linear(old.in_features, old.out_features)),
    "L.0: bias": swap("L", 0, lambda old: conv(old, bias=True)),
    "L.3: bias": swap("L", 3, lambda old: conv(old, taps=1, bias=True)),
    "L.0: dilation": swap("L", 0, lambda old: conv(old, padding=2, dilation=2)),
    "L.0: circular": swap("L", 0, lambda old: conv(old, padding_mode="circular")),
    "L.0: patched padding": patch_padding,
    "G.1: no eps": no_eps,
    "L.0: groups": swap("L", 0, lambda old: conv(old, groups=2)),
    "L.0: five taps": swap("L", 0, lambda old: conv(old, taps=5)),
    "L.3: three taps": swap("L", 3, lambda old: conv(old, taps=3)),
    "G.0: forward hook": hook("G", 0, "register_forward_hook"),
    "G.1: forward hook": hook("G", 1, "register_forward_hook"),
    "L.2: forward hook": hook("L", 2, "register_forward_hook"),
    "L.4: forward hook": hook("L", 4, "register_forward_hook"),
    "L.3: pre-hook": hook("L", 3, "register_forward_pre_hook"),
    "G: forward hook": hook("G", None, "register_forward_hook"),
    "L: pre-hook": hook("L", None, "register_forward_pre_hook"),
    "G.3: patched forward": patch_forward("G", 3),
    "L.1: patched forward": patch_forward("L", 1),
    "G.length: dropout inserted": insert_dropout,
    "L.length: a layer appended": append_scale,
    "G.0: parametrisation": parametrised("G", 0),
    "L.3: parametrisation": parametrised("L", 3),
    "G.0: weight norm": with_tool("G", 0, parametrizations.weight_norm),
    "L.0: spectral norm": with_tool("L", 0, parametrizations.spectral_norm),
    "G.3: pruned": with_tool("G", 3, prune.l1_unstructured, name="weight", amount=0.5),
    "G.1: LayerNorm": swap("G", 1, lambda old: nn.LayerNorm(old.num_features)),
    "L.1: GroupNorm": swap("L", 1, lambda old: nn.GroupNorm(1, old.num_features)),
    "L.1: Identity": swap("L", 1, lambda _: nn.Identity()),
    "G.1: frozen": swap("G", 1, FrozenBatchNorm),
    "G.1: not affine": swap("G", 1, lambda old: nn.BatchNorm1d(old.num_features, affine=False)),
    "L.1: no statistics": swap("L", 1, lambda old: nn.BatchNorm1d(old.num_features, track_running_stats=False)),
    "L.1: frames rolled": swap("L", 1, lambda _: OneFrameLater()),
    "branches: subclass": subclassed,
    "branches: on the object": branches_on_the_object,
    "G.all: dynamic quantisation": quantised,
    "G.0: no Parameter": no_parameter,
}


def apply(names: list[str], module: TAM) -> TAM:
    """Changes `module` and returns it."""
    for name in names:
        CHANGES[name](module)
    return module


def place(name: str) -> str:
    """The layer that a change is of."""
    return name.split(":")[0]


@contextlib.contextmanager
def global_hook() -> Iterator[None]:
    """Every Linear gives a little more."""

    def after(layer: nn.Module, inputs: Any, output: Any) -> Any:
        return output + 0.2 if isinstance(layer, nn.Linear) else None

    handle = nn.modules.module.register_module_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def patched_class() -> Iterator[None]:
    """Every Linear of the program, as tools that count or cast do it."""
    original = nn.Linear.forward
    with mock.patch.object(nn.Linear, "forward", lambda self, x: original(self, x) * 0.6):
        yield
