"""The TA-Block: a residual block with a TAM after its first conv-BN-ReLU (paper §3.4, figure 2)."""

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from tam_triton.temporal import TAM
from tam_triton.temporal.folding import is_bare

FORWARDS = (BasicBlock.forward, Bottleneck.forward)


class TABlock(nn.Module):
    """A residual block of torchvision's, basic or bottleneck (plain, wide or ResNeXt), with a TAM.

    `block`'s submodules are taken over under their own names, so the state dict is the block's plus `tam.*`.

    The TAM runs after `conv1`: in a basic block, which carries its stride there, at the lower resolution; in a
    bottleneck, which carries it in `conv2`, at the higher one.

    Args:
        block: torchvision's `BasicBlock` or `Bottleneck`.
        tam: a TAM of `block.conv1.out_channels` channels.

    Raises:
        TypeError: `block` or `tam` is something else; `block` has hooks or a forward of its own, which would be lost.
        ValueError: `tam` has another number of channels.
    """

    def __init__(self, block: BasicBlock | Bottleneck, tam: TAM) -> None:
        super().__init__()
        check_block("block", block)
        if not isinstance(tam, TAM):
            raise TypeError(f"tam: got {type(tam).__name__}, expected a TAM")
        if tam.channels != block.conv1.out_channels:
            raise ValueError(
                f"tam: got one of {tam.channels} channels, "
                f"expected block.conv1.out_channels = {block.conv1.out_channels}"
            )
        self.conv1, self.bn1 = block.conv1, block.bn1
        self.conv2, self.bn2 = block.conv2, block.bn2
        if isinstance(block, Bottleneck):
            self.conv3, self.bn3 = block.conv3, block.bn3
        self.relu = block.relu
        self.downsample = block.downsample
        self.stride = block.stride
        self.tam = tam
        self.training = block.training

    def forward(self, x: Tensor) -> Tensor:
        """(N·T, C_in, H, W) → (N·T, C_out, H/stride, W/stride)."""
        out = self.tam.activated(self.conv1(x), self.bn1, self.relu)
        out = self.bn2(self.conv2(out))
        if hasattr(self, "conv3"):
            out = self.bn3(self.conv3(self.relu(out)))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


def check_block(name: str, block: nn.Module) -> BasicBlock | Bottleneck:
    """`block`; raises TypeError unless `block` is a residual block whose forward a TA-Block can stand for."""
    if not isinstance(block, BasicBlock | Bottleneck):
        raise TypeError(f"{name}: got {type(block).__name__}, expected torchvision's BasicBlock or Bottleneck")
    if type(block).forward not in FORWARDS or not is_bare(block, type(block).forward):
        raise TypeError(
            f"{name}: got a {type(block).__name__} with hooks or a forward of its own, which a TA-Block would not run; "
            "expected torchvision's BasicBlock or Bottleneck as it is"
        )
    return block
