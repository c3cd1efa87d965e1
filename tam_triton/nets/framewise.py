"""A 2D network of any make on the frames of clips."""

from typing import Any

from torch import nn

from tam_triton.checks import check_clip_length, check_count, check_module
from tam_triton.nets.insertion import Place, insert
from tam_triton.nets.video import VideoNetwork, check_probability, new_head
from tam_triton.temporal.tracing import is_traced

# What a module and its backbone hold together; hooks of a call are left to the backbone's.
SHARED = (
    "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_state_dict_hooks", "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip
HEADS = ("fc", "classifier", "head.fc", "head")
_DROPOUTS = ("dropout", "drop")  # torchvision's Inception V3, and heads of timm's


class Framewise(VideoNetwork):
    """Any 2D classifier on each frame of a clip; logits are averaged over the frames.

    The backbone becomes part of the network: layers, weights, buffers and hooks, under their own names, so that the
    keys of the state dict are the backbone's. It is called as it is, with the hooks on itself.

    So it changes with the network: it gets the new head, too, and its dropout. A Dropout directly before the head gets
    the new probability; where there is none, a child `dropout` acts there. Pass a `copy.deepcopy` to keep it.

    Args:
        backbone: takes (N, 3, H, W) and gives (N, classes), with a Linear for its last layer, called `fc`,
            `classifier` (or the last in it), `head.fc` or `head`, or as timm says it is.
        num_segments: frames of a clip, T.
        num_classes: classes of a new head, weight ~ N(0, 0.001²) and bias zero; None keeps the head there is.
        dropout: probability of dropping a feature before the head.

    Raises:
        TypeError: `backbone` is no module, is such a network already or takes no images; `num_segments` or
            `num_classes` is no int, or `dropout` no number.
        ValueError: there is no such head; a number is below 1, or `dropout` outside [0, 1]; the backbone has modules
            for another T.
    """

    backbone: nn.Module
    """What the network was made of; the layers of both are the same ones."""

    def __init__(
        self, backbone: nn.Module, num_segments: int, *, num_classes: int | None = None, dropout: float = 0.5
    ) -> None:
        super().__init__()
        check_module("backbone", backbone)
        if isinstance(backbone, VideoNetwork):
            raise TypeError(f"backbone: got {type(backbone).__name__}, which takes clips, expected a 2D network")
        check_count("num_segments", num_segments)
        check_clip_length(backbone, num_segments)
        check_probability("dropout", dropout)
        name = head_name(backbone)
        first = next((layer for layer in backbone.modules() if isinstance(layer, nn.Conv2d)), None)
        if first is None:
            raise TypeError(f"backbone: got {type(backbone).__name__} without a Conv2d, expected a 2D network")
        head = backbone.get_submodule(name)
        assert isinstance(head, nn.Linear)
        new = head if num_classes is None else new_head(head, num_classes)
        before = _dropout_before(backbone, name)
        if before is None and hasattr(backbone, "dropout"):
            raise ValueError(f"backbone: got {type(backbone).__name__} with a `dropout` that is not before {name}")

        self.num_segments, self._in_channels, self.head_name = num_segments, first.in_channels, name
        self.training = backbone.training
        for shared in SHARED:
            self.__dict__[shared] = vars(backbone)[shared]
        self.__dict__["backbone"] = backbone  # no child: the names of its layers are this network's
        if new is not head:
            backbone.set_submodule(name, new)
            if isinstance(getattr(backbone, "num_classes", None), int):
                backbone.num_classes = num_classes  # type: ignore[assignment]
        if before is not None:
            before.p = float(dropout)
        else:
            if isinstance(getattr(backbone, "drop_rate", None), float):
                backbone.drop_rate = 0.0  # type: ignore[assignment]  # timm's own, which has no layer
            insert(self, lambda channels, num_segments: nn.Dropout(dropout), Place(name, name="dropout"), num_segments)

    @property
    def in_channels(self) -> int:
        """Channels of a frame."""
        return self._in_channels

    def frame_logits(self, x: Any) -> Any:
        """Checked frames (N·T, 3, H, W) → their logits (N·T, classes)."""
        # A graph gets what the backbone and its hooks do: the backbone is no child, and cannot be a node.
        return self.backbone._call_impl(x) if is_traced(x) else self.backbone(x)

    def train(self, mode: bool = True) -> "Framewise":
        """Also the backbone's own flag, which its forward may look at."""
        super().train(mode)
        self.backbone.training = mode
        return self


def head_name(backbone: nn.Module) -> str:
    """The name of a classifier's last layer; raises ValueError if none of the known ones is a Linear."""
    config = getattr(backbone, "default_cfg", None) or {}  # timm's
    declared = config.get("classifier") if isinstance(config, dict) else None
    for name in (*([declared] if isinstance(declared, str) else []), *HEADS):
        try:
            layer = backbone.get_submodule(name)
        except AttributeError:
            continue
        if isinstance(layer, nn.Sequential) and len(layer):
            last, layer = list(layer.named_children())[-1]
            name = f"{name}.{last}"
        if isinstance(layer, nn.Linear):
            return name
    children = [name for name, _ in backbone.named_children()]
    raise ValueError(
        f"backbone: got {type(backbone).__name__} with {children}, expected a Linear for its head, one of {HEADS}"
    )


def _dropout_before(backbone: nn.Module, head: str) -> nn.Dropout | None:
    parent = backbone.get_submodule(head.rpartition(".")[0])
    if isinstance(parent, nn.Sequential):
        layers = list(parent.children())
        before = layers[-2] if len(layers) > 1 else None
        return before if isinstance(before, nn.Dropout) else None
    for name in _DROPOUTS:
        if isinstance(layer := getattr(parent, name, None), nn.Dropout):
            return layer
    return None
