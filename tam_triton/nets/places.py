"""Where temporal modules go in known backbones.

The paper's styles are of ResNets' blocks (section 4.3): TANet-a, -b, -c and -d. Where TAM sits in other backbones was
never published. This project puts it where TANet-b has it: before the convolution of a block that looks at more than
one pixel, on the residual branch where there is one.
"""

from collections.abc import Callable, Collection, Iterator

from torch import nn

from tam_triton.nets.insertion import Place

STYLES = ("a", "b", "c", "d")
# The paper's names of the residual stages and torchvision's attributes for them.
STAGES = {"res2": "layer1", "res3": "layer2", "res4": "layer3", "res5": "layer4"}


def known_places(network: nn.Module, style: str = "b", *, stages: Collection[str] | None = None) -> list[Place]:
    """The places of a style: one in each block.

    In ResNets (torchvision's and timm's, ResNeXt and wide ones included): "a" before conv1; "b" before conv2, TAM's own
    place; "c" after conv2 with its BatchNorm and ReLU, in a basic block after bn2; "d" after the last BatchNorm, before
    the residual sum (b is the paper's; the others are a *reading*). In other backbones there is "b" alone:

    - MobileNet, EfficientNet, ConvNeXt: before the depthwise convolution; ShuffleNet V2: before that of the branch
      which every block has;
    - RegNet: before the grouped convolution;
    - Inception V3: before each block, for all of its branches.

    Args:
        network: the backbone, or a video network on it.
        style: "a", "b", "c" or "d".
        stages: of a ResNet: any of "res2" … "res5"; None is all of them.

    Raises:
        TypeError: `stages` is no collection of names.
        ValueError: the style or a stage is unknown, or the backbone has no such place.
    """
    if style not in STYLES:
        raise ValueError(f"style: got {style!r}, expected one of {STYLES}")
    blocks = residual_blocks(network)
    if blocks:
        chosen = list(STAGES) if stages is None else check_stages(stages)
        return [_in_block(network, name, style) for stage in chosen for name in blocks[stage]]
    if stages is not None:
        raise ValueError(f"stages: got {stages!r} for {type(network).__name__}, expected None: it is no ResNet")
    found = next((found for family in FAMILIES if (found := list(family(network)))), None)
    if found is None:
        raise ValueError(
            f"network: got {type(network).__name__}, for which no places are known; expected a ResNet, ResNeXt, "
            "RegNet, ShuffleNet, MobileNet, EfficientNet, ConvNeXt or Inception, or places of your own"
        )
    if style != "b":
        raise ValueError(f"style: got {style!r} for {type(network).__name__}, expected 'b': it is no ResNet")
    return [Place(name) for name in found]


def check_stages(names: Collection[str]) -> list[str]:
    """The chosen stages in the network's order, so that a seed gives the same modules whatever the order of `names`.

    Raises:
        TypeError: they are no sequence of names.
        ValueError: there are none, or one is unknown or repeated.
    """
    if isinstance(names, str):
        raise TypeError(f"stages: got the string {names!r}, expected a sequence such as ('res4', 'res5')")
    if not isinstance(names, Collection) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"stages: got {names!r}, expected a sequence of names such as ('res4', 'res5')")
    if not names or len(set(names)) != len(names) or not set(names) <= set(STAGES):
        raise ValueError(f"stages: got {tuple(names)}, expected one or more different names out of {tuple(STAGES)}")
    return [name for name in STAGES if name in names]


def residual_blocks(network: nn.Module) -> dict[str, list[str]]:
    """The names of a ResNet's blocks by stage; nothing for another network."""
    blocks = {}
    for stage, layer in STAGES.items():
        children = list(getattr(network, layer, nn.Module()).named_children())
        if not children or not all(hasattr(block, "conv1") and hasattr(block, "conv2") for _, block in children):
            return {}
        blocks[stage] = [f"{layer}.{name}" for name, _ in children]
    return blocks


def first_convs(network: nn.Module, *, every_other: bool = False) -> list[Place]:
    """I3D's: instead of the first convolution of each bottleneck.

    Every other block is the Non-local paper's (arXiv 1711.07971, section 4.1), as in the public code of SlowFast's
    authors: all of res2, blocks 0, 2, … of res3 and res4, and 1, 3, … of res5.
    """
    blocks = _of_resnet(network)
    if every_other:
        blocks = {
            stage: names if stage == "res2" else names[1::2] if stage == "res5" else names[::2]
            for stage, names in blocks.items()
        }
    return [Place(f"{name}.conv1", "instead") for names in blocks.values() for name in names]


def block_inputs(network: nn.Module, *, name: str) -> list[Place]:
    """TSM's and TEINet's: on the residual branch, before conv1 of each block."""
    return [Place(f"{block}.conv1", name=name) for names in _of_resnet(network).values() for block in names]


def shifts(network: nn.Module) -> list[Place]:
    """TSM's: before conv1; every second block in each stage where res4 has 23 blocks or more, as in its public code."""
    blocks = _of_resnet(network)
    step = 2 if len(blocks["res4"]) >= 23 else 1
    return [Place(f"{block}.conv1", name="shift") for names in blocks.values() for block in names[::step]]


def non_locals(network: nn.Module) -> list[Place]:
    """The Non-local network's five: after blocks 0 and 2 of res3 and 0, 2, 4 of res4, as far as there are as many."""
    blocks = _of_resnet(network)
    chosen = [*blocks["res3"][:3:2], *blocks["res4"][:5:2]]
    return [Place(name, "after", "non_local") for name in chosen]


def _of_resnet(network: nn.Module) -> dict[str, list[str]]:
    if blocks := residual_blocks(network):
        return blocks
    raise ValueError(f"backbone: got {type(network).__name__}, expected a ResNet: this system is known on no other")


def _in_block(network: nn.Module, block: str, style: str) -> Place:
    deep = hasattr(network.get_submodule(block), "conv3")
    if style == "a":
        return Place(f"{block}.conv1")
    if style == "b":
        return Place(f"{block}.conv2")
    if style == "c" and deep:
        return Place(f"{block}.conv3")
    return Place(f"{block}.bn{3 if deep else 2}", "after")


def _inception_blocks(network: nn.Module) -> Iterator[str]:
    return (name for name, _ in network.named_children() if name.startswith("Mixed_"))


def _regnet_convs(network: nn.Module) -> Iterator[str]:
    for name, layer in network.named_modules():
        if name.endswith((".f.b.0", ".conv2.conv")) and isinstance(layer, nn.Conv2d):
            yield name


def _depthwise_convs(network: nn.Module) -> Iterator[str]:
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d) and 1 < layer.groups == layer.in_channels and ".branch1." not in name:
            yield name


FAMILIES: tuple[Callable[[nn.Module], Iterator[str]], ...] = (_inception_blocks, _regnet_convs, _depthwise_convs)
