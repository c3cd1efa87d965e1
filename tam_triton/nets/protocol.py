"""What networks say of themselves so that others' tools can work on them, under the names that timm's models have.

timm (huggingface/pytorch-image-models) groups parameters, freezes, replaces heads, recomputes activations and looks at
features by these; it need not be there.
"""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from tam_triton.checks import check_count, check_parameter
from tam_triton.clips import IMAGENET_MEAN, IMAGENET_STD
from tam_triton.features import record_outputs
from tam_triton.nets.insertion import move_hooks
from tam_triton.nets.order import describe_features, groups, is_block
from tam_triton.nets.recompute import recompute

PIXELS = 224
SHORT_SIDE = 256
"""Videos are resized to it before a square is cut out."""


class TimmProtocol(nn.Module):
    """A network on clips that answers to timm's protocol.

    A subclass says what its trunk and its head are: `forward_features` and `forward_head`.

    Attributes:
        num_segments: frames of a clip, T.
        head_name: of the last layer.
        head_std: of a new head's weight, which is normal, with a bias of zero.
        head_hidden_size: features that the last layer is given.
        num_features: channels of the last maps.
        model_config: what `create_model` made it of, for checkpoints, in plain containers; None without that.
    """

    num_segments: int
    head_name: str = "fc"
    head_std = 0.001
    head_hidden_size: int
    num_features: int
    model_config: dict[str, Any] | None = None

    @property
    def num_classes(self) -> int:
        """Of the head; 0 where there is none."""
        head = self.get_submodule(self.head_name)
        return head.out_features if isinstance(head, nn.Linear) else 0

    @property
    def in_channels(self) -> int:
        """Channels of a frame."""
        raise NotImplementedError

    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """The last layer, or its name."""
        return self.head_name if name_only else self.get_submodule(self.head_name)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new head in place, drawn as the first one is; what is run before it, as a Dropout, stays.

        Args:
            num_classes: classes; 0 leaves no head, and the network gives the features of clips, (N, D).
            global_pool: "avg", which these networks have, or None.

        Raises:
            TypeError, ValueError: another pooling; `num_classes` is no int or below 0.
        """
        if global_pool not in (None, "avg"):
            raise ValueError(f"global_pool: got {global_pool!r}, expected 'avg' or None; forward_features gives maps")
        like = next(self.parameters())
        headless = num_classes == 0 and not isinstance(num_classes, bool)
        new: nn.Module = nn.Identity()
        if not headless:
            new = new_head(self.head_hidden_size, num_classes, like, std=self.head_std)
        move_hooks(self.get_submodule(self.head_name), new)
        self.set_submodule(self.head_name, new.train(self.training))
        if self.model_config is not None:
            self.model_config = {**self.model_config, "num_classes": num_classes}

    def forward_features(self, x: Tensor) -> Any:
        """Clips to the last feature maps, (N·T, C, H', W')."""
        raise NotImplementedError

    def forward_head(self, x: Any, pre_logits: bool = False) -> Any:
        """The last feature maps to logits (N, classes), or to what gives these, averaged over frames, (N, D)."""
        raise NotImplementedError

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The last maps and, as a list, those that `feature_info` describes.

        Args:
            x: clips, as for `forward`.
            indices: which of them; a number is so many from the end.
            norm: for a backbone with a method of its own for this; other stages end without a norm of their own.
            stop_early: no matter: the whole trunk runs.
            output_fmt: "NCHW".
            intermediates_only: give the list alone.

        Raises:
            ValueError: an index is none of them, or another format.
            NotImplementedError: a backbone whose parts give no maps (N·T, C, H, W).
        """
        last, maps = self._intermediates(x, self._chosen(indices, output_fmt), norm)
        return maps if intermediates_only else (last, maps)

    def _intermediates(self, x: Tensor, chosen: Sequence[int], norm: bool) -> tuple[Any, list[Tensor]]:
        """The last maps, and those of these numbers in `feature_info`."""
        info = self.feature_info
        wanted = [info[i]["module"] for i in chosen]
        last, outputs = record_outputs(self, lambda: self.forward_features(x), wanted)
        return last, [outputs[name] for name in wanted]

    def _chosen(self, indices: int | Sequence[int] | None, output_fmt: str) -> list[int]:
        """The numbers in `feature_info` that are meant, from 0 on. Raises ValueError as `forward_intermediates`."""
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt: got {output_fmt!r}, expected 'NCHW'")
        count = len(self.feature_info)
        chosen = list(range(count))
        if indices is not None:
            chosen = chosen[count - indices :] if isinstance(indices, int) else [*indices]
        if not chosen or any(not -count <= i < count for i in chosen):
            raise ValueError(f"indices: got {indices}, expected some of the {count} in feature_info")
        return [i % count for i in chosen]

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """The last maps of each resolution: `num_chs`, `reduction` against frames, and `module`, which gives them."""
        return describe_features(self, self._order(), self.num_features)

    def group_matcher(self, coarse: bool = False) -> Any:
        """Patterns of the parameters' names, a group each, from the first layer on; the head is what none fits."""
        return groups(self, self._order(), coarse)

    def no_weight_decay(self) -> set[str]:
        """Parameters that are not to decay, though they are no vectors: none."""
        return set()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Let every block be computed again in the backward pass, or no longer; all values stay the same bits.

        Raises:
            ValueError: the network has no blocks.
        """
        parts = map(self.get_submodule, self._order())
        blocks = [part for part in parts if is_block(part) and next(part.parameters(), None) is not None]
        if not blocks:
            raise ValueError(f"network: got {type(self).__name__} without blocks of layers, expected some to recompute")
        recompute(blocks, enable)

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """How frames are made, and where the first convolution and the head are."""
        return self._config()

    @property
    def default_cfg(self) -> dict[str, Any]:
        """The same."""
        return self._config()

    def _order(self) -> list[str]:
        """The names of the trunk's parts."""
        raise NotImplementedError

    def _config(self) -> dict[str, Any]:
        convs = [name for name, layer in self.named_modules() if isinstance(layer, nn.Conv2d)]
        return {
            "architecture": (self.model_config or {}).get("system", type(self).__name__.lower()),
            "num_classes": self.num_classes,
            "num_segments": self.num_segments,
            "input_size": (self.in_channels, PIXELS, PIXELS),
            "crop_pct": PIXELS / SHORT_SIDE,
            "interpolation": "bilinear",
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
            "first_conv": convs[0],
            "classifier": self.head_name,
        }


def pool_size(feature_info: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Of the last maps of frames of `PIXELS`, where every convolution is padded."""
    size = ceil(PIXELS / feature_info[-1]["reduction"])
    return size, size


def new_head(in_features: int, num_classes: int, like: Tensor, *, std: float = 0.001) -> nn.Linear:
    """A head on the device and in the dtype of `like`: weight ~ N(0, std²), bias zero."""
    check_count("num_classes", num_classes)
    check_parameter("num_classes", num_classes, num_classes * in_features)
    head = nn.Linear(in_features, num_classes, device=like.device, dtype=like.dtype)
    with torch.no_grad():
        nn.init.normal_(head.weight, std=std)
        nn.init.zeros_(head.bias)
    return head
