"""timm's protocol where a backbone is of another kind than most, and where a graph is gone through again."""

from typing import Any

import pytest
import timm
import torch
from torch import nn

from tam_triton.nets import Framewise, create_model
from tam_triton.nets.small_resnet import SmallResNet
from tests.support.networks import normal

CLASSES, T = 6, 2


@pytest.mark.parametrize("name", ["test_vit", "test_mambaout"])
def test_features_of_backbones_that_keep_none_as_maps(name: str) -> None:
    """Tokens, and maps with channels last: what comes is what is promised, in the order that was asked for."""
    backbone: Any = timm.create_model(name, num_classes=CLASSES).eval()
    network = Framewise(backbone, T)
    x = normal(T, *backbone.default_cfg["input_size"])
    maps = network.forward_intermediates(x, [-1, 0], intermediates_only=True)
    for each, expected in zip(maps, reversed(backbone.forward_intermediates(x, [0, -1])[1]), strict=True):
        assert torch.equal(each, expected)
    info = network.feature_info
    assert [each.shape[1] for each in maps] == [info[-1]["num_chs"], info[0]["num_chs"]]
    side = x.shape[-1]
    assert [each.shape[-1] for each in maps] == [side // info[-1]["reduction"], side // info[0]["reduction"]]
    backbone.forward_intermediates = None
    with pytest.raises(NotImplementedError, match=r"expected maps \(N·T, C, H, W\)"):
        network.forward_intermediates(x)


class TwoHeads(SmallResNet):
    """As distilled transformers are."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.fc_dist, self.default_cfg = nn.Linear(128, num_classes), {"classifier": ("fc", "fc_dist")}


def test_a_new_head_beside_another_is_refused() -> None:
    """One class would be joined with the other head's by broadcasting."""
    with pytest.raises(ValueError, match=r"joins the heads \('fc', 'fc_dist'\)"):
        Framewise(TwoHeads(CLASSES), T, num_classes=1)
    network = Framewise(TwoHeads(CLASSES), T)
    with pytest.raises(ValueError, match="num_classes: got a number for TwoHeads"):
        network.reset_classifier(1)
    assert network.num_classes == CLASSES


def test_recomputing_again_for_every_backward() -> None:
    """A graph that is retained is gone through twice, and a gradient's own gradient goes through it, too."""
    found = {}
    for enabled in (False, True):
        torch.manual_seed(0)
        network: Any = create_model("c2d", SmallResNet(CLASSES), None, T, dropout=0.0).train()
        network.set_grad_checkpointing(enabled)
        weights = [network.get_submodule(name).get_parameter("weight") for name in ("conv1", "layer3.0.conv1")]
        logits = network(normal(2, T, 3, 32, 32))
        first, second = (torch.autograd.grad(logits[i].sum(), weights, retain_graph=True) for i in range(2))
        of_first = torch.autograd.grad(logits.square().sum(), weights, create_graph=True)
        third = torch.autograd.grad([one.square().sum() for one in of_first], weights)
        found[enabled] = [*first, *second, *third, *(buffer.clone() for buffer in network.buffers())]
    assert all(torch.equal(a, b) for a, b in zip(found[False], found[True], strict=True))
