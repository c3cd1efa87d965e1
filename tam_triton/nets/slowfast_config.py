"""SlowFast networks by name. Nothing here needs torchvision, which takes a second to import."""

from dataclasses import dataclass

from tam_triton.checks import check_count, check_taps

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}  # of res2 … res5, by depth


@dataclass(frozen=True)
class SlowFastConfig:
    """A SlowFast network, but for its classes.

    Attributes:
        depth: of both ResNets: 50, 101 or 152.
        num_segments: frames of a clip, which the fast pathway sees: its T.
        alpha: how many frames of the fast pathway there are for one of the slow; the slow pathway's T is
            `num_segments / alpha`.
        width: channels of the slow pathway's first convolution.
        channel_ratio: how many channels of the slow pathway there are for one of the fast: 1/β of the paper.
        lateral_kernel: taps in time of the lateral convolutions; odd. The paper has 5, the authors' code 7 for
            8×8 on ResNet-50.
        lateral_norm: whether BatchNorm and ReLU follow a lateral convolution, as in the authors' code; neither does in
            mmaction2, and the paper does not say.
        tam: TAM in place of every 3×1×1 convolution: see `SlowFast`.

    Raises:
        TypeError: a number is no int.
        ValueError: a number is below 1, `depth` is none of the three, `alpha` does not divide `num_segments`,
            `channel_ratio` does not divide `width`, or `lateral_kernel` is even.
    """

    depth: int = 50
    num_segments: int = 32
    alpha: int = 8
    width: int = 64
    channel_ratio: int = 8
    lateral_kernel: int = 5
    lateral_norm: bool = True
    tam: bool = False

    def __post_init__(self) -> None:
        for name in ("depth", "num_segments", "alpha", "width", "channel_ratio"):
            check_count(name, getattr(self, name))
        check_taps("lateral_kernel", self.lateral_kernel)
        for name in ("lateral_norm", "tam"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}: got {type(getattr(self, name)).__name__}, expected a bool")
        if self.depth not in BLOCKS:
            raise ValueError(f"depth: got {self.depth}, expected one of {tuple(BLOCKS)}")
        for whole, part in (("num_segments", "alpha"), ("width", "channel_ratio")):
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(
                    f"{part}: got {getattr(self, part)}, expected a divisor of {whole} = {getattr(self, whole)}"
                )


# "4×16": 4 frames in the slow pathway, 16 frames of the video apart. 32 frames 2 apart are the fast pathway's in all.
CONFIGS = {
    "slowfast_4x16": SlowFastConfig(),
    "slowfast_8x8": SlowFastConfig(alpha=4, lateral_kernel=7),
    "slowfast_r101_8x8": SlowFastConfig(depth=101, alpha=4),
    "slowfast_tam_4x16": SlowFastConfig(tam=True),
    "slowfast_tam_8x8": SlowFastConfig(alpha=4, lateral_kernel=7, tam=True),
}
