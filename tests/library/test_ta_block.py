"""TA-Blocks against an independently written forward."""

import pytest
import torch
from torch import nn
from torch.nn.functional import batch_norm, conv1d, conv2d, relu
from torchvision.models import resnet18
from torchvision.models.resnet import BasicBlock, Bottleneck

from tam_triton.nets import TABlock, insert_tam
from tam_triton.temporal import TAM
from tests.library.test_nets import T, randomise


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("kind", "stride", "options"),
    [
        (BasicBlock, 1, {}),
        (BasicBlock, 2, {}),
        (Bottleneck, 1, {}),
        (Bottleneck, 2, {"groups": 4, "base_width": 16}),
        (Bottleneck, 2, {"base_width": 128}),
    ],
)
def test_block_equals_independent_forward(kind, stride, options, training):
    """Values and every gradient, in float64: only a TAM between conv1-BN-ReLU and conv2 gives these."""
    planes, width = 16, 16 * kind.expansion
    # An identity shortcut shows any in-place operation that reaches the block's input.
    shortcut = nn.Sequential(nn.Conv2d(width, width, 1, stride, bias=False), nn.BatchNorm2d(width))
    block = kind(width, planes, stride, shortcut if stride > 1 else None, **options)
    tam = TAM(block.conv1.out_channels, T)
    ta_block = TABlock(block, tam)
    randomise(ta_block).double().train(training)

    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2 * T, width, 7, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    weights = dict(ta_block.named_parameters())
    state = {key: tensor.clone() for key, tensor in ta_block.named_buffers()} | weights
    expected = eager_ta_block(state, x, stride, options.get("groups", 1), training)
    actual = ta_block(x)

    upstream = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(actual, expected)
    leaves = {"x": x} | weights
    ours = torch.autograd.grad(actual, list(leaves.values()), upstream)
    theirs = torch.autograd.grad(expected, list(leaves.values()), upstream)
    torch.testing.assert_close(dict(zip(leaves, ours, strict=True)), dict(zip(leaves, theirs, strict=True)))


def test_blocks_that_compute_something_else_are_refused():
    """What a TA-Block would not run must not be lost without a word; nothing is changed then."""

    class Squeezed(BasicBlock):
        def forward(self, x):
            return super().forward(x) * 0.5

    def hooked(block):
        block.register_forward_hook(lambda *call: call[-1] * 2)

    def patched(block):
        block.forward = lambda x: x

    def subclassed(block):
        block.__class__ = Squeezed

    for change in (hooked, patched, subclassed):
        resnet = resnet18()
        change(resnet.layer4[1])
        with pytest.raises(TypeError, match="with hooks or a forward of its own"):
            insert_tam(resnet, T)
        assert not [module for module in resnet.modules() if isinstance(module, TAM)]


def eager_ta_block(state, x, stride, groups, training):
    """A TA-Block written from the paper's figure 2, on a state dict; basic if there is no conv3."""

    def norm(name, values):
        statistics = (state[f"{name}.running_mean"], state[f"{name}.running_var"])
        return batch_norm(values, *statistics, state[f"{name}.weight"], state[f"{name}.bias"], training)

    def conv(name, values, **options):
        weight = state[f"{name}.weight"]
        return conv2d(values, weight, padding=weight.shape[-1] // 2, **options)

    bottleneck = "conv3.weight" in state
    out = relu(norm("bn1", conv("conv1", x, stride=1 if bottleneck else stride)))

    N, (C, H, W) = len(x) // T, out.shape[1:]
    clips = out.reshape(N, T, C, H, W).permute(0, 2, 1, 3, 4)
    squeezed = clips.mean((3, 4))
    hidden = relu(norm("tam.G.1", squeezed.reshape(N * C, T) @ state["tam.G.0.weight"].T))
    kernel = torch.softmax(hidden @ state["tam.G.3.weight"].T, 1)
    hidden = relu(norm("tam.L.1", conv1d(squeezed, state["tam.L.0.weight"], padding=1)))
    importance = torch.sigmoid(conv1d(hidden, state["tam.L.3.weight"]))
    excited = (clips * importance[..., None, None]).reshape(1, N * C, T, H * W)
    aggregated = conv2d(excited, kernel.reshape(N * C, 1, 3, 1), padding=(1, 0), groups=N * C)
    out = aggregated.reshape(N, C, T, H, W).permute(0, 2, 1, 3, 4).reshape(N * T, C, H, W)

    if bottleneck:
        out = relu(norm("bn2", conv("conv2", out, stride=stride, groups=groups)))
        out = norm("bn3", conv("conv3", out))
    else:
        out = norm("bn2", conv("conv2", out))
    return relu(out + (x if stride == 1 else norm("downsample.1", conv("downsample.0", x, stride=stride))))
