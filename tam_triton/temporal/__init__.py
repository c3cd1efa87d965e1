"""Temporal modules on frames `(N·T, C, H, W)`."""

from torch import nn

from tam_triton.temporal.ablations import GlobalSE, GlobalTAM, LocalTAM, ReversedTAM
from tam_triton.temporal.conv import InflatedConv, TemporalConv
from tam_triton.temporal.filters import ChannelwiseTemporalConv, TemporalAvgPool, TemporalShift
from tam_triton.temporal.non_local import NonLocal
from tam_triton.temporal.tada import TAda
from tam_triton.temporal.tam import TAM
from tam_triton.temporal.tdn import ShiftModule
from tam_triton.temporal.tea import MTA
from tam_triton.temporal.tei import TEI

__all__ = [
    "MODULES",
    "MTA",
    "TAM",
    "TEI",
    "ChannelwiseTemporalConv",
    "GlobalSE",
    "GlobalTAM",
    "InflatedConv",
    "LocalTAM",
    "NonLocal",
    "ReversedTAM",
    "ShiftModule",
    "TAda",
    "TemporalAvgPool",
    "TemporalConv",
    "TemporalShift",
]

MODULES: dict[str, type[nn.Module]] = {
    "tam": TAM,
    "global": GlobalTAM,
    "local": LocalTAM,
    "global_se": GlobalSE,
    "tanet_r": ReversedTAM,
    "avg_pool": TemporalAvgPool,
    "shift": TemporalShift,
    "channelwise_conv": ChannelwiseTemporalConv,
    "conv": TemporalConv,
    "inflated_conv": InflatedConv,
    "non_local": NonLocal,
    "tei": TEI,
    "tdn_shift": ShiftModule,
    "tea_mta": MTA,
    "tada": TAda,
}
"""By the names that systems and recipes know them by; all but "inflated_conv" take `(channels, num_segments)`."""
