"""Temporal modules put into a network that is already there, without a new name for anything it has.

A module that acts before or after a layer becomes a child of the block which that layer belongs to, and is run by a
hook of the layer: `layer1.0.tam` runs before `layer1.0.conv2`, whose own name stays.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from torch import Tensor, nn

from tam_triton.checks import check_clip_length, check_count, check_module
from tam_triton.temporal import MODULES
from tam_triton.temporal.folding import is_hooked
from tam_triton.temporal.tracing import is_traced

POSITIONS = ("before", "after", "instead")
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # they would run a further child, or are never called
_SHOWN = 8
PREFIX = "tam_triton."
"""Of the keys of hooks."""

Network = TypeVar("Network", bound=nn.Module)
Factory = Callable[..., nn.Module]


@dataclass(frozen=True)
class Place:
    """Where a temporal module goes.

    Attributes:
        pattern: of the names of the layers, part by part as file names are matched: "layer*.*.conv2".
        position: "before" or "after" the layer, or "instead" of it.
        name: the temporal module's in its block; no matter if "instead".
        channels: C there; None reads it from the layer: a convolution's, a Linear's or a BatchNorm's own, a block's
            first or last of these.
    """

    pattern: str
    position: str = "before"
    name: str = "tam"
    channels: int | None = None

    def __post_init__(self) -> None:
        for field in ("pattern", "position", "name"):
            if not isinstance(getattr(self, field), str):
                raise TypeError(f"{field}: got {type(getattr(self, field)).__name__}, expected a str")
        if self.position not in POSITIONS:
            raise ValueError(f"position: got {self.position!r}, expected one of {POSITIONS}")
        if not self.name or "." in self.name:
            raise ValueError(f"name: got {self.name!r}, expected one name without a dot")
        if self.channels is not None:
            check_count("channels", self.channels)


def insert(
    network: Network,
    module: str | Factory,
    place: Place | Sequence[Place],
    num_segments: int,
    **options: Any,
) -> Network:
    """Put a temporal module at every layer that a place names; nothing is changed if an error is raised.

    The weights there are stay as they are, under their names. A new module is on the device, in the dtype and in the
    mode (training or evaluation) of its layer.

    A hook runs the module whenever its layer is called. What replaces the layer or the module later (as
    `nn.SyncBatchNorm.convert_sync_batchnorm` does with BatchNorms) loses it, and the next call says so.

    Args:
        network: takes frames in the batch, `(N·T, C, H, W)`.
        module: a name in `tam_triton.temporal.MODULES`, or what makes the module: called with
            `(channels, num_segments, **options)`, and for "instead" with `(layer, num_segments, **options)`.
        place: where, or several such.
        num_segments: frames of a clip, T; that of the network, or of the pathway, where it has one.
        options: further arguments of the module.

    Returns:
        `network` itself.

    Raises:
        TypeError: an argument is of another kind, or the module refuses its own.
        ValueError: an unknown name; a place that matches nothing, matches what another does, holds such a module
            already or does not tell its channels; a layer with hooks that would be replaced; another T than that of
            modules around it; or the module refuses its arguments.
    """
    check_module("network", network)
    check_count("num_segments", num_segments)
    factory = _factory(module)
    places = [place] if isinstance(place, Place) else list(place)
    if not places or not all(isinstance(each, Place) for each in places):
        raise TypeError(f"place: got {place!r}, expected a Place or a sequence of them")
    changes = [_Change(network, name, each) for each in places for name in _matches(network, each)]
    order = {name: i for i, (name, _) in enumerate(network.named_modules())}
    changes.sort(key=lambda change: order[change.target_name])  # so that a seed gives the same modules
    _check_different(changes)
    for change in changes:
        check_clip_length(network, num_segments, change.target_name)
    new = [change.build(factory, num_segments, options) for change in changes]
    for change, made in zip(changes, new, strict=True):
        change.apply(made)
    return network


def move_hooks(layer: nn.Module, new: nn.Module) -> None:
    """Let the temporal modules and Dropouts that act before or after `layer` act at `new`, which takes its place."""
    for name in ("_forward_pre_hooks", "_forward_hooks"):
        ours = {key: hook for key, hook in vars(layer)[name].items() if str(key).startswith(PREFIX)}
        vars(new)[name].update(ours)
    if "__module__" in vars(layer):
        vars(new)["__module__"] = vars(layer)["__module__"]


def _factory(module: str | Factory) -> Factory:
    if isinstance(module, str):
        if module not in MODULES:
            raise ValueError(f"module: got {module!r}, expected one of {tuple(MODULES)}")
        return MODULES[module]
    if isinstance(module, nn.Module) or not callable(module):
        raise TypeError(
            f"module: got {type(module).__name__}, expected a name or what makes a module for every place, such as TAM"
        )
    return module


def _matches(network: nn.Module, place: Place) -> list[str]:
    """The names of the layers that a pattern means."""
    parts = place.pattern.split(".")
    names = [name for name, _ in network.named_modules() if name]
    found = [name for name in names if _fits(name.split("."), parts)]
    if not found:
        raise ValueError(
            f"place: got the pattern {place.pattern!r}, which fits no layer of {type(network).__name__}; "
            f"expected one for names such as {_some(names)}"
        )
    return found


def _fits(names: list[str], patterns: list[str]) -> bool:
    return len(names) == len(patterns) and all(map(fnmatchcase, names, patterns))


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN])) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


class _Change:
    """One layer and what will happen to it."""

    def __init__(self, network: nn.Module, target_name: str, place: Place) -> None:
        self.place, self.target_name = place, target_name
        self.target = network.get_submodule(target_name)
        parent, _, self.child = target_name.rpartition(".")
        if place.position == "instead":
            self.owner, self.path, self.name = network.get_submodule(parent), self.child, self.child
            self.owner_name = parent
            if is_hooked(self.target):
                raise ValueError(f"place: got {target_name}, which has hooks that a layer in its place would lose")
            return
        self.name = place.name
        self.owner_name = _owner(network, target_name)
        self.owner = network.get_submodule(self.owner_name)
        self.path = target_name[len(self.owner_name) :].lstrip(".")
        if hasattr(self.owner, self.name):
            where = self.owner_name or type(network).__name__
            raise ValueError(f"place: got {target_name}, but {where} already has a {self.name!r}")

    def build(self, factory: Factory, num_segments: int, options: dict[str, Any]) -> nn.Module:
        instead = self.place.position == "instead"
        argument = self.target if instead else self._channels()
        try:
            made = factory(argument, num_segments, **options)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{self.place.position} {self.target_name}: {error}") from error
        if not isinstance(made, nn.Module):
            raise TypeError(f"module: got {type(made).__name__} from the call, expected a Module")
        if any(made is there for there in self.owner.modules()):
            raise ValueError("module: got one that is in the network already, expected a new one for every place")
        check_clip_length(made, num_segments)
        like = next(self.target.parameters(), next(self.owner.parameters(), None))
        if like is not None:
            made.to(device=like.device, dtype=like.dtype if like.is_floating_point() else None)
        return made.train(self.target.training)

    def apply(self, made: nn.Module) -> None:
        if self.place.position == "instead":
            setattr(self.owner, self.child, made)
            return
        self.owner.add_module(self.name, made)
        before = self.place.position == "before"
        acts = f"{self.place.position} {self.path or 'the block'}"
        vars(made)["extra_repr"] = _Shown(made, acts)
        key = f"{PREFIX}{self.name}"
        if before:
            _keep(self.target._forward_pre_hooks, self.target.register_forward_pre_hook(_Before(made)).id, key)
        else:
            _keep(self.target._forward_hooks, self.target.register_forward_hook(_After(made)).id, key)
        if self.path:
            check = _Check(self.name, self.path, key, before)
            _keep(self.owner._forward_pre_hooks, self.owner.register_forward_pre_hook(check).id, f"{key}.check")
            # torch.fx then looks into the layer, and finds the module; a layer of torch's own it would not open.
            vars(self.target)["__module__"] = __name__

    def _channels(self) -> int:
        if self.place.channels is not None:
            return self.place.channels
        before = self.place.position == "before"
        layers = list(self.target.modules())
        names = ("in_channels", "in_features") if before else ("out_channels", "out_features")
        for layer in layers if before else reversed(layers):
            for name in (*names, "num_features"):
                if isinstance(value := getattr(layer, name, None), int) and not isinstance(layer, _CONTAINERS):
                    return value
        raise ValueError(
            f"place: got {self.target_name} ({type(self.target).__name__}), which does not tell its channels; "
            "expected a convolution, a Linear, a BatchNorm, a block of them, or a Place with channels"
        )


def _owner(network: nn.Module, target: str) -> str:
    """The name of the block that gets the new child: the layer itself if it is a block, or else the block around it."""
    module = network.get_submodule(target)
    if next(module.children(), None) is not None and not isinstance(module, _CONTAINERS):
        return target
    while target:
        target = target.rpartition(".")[0]
        if not isinstance(network.get_submodule(target), _CONTAINERS):
            return target
    raise ValueError(f"network: got {type(network).__name__}, which runs every child; expected a network with blocks")


def _check_different(changes: list[_Change]) -> None:
    seen: dict[tuple[int, str], str] = {}
    for change in changes:
        key = (id(change.owner), change.name)
        if key in seen:
            raise ValueError(
                f"place: got {seen[key]} and {change.target_name}, whose modules would both be "
                f"{change.owner_name}.{change.name}; expected one there, or places of different names"
            )
        seen[key] = change.target_name


def _keep(hooks: dict[Any, Any], number: int, key: str) -> None:
    """Under a name of its own: numbers start anew in a new process, and a hook of a loaded network would be lost."""
    hooks[key] = hooks.pop(number)


class _Before:
    """The hook that runs a module on what a layer is called with."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.module(args[0]), *args[1:])


