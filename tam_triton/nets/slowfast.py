"""SlowFast networks (Feichtenhofer et al., ICCV 2019, arXiv 1812.03982), and SlowFast with TAM.

Two ResNets see a clip at two rates: the slow pathway every α-th frame with all the channels, the fast one every frame
with 1/8 of them. What the fast pathway knows goes to the slow one through a convolution over time before res2 … res5.

Both carry their frames in the batch, as everything here does, and their blocks are torchvision's. Names are those of
open-mmlab/mmaction2 with torchvision's inside: `slow_path.layer1.0.conv1.weight`, `fast_path.bn1.bias`,
`slow_path.layer1_lateral.conv.weight`.
"""

from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from tam_triton.checks import check_count, check_device, check_dtype, check_parameter, fails
from tam_triton.nets.order import running_order
from tam_triton.nets.pathway import STAGES, Lateral, Pathway, StemConv
from tam_triton.nets.protocol import TimmProtocol
from tam_triton.nets.slowfast_config import BLOCKS, CONFIGS, SlowFastConfig
from tam_triton.nets.ta_block import TABlock
from tam_triton.nets.video import checked_frames
from tam_triton.temporal.tracing import is_traced

PATHWAYS = ("slow_path", "fast_path")

torch.fx.wrap("checked_frames")


def slowfast(name: str, num_classes: int = 400, *, dropout: float = 0.5, impl: str | None = None) -> "SlowFast":
    """The SlowFast network of a name in `CONFIGS`; other arguments as for `SlowFast`.

    Raises:
        TypeError, ValueError: there is no such name, or an argument is one that `SlowFast` refuses.
    """
    if not isinstance(name, str):
        raise TypeError(f"name: got {type(name).__name__}, expected a str")
    if name not in CONFIGS:
        raise ValueError(f"name: got {name!r}, expected one of {tuple(CONFIGS)}")
    return SlowFast(CONFIGS[name], num_classes, dropout=dropout, impl=impl)


