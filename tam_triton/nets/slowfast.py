"""SlowFast networks (Feichtenhofer et al., ICCV 2019, arXiv 1812.03982), and SlowFast with TAM.

Two ResNets see a clip at two rates: the slow pathway every α-th frame with all the channels, the fast one every frame
with 1/8 of them. What the fast pathway knows goes to the slow one through a convolution over time before res2 … res5.

Both carry their frames in the batch, as everything here does, and their blocks are torchvision's. Names are those of
open-mmlab/mmaction2 with torchvision's inside: `slow_path.layer1.0.conv1.weight`, `fast_path.bn1.bias`,
`slow_path.layer1_lateral.conv.weight`.
"""

import torch
import torch.fx
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from tam_triton.checks import check_count, check_device, check_dtype, check_parameter, fails
from tam_triton.nets.pathway import STAGES, Lateral, Pathway, StemConv
from tam_triton.nets.slowfast_config import BLOCKS, CONFIGS, SlowFastConfig
from tam_triton.nets.ta_block import TABlock
from tam_triton.nets.video import checked_frames
from tam_triton.temporal.tracing import is_traced

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


class SlowFast(nn.Module):
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
        nn.init.normal_(self.fc.weight, std=0.01)
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
        features = torch.cat((self.slow_path.average(slow), self.fast_path.average(fast)), 1)
        return self.fc(self.dropout(features))

    def extra_repr(self) -> str:
        """The two rates, which no submodule shows."""
        return f"num_segments={self.num_segments}, alpha={self.alpha}"
