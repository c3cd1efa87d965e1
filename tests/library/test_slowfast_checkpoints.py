"""Checkpoints of SlowFast: the public implementations' names, and what does not fit."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from tam_triton.nets.slowfast_checkpoints import library_name, load_slowfast
from tam_triton.nets.slowfast_config import BLOCKS
from tests.library.test_slowfast import small


@pytest.fixture(autouse=True)
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """ResNet-50 of five blocks."""
    monkeypatch.setitem(BLOCKS, 50, (2, 1, 1, 1))


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("blocks.0.multipathway_blocks.0.conv.weight", "slow_path.conv1.weight"),
        ("blocks.0.multipathway_blocks.1.norm.running_mean", "fast_path.bn1.running_mean"),
        ("blocks.0.multipathway_fusion.conv_fast_to_slow.weight", "slow_path.conv1_lateral.conv.weight"),
        ("blocks.3.multipathway_fusion.norm.bias", "slow_path.layer3_lateral.bn.bias"),
        ("blocks.1.multipathway_blocks.0.res_blocks.0.branch1_conv.weight", "slow_path.layer1.0.downsample.0.weight"),
        ("blocks.4.multipathway_blocks.1.res_blocks.2.branch1_norm.bias", "fast_path.layer4.2.downsample.1.bias"),
        ("blocks.2.multipathway_blocks.1.res_blocks.3.branch2.conv_b.weight", "fast_path.layer2.3.conv2.weight"),
        ("blocks.2.multipathway_blocks.1.res_blocks.3.branch2.norm_c.weight", "fast_path.layer2.3.bn3.weight"),
        ("blocks.6.proj.bias", "fc.bias"),
        ("module.s5.pathway1_res10.branch2.c_bn.num_batches_tracked", "fast_path.layer4.10.bn3.num_batches_tracked"),
        ("s4_fuse.bn.weight", "slow_path.layer3_lateral.bn.weight"),
        ("slow_path.layer1.0.conv1.weight", "slow_path.layer1.0.conv1.weight"),
    ],
)
def test_published_names(key: str, name: str) -> None:
    assert library_name(key) == name


def test_a_checkpoint_of_mmaction2(tmp_path: Path) -> None:
    """Its names and shapes, of a file; its lateral convolutions stand alone."""
    source, network = small(lateral_norm=False), small(lateral_norm=False)
    published = {}
    for name, tensor in source.state_dict().items():
        key = re.sub(r"\b(conv\d)\.weight", r"\1.conv.weight", name)
        key = re.sub(r"\bbn(\d)\.", r"conv\1.bn.", key)
        key = key.replace("downsample.0.", "downsample.conv.").replace("downsample.1.", "downsample.bn.")
        key = f"backbone.{key}".replace("backbone.fc.", "cls_head.fc_cls.")
        if name == "fast_path.conv1.weight":
            tensor = tensor.unflatten(1, (3, 5))
        elif tensor.dim() == 4:
            tensor = tensor[..., None] if tensor.shape[2] != tensor.shape[3] else tensor[:, :, None]
        published[key] = tensor
    assert "backbone.slow_path.layer3_lateral.conv.weight" in published
    assert "backbone.fast_path.layer1.0.conv1.bn.running_var" in published
    torch.save({"state_dict": published, "meta": {"epoch": 256}}, tmp_path / "slowfast.pth")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    report = load_slowfast(network, tmp_path / "slowfast.pth")
    assert not report.unused
    assert not report.missing
    torch.testing.assert_close(network.state_dict(), source.state_dict())


def test_what_a_checkpoint_does_not_fit() -> None:
    network = small()
    state = {f"s1.pathway0_stem.{name}": tensor for name, tensor in network.slow_path.bn1.state_dict().items()}
    with pytest.raises(ValueError, match="none of which fits SlowFast"):
        load_slowfast(network, state)
    with pytest.raises(TypeError, match="model: got Linear, expected a SlowFast"):
        load_slowfast(nn.Linear(2, 2), {})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="checkpoint: got list"):
        load_slowfast(network, [])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'fc.bias' and 'head.projection.bias', which both stand for 'fc.bias'"):
        load_slowfast(network, {"fc.bias": torch.zeros(6), "head.projection.bias": torch.zeros(6)})
    with pytest.raises(ValueError, match="does not fit the model"):
        load_slowfast(network, small(lateral_kernel=7).state_dict())
    state = {"head.projection.bias": torch.ones(6), "s9.other": torch.ones(1)}
    with pytest.raises(ValueError, match="it lacks 'slow_path'; 'fast_path'"):
        load_slowfast(network, state)
    report = load_slowfast(network, {"model_state": state}, start=True)
    assert (report.loaded, report.unused) == (("fc.bias",), ("s9.other",))
    assert network.fc.bias.eq(1).all()
