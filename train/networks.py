"""From a description of a network, as checkpoints hold it, to the network."""

from dataclasses import dataclass
from typing import Literal

from tam_triton.nets import C2D, TANet
from train.small_resnet import SmallResNet


@dataclass(frozen=True)
class NetworkConfig:
    """Everything needed to build a network anew, so that a checkpoint's weights fit it."""

    kind: Literal["TANet", "C2D"]
    """TANet, or the same backbone without temporal modelling."""
    num_classes: int
    num_segments: int = 8
    """T, the frames of a clip."""
    dropout: float = 0.0


def build_network(config: NetworkConfig) -> TANet | C2D:
    """The network that `config` describes, with random weights.

    The backbone's are drawn first, so equal seeds give C2D and TANet equal backbones.
    """
    network = {"TANet": TANet, "C2D": C2D}[config.kind]
    return network(SmallResNet(config.num_classes), config.num_segments, dropout=config.dropout)