class SlowFast(TimmProtocol):
    """Logits of clips from two pathways (paper section 3, table 1).

    The slow pathway's blocks have a 3×1×1 first convolution in res4 and res5 and a 1×1×1 one in res2 and res3, the fast
    pathway's a 3×1×1 one everywhere; stems are 1×7×7 and 5×7×7. The features, averaged over space and time, are
    concatenated: 2048 + 256 for `width` 64. Convolutions start as He's, each block's last BatchNorm at γ = 0, `fc` at
    N(0, 0.01²).

    SlowFast with TAM (*reading*: TAM's paper says no more than that TAM takes the place of the 3×1×1 convolutions):
    these become 1×1×1, a TAM follows their BatchNorm and ReLU, as in a TA-Block, with the T of its own pathway, and
    stems and lateral convolutions stay.

    Args:
        config: the network.
        num_classes: classes.
        dropout: probability of dropping a feature before `fc`.
        impl: the implementation that every TAM is tied to; None chooses by device.

    Attributes:
        config: the network's.
        num_segments: frames of a clip, T of the fast pathway.
        alpha: the fast pathway's frames for one of the slow.

    Raises:
        TypeError: `config` is no SlowFastConfig, `num_classes` no int, `dropout` no number, or `impl` no string.
        ValueError: `num_classes` is below 1, `dropout` is outside [0, 1], or `impl` is unknown; a pathway is too narrow
            for TAM.
    """

    head_std = 0.01

    def __init__(
        self, config: SlowFastConfig, num_classes: int = 400, *, dropout: float = 0.5, impl: str | None = None
    ) -> None:
        super().__init__()
        if not isinstance(config, SlowFastConfig):
            raise TypeError(f"config: got {type(config).__name__}, expected a SlowFastConfig")
        check_count("num_classes", num_classes)
        if isinstance(dropout, bool) or not isinstance(dropout, int | float):
            raise TypeError(f"dropout: got {type(dropout).__name__}, expected a float")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout: got {dropout}, expected a probability from 0 to 1")
        self.config, self.num_segments, self.alpha = config, config.num_segments, config.alpha
        fast_width = config.width // config.channel_ratio
        features = 32 * (config.width + fast_width)
        check_parameter("num_classes", num_classes, num_classes * features)
        blocks = BLOCKS[config.depth]
        self.slow_path = Pathway(
            config.width, blocks, config.num_segments // config.alpha, (1, 1, 1, 3, 3), 2 * fast_width, config.tam, impl
        )
        self.fast_path = Pathway(fast_width, blocks, config.num_segments, (5, 3, 3, 3, 3), 0, config.tam, impl)
        lateral = (config.lateral_kernel, config.num_segments, config.alpha, config.lateral_norm)
        for name, channels in zip(("conv1", *STAGES[:3]), (1, 4, 8, 16), strict=True):
            self.slow_path.add_module(f"{name}_lateral", Lateral(channels * fast_width, *lateral))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(features, num_classes)
        self.num_features = self.head_hidden_size = features
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The published initialization; TAMs keep theirs."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                weight = module.weight_3d() if isinstance(module, StemConv) else module.weight
                nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Bottleneck | TABlock):
                nn.init.zeros_(module.bn3.weight)
        nn.init.normal_(self.fc.weight, std=self.head_std)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor, slow: Tensor | None = None) -> Tensor:
        """Logits of clips.

        Args:
            x: normalized frames of the fast pathway, (N, T, 3, H, W) or (N·T, 3, H, W), frames of a clip in a row.
                channels_last frames stay so throughout, and are convolved over time without a copy.
            slow: normalized frames of the slow pathway, (N, T/α, 3, H, W) or (N·T/α, 3, H, W). None: every α-th of x,
                the clip's first included, as in the paper and in mmaction2. (The authors' code spreads them from the
                first frame to the last: `torch.linspace(0, T - 1, T // α).long()`.)

        Returns:
            (N, classes).

        Raises:
            TypeError: frames are no dense tensor of a floating-point type, or, without autocast, not of the weights'.
            ValueError: frames are of another rank, empty, on another device, or have another number of channels or of
                frames; the two pathways' clips are not as many.
        """
        return self.forward_head(self.forward_features(x, slow))

    def forward_features(self, x: Tensor, slow: Tensor | None = None) -> tuple[Any, Any]:
        """Clips, as for `forward`, to both pathways' last maps: (N·T/α, C, H/32, W/32) and (N·T, C/8, H/32, W/32)."""
        fast = checked_frames(x, self.num_segments, 3).flatten(0, -4)
        if slow is None:
            slow = fast[:: self.alpha]  # α divides T, so that every clip's frames are counted from its first
        else:
            slow = checked_frames(slow, self.num_segments // self.alpha, 3).flatten(0, -4)
        if not is_traced(x):
            if fails(slow.shape[0] * self.alpha == fast.shape[0]):
                raise ValueError(
                    f"slow: got {slow.shape[0]} frames for {fast.shape[0]} in x, expected 1 for {self.alpha}"
                )
            for frames in (fast, slow):
                check_device(frames, self)
                check_dtype(frames, self)
        slow, fast = self.slow_path.stem(slow), self.fast_path.stem(fast)
        for before, stage in zip(("conv1", *STAGES), STAGES, strict=False):
            lateral = getattr(self.slow_path, f"{before}_lateral")
            slow = getattr(self.slow_path, stage)(torch.cat((slow, lateral(fast)), 1))
            fast = getattr(self.fast_path, stage)(fast)
        return slow, fast

    def forward_head(self, x: tuple[Any, Any], pre_logits: bool = False) -> Any:
        """Both pathways' last maps to logits (N, classes), or to what `fc` is given, (N, D)."""
        slow, fast = x
        features = self.dropout(torch.cat((self.slow_path.average(slow), self.fast_path.average(fast)), 1))
        return features if pre_logits else self.fc(features)

    @property
    def in_channels(self) -> int:
        """Channels of a frame."""
        return 3

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """The last maps of each resolution, of the slow pathway and of the fast one, with T as `num_segments`."""
        info = []
        for i, module in enumerate(("relu", *STAGES)):
            for name, path in zip(PATHWAYS, (self.slow_path, self.fast_path), strict=True):
                width = path.conv1.out_channels * (1 if i == 0 else 2 * 2**i)
                info.append(
                    {
                        "num_chs": width,
                        "reduction": 2 * 2**i,
                        "module": f"{name}.{module}",
                        "num_segments": path.num_segments,
                    }
                )
        return info

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of the parameters' names: stems, blocks or stages of both pathways, laterals with their stage."""
        block = r"" if coarse else r"\.(\d+)"
        join_the_last = (99999,)  # timm's: no group of its own
        return {
            "stem": r"^(?:slow|fast)_path\.(?:conv1|bn1)",
            "blocks": [
                (rf"^(?:slow|fast)_path\.layer(\d+){block}", None),
                (r"^slow_path\.layer(\d+)_lateral", join_the_last),
            ],
        }

    def _order(self) -> list[str]:
        """Of both pathways; what joins them comes later in theirs."""
        return [
            name
            for path in PATHWAYS
            for name in running_order(self.get_submodule(path), last="layer4", prefix=f"{path}.")
        ]

    def _config(self) -> dict[str, Any]:
        return {**super()._config(), "first_conv": tuple(f"{path}.conv1" for path in PATHWAYS), "pool_size": (7, 7)}

    def extra_repr(self) -> str:
        """The two rates, which no submodule shows."""
        return f"num_segments={self.num_segments}, alpha={self.alpha}"
