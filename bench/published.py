"""Cost as others state it, to stand beside what `cost` counts; nothing is computed from these figures.

On ResNet-50, at frames of 256².
"""

from dataclasses import dataclass
from typing import NamedTuple

from tam_triton.nets.flops import Counts

SHEET = "PAPER.md"  # the sheet of facts about TAM that the project is built by: from the paper, or computed from it


class Setting(NamedTuple):
    """A system, and what its figures are for; no stages are all of them."""

    system: str
    frames: int = 8
    num_classes: int = 400
    stages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Published:
    """Figures of one system.

    Attributes:
        parameters: as printed: to the unit, or rounded.
        macs: as printed; None: not stated.
        products: whether products of matrices are among the MACs.
        aggregation: whether the operators are.
        source: who says so.
        others: what others print, if it is different.
    """

    parameters: int
    macs: float | None = None
    products: bool = True
    aggregation: bool = True
    source: str = SHEET
    others: str = ""

    @property
    def remark(self) -> str:
        """What a reader must know to compare."""
        left_out = [name for name in ("products", "aggregation") if not getattr(self, name)]
        remarks = [f"without {name}" for name in left_out] + ([self.others] if self.others else [])
        return f" ({'; '.join(remarks)})" if remarks else ""

    def of_parameters(self, counted: int) -> str:
        """The difference: in units where the figure is one, else in percent of it."""
        difference = counted - self.parameters
        exact = self.parameters % 1000 != 0
        return f"{difference:+d}" if exact else f"{difference / self.parameters:+z.2%}"

    def of_macs(self, counts: Counts) -> float | None:
        """The difference as a share of the figure, of what it is a figure of."""
        if self.macs is None:
            return None
        left_out = (not self.products) * counts.products + (not self.aggregation) * counts.aggregation
        return (counts.macs - left_out) / self.macs - 1


FRAME_BY_FRAME = Published(24_327_632, 42.71e9, aggregation=False)
TANET = Published(25_590_320, 42.78e9, others="the paper: 25.6 M, 43 G")
SLOWFAST = "parameters: PAPER.md; MACs: arXiv 1812.03982"

PUBLISHED = {
    Setting("c2d"): FRAME_BY_FRAME,
    Setting("c2d_pool"): FRAME_BY_FRAME,
    Setting("tsm"): FRAME_BY_FRAME,
    Setting("c2d_tconv"): Published(28_100_048, 52.78e9),
    Setting("i3d"): Published(32_990_000, 62.31e9),
    Setting("i3d_every_other"): Published(28_010_000, 53.72e9),
    Setting("nl_c2d"): Published(31_690_000, 64.19e9, products=False),
    Setting("global"): Published(24_330_960, 42.77e9),
    Setting("local"): Published(25_586_992, 42.72e9, aggregation=False),
    Setting("global_se"): Published(24_645_000, 42.78e9),
    Setting("tanet"): TANET,
    Setting("tanet_b"): TANET,
    Setting("tanet_r"): TANET,
    Setting("tanet_a"): Published(40_270_000, 43.02e9),
    Setting("tanet_c"): Published(25_590_000, 42.77e9),
    Setting("tanet_d"): Published(44_460_000, 43.05e9),
    Setting("teinet"): Published(30_340_000, 42.94e9),
    Setting("tanet", stages=("res5",)): Published(25_120_000),
    Setting("tanet", stages=("res4", "res5")): Published(25_510_000),
    Setting("tanet", stages=("res3", "res4", "res5")): Published(25_580_000),
    Setting("tanet", num_classes=174): Published(25_127_246),
    Setting("tanet", frames=16, num_classes=174): Published(25_134_670),
    Setting("slowfast_4x16", frames=32): Published(34_500_000, 36.1e9, source=SLOWFAST, others="mmaction2: 36.3 G"),
    Setting("slowfast_8x8", frames=32): Published(34_600_000, 65.7e9, source=SLOWFAST, others="mmaction2: 66.1 G"),
    Setting("slowfast_r101_8x8", frames=32): Published(62_900_000, 126e9),
}
"""What is known of each."""
