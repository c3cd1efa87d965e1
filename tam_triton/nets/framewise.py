"""A 2D network of any make on the frames of clips."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from tam_triton.checks import check_clip_length, check_count, check_module
from tam_triton.nets.insertion import Place, insert
from tam_triton.nets.order import running_order
from tam_triton.nets.protocol import new_head, pool_size
from tam_triton.nets.trunks import LAST, UNPADDED, features_before, has_trunk, last_child, run_head, run_trunk
from tam_triton.nets.video import VideoNetwork, check_probability
from tam_triton.temporal.tracing import is_traced

# What a module and its backbone hold together; hooks of a call are left to the backbone's.
SHARED = (
    "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_state_dict_hooks", "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip
HEADS = ("fc", "classifier", "head.fc", "head")
FRAMES = (
    "input_size", "min_input_size", "fixed_input_size", "pool_size", "crop_pct", "crop_mode", "interpolation", "mean",
    "std", "first_conv",
)  # fmt: skip
"""What timm's backbones say of how images are made for them, and where they enter."""
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
        ValueError: there is no such head, or there are several where `num_classes` is told; a number is below 1, or
            `dropout` outside [0, 1]; the backbone has modules for another T.
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
        new = head
        if num_classes is not None:
            check_one_head(backbone)
            new = new_head(head.in_features, num_classes, head.weight).train(head.training)
        before = _dropout_before(backbone, name)
        if before is None and hasattr(backbone, "dropout"):
            raise ValueError(f"backbone: got {type(backbone).__name__} with a `dropout` that is not before {name}")

        self.num_segments, self._in_channels, self.head_name = num_segments, first.in_channels, name
        self.head_hidden_size = head.in_features
        self.num_features = features_before(backbone, name)
        self.training = backbone.training
        for shared in SHARED:
            self.__dict__[shared] = vars(backbone)[shared]
        self.__dict__["backbone"] = backbone  # no child: the names of its layers are this network's
        if new is not head:
            backbone.set_submodule(name, new)
            self._tell_backbone(new.out_features)
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

    def frame_maps(self, x: Any) -> Any:
        """Checked frames (N·T, 3, H, W) → their last feature maps, (N·T, C, H', W') or as the backbone has them."""
        if has_trunk(self.backbone):
            return self.backbone.forward_features(x)  # type: ignore[operator]
        return run_trunk(self.backbone, x, self._last())

    def frame_head(self, x: Any, pre_logits: bool = False) -> Any:
        """The last feature maps → the frames' logits (N·T, classes), or what the last layer is given, (N·T, D)."""
        if has_trunk(self.backbone):
            return self.backbone.forward_head(x, pre_logits=pre_logits)  # type: ignore[operator]
        self._last()
        return run_head(self.backbone, x, self.head_name, pre_logits)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """As of any of these networks; the backbone is told, too. Raises ValueError if it has several heads."""
        check_one_head(self.backbone)
        super().reset_classifier(num_classes, global_pool)
        self._tell_backbone(num_classes)

    def _intermediates(self, x: Tensor, chosen: Sequence[int], norm: bool) -> tuple[Any, list[Tensor]]:
        """By the backbone's own method where it has one, as transformers do, whose blocks give no maps.

        Raises NotImplementedError for a backbone whose parts give no maps (N·T, C, H, W).
        """
        own, info = getattr(self.backbone, "forward_intermediates", None), self.feature_info
        if has_trunk(self.backbone) and callable(own):
            in_order = sorted(set(chosen))  # as timm gives them, whatever the order of the indices
            last, found = own(self._frames(x), in_order, norm=norm)
            maps = [found[in_order.index(i)] for i in chosen]
        else:
            last, maps = super()._intermediates(x, chosen, norm)
        for i, each in zip(chosen, maps, strict=True):
            if each.ndim != 4 or each.shape[1] != info[i]["num_chs"]:
                raise NotImplementedError(
                    f"backbone: got a {type(self.backbone).__name__} that gives {tuple(each.shape)} in "
                    f"{info[i]['module']}, expected maps (N·T, C, H, W)"
                )
        return last, maps

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """The backbone's own, or of its children up to where its trunk ends."""
        own = getattr(self.backbone, "feature_info", None)
        if has_trunk(self.backbone) and isinstance(own, list):
            return [dict(info) for info in own]
        self._last()
        return super().feature_info

    def group_matcher(self, coarse: bool = False) -> Any:
        """The backbone's own, or patterns of the parameters' names in their order."""
        own = getattr(self.backbone, "group_matcher", None)
        return own(coarse=coarse) if callable(own) else super().group_matcher(coarse)

    def no_weight_decay(self) -> set[str]:
        """The backbone's own."""
        own = getattr(self.backbone, "no_weight_decay", None)
        return set(own()) if callable(own) else super().no_weight_decay()

    def _config(self) -> dict[str, Any]:
        own = getattr(self.backbone, "default_cfg", None)
        frames = {key: own[key] for key in FRAMES if key in own} if isinstance(own, dict) else {}
        if last_child(self.backbone) in {*LAST.values()} - {UNPADDED}:
            frames = {"pool_size": pool_size(self.feature_info)}
        return {**super()._config(), **frames}

    def _order(self) -> list[str]:
        if last := last_child(self.backbone):
            return running_order(self, last)
        names = [name for name, _ in self.named_children()]
        before = names[: names.index(self.head_name.partition(".")[0])]
        return running_order(self, before[-1]) if before else []

    def _last(self) -> str:
        if (last := last_child(self.backbone)) is None:
            raise NotImplementedError(
                f"backbone: got a {type(self.backbone).__name__} whose trunk is not known, expected one of "
                f"torchvision's {', '.join(LAST)} without hooks on itself, or its own forward_features and forward_head"
            )
        return last

    def _tell_backbone(self, num_classes: int) -> None:
        if isinstance(getattr(self.backbone, "num_classes", None), int):
            self.backbone.num_classes = num_classes  # type: ignore[assignment]

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


def check_one_head(backbone: nn.Module) -> None:
    """Raises ValueError for a backbone that joins the answers of several heads, of which a new one would be one."""
    config = getattr(backbone, "default_cfg", None) or {}
    declared = config.get("classifier") if isinstance(config, dict) else None
    if isinstance(declared, tuple | list) and len(declared) > 1:
        raise ValueError(
            f"num_classes: got a number for {type(backbone).__name__}, which joins the heads {tuple(declared)}; "
            "expected None, or a backbone with one head"
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
