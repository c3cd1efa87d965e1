"""Checkpoints of another number of frames."""

import pytest
import torch
from torchvision.models.resnet import BasicBlock, ResNet

from tam_triton.nets import TANet, load_published
from tests.library.test_nets import randomise


def network(frames: int) -> TANet:
    return TANet(ResNet(BasicBlock, [1, 1, 1, 1]), frames, num_classes=6).eval()


@pytest.mark.parametrize("frames", [8, 6, 2])
def test_interpolated(frames: int) -> None:
    """Of a clip that stands still, kernels stay as they were where T grows; weights that have no T stay always."""
    old, new = randomise(network(4)), network(frames)
    report = load_published(new, old.state_dict(), segments="interpolate")
    assert not report.missing
    assert len(report.interpolated) == 4 * 6
    assert "24 of them interpolated over time" in str(report)
    for name, tensor in new.state_dict().items():
        assert name in report.interpolated or torch.equal(tensor, old.state_dict()[name])
    if frames > 4:
        still = torch.rand(5, 1)
        with torch.no_grad():
            expected = old.layer1.get_submodule("0.tam.G")(still.expand(5, 4))
            torch.testing.assert_close(new.layer1.get_submodule("0.tam.G")(still.expand(5, frames)), expected)


def test_drawn() -> None:
    old, new = randomise(network(4)), network(8)
    before = {name: tensor.clone() for name, tensor in new.state_dict().items()}
    report = load_published(new, old.state_dict(), segments="draw")
    assert len(report.missing) == len(report.unused) == 4 * 6
    assert all(torch.equal(new.state_dict()[name], before[name]) for name in report.missing)


def test_refused() -> None:
    with pytest.raises(ValueError, match="trained with 4 segments, the model has 8"):
        load_published(network(8), network(4).state_dict())
    with pytest.raises(ValueError, match="segments: got 'stretch'"):
        load_published(network(8), network(4).state_dict(), segments="stretch")
