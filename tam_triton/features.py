"""What a network makes of clips on the way to its answer: what the last layer is given, and maps of layers before."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from torch import Tensor, nn


class Features(NamedTuple):
    """Of N clips of T frames."""

    features: Tensor
    """(N, T, D), what the last layer is given; (N, 1, D) of a network that averages over time before, as SlowFast."""
    maps: dict[str, Tensor]
    """(N, T', C, H, W) of each layer that was asked for; T' frames there, T but for SlowFast's slow pathway."""

    def of_clip(self, number: int, num_segments: int | None) -> Tensor:
        """Of one clip the mean over its frames (D,) or, where `num_segments` says T, those of each frame (T, D).

        Raises ValueError where there are not so many.
        """
        features = self.features[number]
        if num_segments is None:
            return features.mean(0)
        if len(features) != num_segments:
            raise ValueError("per_segment: got True, but this network averages over time before its last layer")
        return features


def record_features(
    network: nn.Module, call: Callable[[], object], num_clips: int, layers: Sequence[str] = ()
) -> Features:
    """What `network` computes while `call` gives it `num_clips` clips.

    Args:
        network: its last layer is the module that `network.head_name` names, else `fc`.
        call: calls it once.
        num_clips: N.
        layers: names of modules whose output is feature maps (N·T', C, H, W).

    Raises:
        ValueError: `layers` has a name of no module, or of one that gives no feature maps or is not called.
    """
    given: list[Tensor] = []
    head = network.get_submodule(str(getattr(network, "head_name", "fc")))
    hook = head.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    try:
        _, outputs = record_outputs(network, call, layers)
    finally:
        hook.remove()
    features = given[0].flatten(0, -2)
    maps = {name: _as_maps(name, outputs.get(name), num_clips) for name in layers}
    return Features(features.unflatten(0, (num_clips, -1)), maps)


def record_outputs(network: nn.Module, call: Callable[[], Any], layers: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    """What `call` returns, and what it has the modules called `layers` give, by name: copies, as later layers may work
    in place on what a layer gives.

    Raises ValueError where there is no module of a name.
    """
    outputs: dict[str, Any] = {}
    with ExitStack() as hooks:
        for name in layers:
            hooks.callback(_layer(network, name).register_forward_hook(_keeper(outputs, name)).remove)
        return call(), outputs


def _layer(network: nn.Module, name: str) -> nn.Module:
    try:
        if name:
            return network.get_submodule(name)
    except AttributeError:
        pass
    children = ", ".join(child for child, _ in network.named_children())
    raise ValueError(f"layers: got {name!r}, expected modules of the network: {children}, or modules in them")


def _keeper(outputs: dict[str, Any], name: str) -> Callable[[nn.Module, Any, Any], None]:
    def keep(_: nn.Module, inputs: Any, output: Any) -> None:
        outputs[name] = output.clone() if isinstance(output, Tensor) else output

    return keep


def _as_maps(name: str, output: Any, num_clips: int) -> Tensor:
    if isinstance(output, Tensor) and output.ndim == 4 and len(output) % num_clips == 0:
        return output.unflatten(0, (num_clips, -1))
    kind = tuple(output.shape) if isinstance(output, Tensor) else "nothing" if output is None else type(output).__name__
    raise ValueError(f"layers: {name!r} gives {kind}, expected feature maps (N·T, C, H, W)")
