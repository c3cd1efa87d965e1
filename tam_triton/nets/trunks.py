"""Where the feature maps of torchvision's networks end, and what their heads do with them."""

from typing import Any

from torch import nn
from torch.nn import functional as F  # noqa: N812 — its usual name

from tam_triton.temporal.folding import is_hooked

LAST = {
    "ResNet": "layer4",
    "MobileNetV2": "features",
    "MobileNetV3": "features",
    "EfficientNet": "features",
    "ConvNeXt": "features",
    "ShuffleNetV2": "conv5",
    "RegNet": "trunk_output",
    "Inception3": "Mixed_7c",
}
"""The child that gives the last maps, by torchvision's classes."""
UNPADDED = "Mixed_7c"
"""Its maps are smaller than strides say."""


def last_child(backbone: nn.Module) -> str | None:
    """The child that gives the last maps; None for a network that may do other things with its children."""
    kind = type(backbone)
    changed = {"forward", "_forward_impl"} & vars(backbone).keys()
    known = kind.__module__.startswith("torchvision.models.") and not changed and not is_hooked(backbone)
    return LAST.get(kind.__name__) if known else None


def has_trunk(backbone: nn.Module) -> bool:
    """Whether a network says itself what its trunk and its head are, as timm's do."""
    own = all(callable(getattr(backbone, name, None)) for name in ("forward_features", "forward_head"))
    return own and "forward" not in vars(backbone) and not is_hooked(backbone)


def run_trunk(backbone: nn.Module, x: Any, last: str) -> Any:
    """Images to the last maps."""
    if type(backbone).__name__ == "Inception3":
        x = backbone._transform_input(x)  # type: ignore[operator]
    for name, child in backbone.named_children():
        x = child(x)
        if name == last:
            break
    return x


def run_head(backbone: nn.Module, x: Any, head: str, pre_logits: bool) -> Any:
    """The last maps to logits, or to what the layer called `head` is given."""
    kind = type(backbone).__name__
    if isinstance(pool := getattr(backbone, "avgpool", None), nn.Module):
        x = pool(x)
    else:
        x = x.mean([2, 3]) if kind == "ShuffleNetV2" else F.adaptive_avg_pool2d(x, (1, 1))
    layers = head_layers(backbone, head)
    if kind == "Inception3":
        x = backbone.dropout(x)  # type: ignore[operator]
    if not any(isinstance(layer, nn.Flatten) for layer in layers):
        x = x.flatten(1)
    for layer in layers[:-1] if pre_logits else layers:
        x = layer(x)
    return x


def features_before(backbone: nn.Module, head: str) -> int:
    """Channels of the last maps."""
    if has_trunk(backbone) and isinstance(own := getattr(backbone, "num_features", None), int):
        return own
    layers = head_layers(backbone, head) if last_child(backbone) else [backbone.get_submodule(head)]
    return next(layer.in_features for layer in layers if isinstance(layer, nn.Linear))


def head_layers(backbone: nn.Module, head: str) -> list[nn.Module]:
    """The Sequential whose last layer is called `head`, as a list, or that layer alone."""
    around = backbone.get_submodule(head.rpartition(".")[0])
    return list(around.children()) if "." in head else [backbone.get_submodule(head)]