class _After:
    """The hook that runs a module on what a layer gives."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], result: Tensor) -> Tensor:
        return self.module(result)


class _Check:
    """The hook of a block that sees to it that its temporal module still acts."""

    def __init__(self, name: str, path: str, key: str, before: bool) -> None:
        self.name, self.path, self.key, self.before = name, path, key, before

    def __call__(self, block: nn.Module, args: tuple[Any, ...]) -> None:
        layer: Any = block
        for part in self.path.split("."):
            layer = getattr(layer, part)
        hooks: dict[Any, Any] = layer._forward_pre_hooks if self.before else layer._forward_hooks
        if self.key not in hooks or hooks[self.key].module is not getattr(block, self.name, None):
            self._look_further(block, layer)
        if args and is_traced(args[0]) and isinstance(layer, nn.modules.batchnorm._NormBase):
            raise NotImplementedError(
                f"torch.fx: {self.name} acts {'before' if self.before else 'after'} {self.path}, a "
                f"{type(layer).__name__} that cannot be traced; name {type(block).__name__} a leaf of the tracer"
            )

    def _look_further(self, block: nn.Module, layer: nn.Module) -> None:
        """A layer that was wrapped, as for recomputation, is inside."""
        for inner in layer.modules():
            hooks: dict[Any, Any] = inner._forward_pre_hooks if self.before else inner._forward_hooks
            hook = hooks.get(self.key)
            if hook is not None and hook.module is getattr(block, self.name, None):
                return
        if getattr(block, "_is_replica", False):
            raise RuntimeError(
                f"{self.name}: acts by a hook, which nn.DataParallel does not replicate; "
                "use nn.parallel.DistributedDataParallel"
            )
        raise RuntimeError(
            f"{self.name}: no longer acts {'before' if self.before else 'after'} {self.path}: one of the two was "
            "replaced, as convert_sync_batchnorm does with BatchNorms; do that before the insertion"
        )


class _Shown:
    """A module's `extra_repr` with where it acts."""

    def __init__(self, module: nn.Module, acts: str) -> None:
        self.module, self.acts = module, acts

    def __call__(self) -> str:
        own = type(self.module).extra_repr(self.module)
        return f"{own}, {self.acts}" if own else self.acts
