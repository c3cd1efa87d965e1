"""Temporal modules against eager ones written here on `(N, C, T, H, W)`, and against what their papers say of them."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 — its usual name

from tam_triton import layout
from tam_triton.temporal import (
    MODULES,
    TAM,
    TEI,
    ChannelwiseTemporalConv,
    GlobalTAM,
    InflatedConv,
    NonLocal,
    ReversedTAM,
    TAda,
    TemporalAvgPool,
    TemporalShift,
)
from tests.support.networks import normal, randomised
from tests.support.strategies import Problem
from tests.support.temporal import CHANNELS, EACH, WITHOUT_OPERATORS, random_module, small
from tests.support.tolerance import assert_close, nudged

each_module = pytest.mark.parametrize(("name", "impl"), EACH)
each_impl = pytest.mark.parametrize("impl", ["triton", "torch"])
each_layout = pytest.mark.parametrize("memory", ["contiguous", "channels_last"])


def filtered(clips: Tensor, kernel: Tensor) -> Tensor:
    """Each channel along time by a kernel `(C, K)`, or `(N, C, K)`."""
    N, C = clips.shape[:2]
    taps = kernel.expand(N, C, -1).reshape(N * C, 1, -1, 1, 1)
    flat = clips.reshape(1, N * C, *clips.shape[2:])
    return F.conv3d(flat, taps, padding=(taps.shape[2] // 2, 0, 0), groups=N * C).view(clips.shape)


def mean(clips: Tensor) -> Tensor:
    return clips.mean((3, 4))


def adaptive_kernel(module: Any, clips: Tensor) -> Tensor:
    """G."""
    rows = mean(clips).flatten(0, 1)
    hidden = normalized(module.G[1], F.linear(rows, module.G[0].weight)).relu()
    return F.linear(hidden, module.G[3].weight).softmax(-1).unflatten(0, clips.shape[:2])


def importance(module: Any, clips: Tensor) -> Tensor:
    """L, to be broadcast over pixels."""
    hidden = normalized(module.L[1], F.conv1d(mean(clips), module.L[0].weight, padding=1)).relu()
    return F.conv1d(hidden, module.L[3].weight).sigmoid()[..., None, None]


def normalized(layer: Any, x: Tensor) -> Tensor:
    statistics = (layer.running_mean, layer.running_var, layer.weight, layer.bias)
    return F.batch_norm(x, *statistics, layer.training, 0.1, 1e-5)


def by_frame(clips: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """A function of `(N·T, C, H, W)`."""
    y = function(clips.transpose(1, 2).flatten(0, 1))
    return y.unflatten(0, (-1, clips.shape[2])).transpose(1, 2)


def global_se(module: Any, clips: Tensor) -> Tensor:
    pooled = mean(clips).transpose(1, 2)  # (N, T, C): fully connected, frame by frame
    hidden = F.linear(pooled, module.SE[0].weight[..., 0]).relu()
    gates = F.linear(hidden, module.SE[2].weight[..., 0]).sigmoid().transpose(1, 2)
    return filtered(gates[..., None, None] * clips, adaptive_kernel(module, clips))


def shifted(clips: Tensor) -> Tensor:
    """TSM's own code, in short."""
    y, part = torch.zeros_like(clips), clips.shape[1] // 8
    y[:, :part, :-1] = clips[:, :part, 1:]
    y[:, part : 2 * part, 1:] = clips[:, part : 2 * part, :-1]
    y[:, 2 * part :] = clips[:, 2 * part :]
    return y


def non_local(module: Any, clips: Tensor) -> Tensor:
    def projected(conv: Any) -> Tensor:
        return F.conv3d(clips, conv.weight[..., None], conv.bias)

    def pooled(z: Tensor) -> Tensor:
        return F.max_pool3d(z, (1, min(2, z.shape[3]), min(2, z.shape[4]))).flatten(2)

    queries = projected(module.theta)
    scores = queries.flatten(2).transpose(1, 2) @ pooled(projected(module.phi))
    y = (scores.softmax(-1) @ pooled(projected(module.g)).transpose(1, 2)).transpose(1, 2).view_as(queries)
    # Flat: of (3, 16, 2, 1, 1) torch 2.14's batch_norm has wrong gradients on the CPU.
    z = normalized(module.bn, F.conv3d(y, module.out.weight[..., None], module.out.bias).flatten(2))
    return clips + z.view_as(clips)


def tei(module: Any, clips: Tensor) -> Tensor:
    pooled = mean(clips)
    gated = [clips[:, :, t] for t in range(clips.shape[2])]
    for t in range(clips.shape[2] - 1):
        motion = F.linear(pooled[..., t], module.reduce.weight[..., 0])
        motion = motion - F.linear(pooled[..., t + 1], module.reduce_next.weight[..., 0])
        gate = F.linear(motion, module.expand.weight[..., 0]).sigmoid()
        gated[t] = gated[t] * gate[..., None, None]
    return filtered(torch.stack(gated, 2), module.interaction)


def mta(module: Any, clips: Tensor) -> Tensor:
    def spatial(z: Tensor, i: int) -> Tensor:
        return by_frame(z, lambda x: normalized(module.bns[i], F.conv2d(x, module.convs[i].weight, padding=1)).relu())

    weights = [shift.conv.weight[:, 0] for shift in module.shifts]
    a, b, c, d = clips.chunk(4, 1)
    first = spatial(filtered(a, weights[0]), 0)
    second = spatial(filtered(b + first, weights[1]), 1)
    third = spatial(filtered(c + second, weights[2]), 2)
    return torch.cat([first, second, third, filtered(d, weights[3])], 1)


def calibration(module: Any, clips: Tensor) -> Tensor:
    pooled = mean(clips)
    context = F.conv1d(pooled.mean(-1, keepdim=True), module.g.weight, module.g.bias)
    hidden = normalized(module.bn, F.conv1d(pooled + context, module.a.weight, module.a.bias, padding=1)).relu()
    return F.conv1d(hidden, module.b.weight, padding=1) + 1


EAGER: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "tam": lambda m, z: filtered(importance(m, z) * z, adaptive_kernel(m, z)),
    "global": lambda m, z: filtered(z, adaptive_kernel(m, z)),
    "local": lambda m, z: importance(m, z) * z,
    "global_se": global_se,
    "tanet_r": lambda m, z: importance(m, z) * filtered(z, adaptive_kernel(m, z)),
    "avg_pool": lambda m, z: F.pad(z, (0, 0, 0, 0, 1, 1)).unfold(2, 3, 1).mean(-1),
    "shift": lambda m, z: shifted(z),
    "channelwise_conv": lambda m, z: filtered(z, m.weight[:, 0]),
    "conv": lambda m, z: F.conv3d(z, m.weight[..., None], padding=(1, 0, 0)),
    "inflated_conv": lambda m, z: F.conv3d(z, m.weight[..., None], m.bias, padding=(1, 0, 0)),
    "non_local": non_local,
    "tei": tei,
    "tdn_shift": lambda m, z: filtered(z, m.conv.weight[:, 0]),
    "tea_mta": mta,
    "tada": lambda m, z: calibration(m, z)[..., None, None] * z,
}


def eager(name: str, module: Any, x: Tensor) -> Tensor:
    """By the formulation above."""
    clips = x.unflatten(0, (-1, module.num_segments)).transpose(1, 2)
    return EAGER[name](module, clips.contiguous()).transpose(1, 2).flatten(0, 1)


def run(forward: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor) -> list[Tensor]:
    """y, dx, the gradients of the parameters, and the statistics."""
    x = x.detach().clone().requires_grad_()
    y = forward(x)
    dy = torch.empty_like(y).copy_(normal(*y.shape))
    gradients = torch.autograd.grad(y, (x, *module.parameters()), dy)
    statistics = [buffer for _, buffer in module.named_buffers() if buffer.is_floating_point()]
    return [y.detach(), *gradients, *statistics]


@each_module
@pytest.mark.parametrize(
    ("clips", "frames", "size", "memory", "training"),
    [
        (2, 3, (5, 4), "contiguous", True),
        (2, 3, (5, 4), "channels_last", True),
        (2, 3, (5, 4), "channels_last", False),
        (1, 8, (3, 1), "channels_last", True),
        (1, 8, (3, 1), "contiguous", False),
        (3, 2, (1, 1), "contiguous", True),
    ],
    ids=str,
)
def test_equals_an_eager_one(
    name: str, impl: str, clips: int, frames: int, size: tuple[int, int], memory: str, training: bool
) -> None:
    module = random_module(name, impl, frames).train(training)
    x = Problem(N=clips, T=frames, C=CHANNELS, H=size[0], W=size[1], K=3, layout=memory).features()
    twin, wide = copy.deepcopy(module), copy.deepcopy(module).double()
    exact = copy.deepcopy(wide)
    truth = run(lambda t: eager(name, exact, t), exact, x.double())
    results = run(wide, wide, x.double())
    torch.testing.assert_close(results, truth, rtol=1e-9, atol=1e-10)
    y = module(x).detach()
    assert_close(y, truth[0].numpy(), eager(name, twin, x), lambda i: eager(name, twin, nudged(x, i)))
    assert y.stride() == results[0].stride() == layout.empty(y, layout.is_channels_last(x)).stride()
    if name not in WITHOUT_OPERATORS:  # theirs is torch's own choice
        assert results[1].is_contiguous(memory_format=layout.memory_format(layout.is_channels_last(x)))


@each_module
@pytest.mark.parametrize("memory", ["sliced", "cropped", "transposed", "expanded"])
def test_any_other_strides(name: str, impl: str, memory: str) -> None:
    module = random_module(name, impl).eval()
    x = Problem(N=2, T=3, C=CHANNELS, H=4, W=3, K=3, layout=memory).features()
    exact = copy.deepcopy(module).double()
    with torch.no_grad():
        y = module(x)
        assert_close(y, eager(name, exact, x.double()).numpy(), eager(name, module, x))
    assert y.stride() == layout.empty(y, layout.is_channels_last(x)).stride()


@each_module
@each_layout
def test_bfloat16_whole_and_by_autocast(name: str, impl: str, memory: str) -> None:
    problem = Problem(N=2, T=3, C=CHANNELS, H=4, W=3, K=3, layout=memory, dtype=torch.bfloat16)
    x = problem.features()
    module = random_module(name, impl).eval()
    whole = copy.deepcopy(module).bfloat16()
    exact = copy.deepcopy(whole).double()
    with torch.no_grad():
        assert_close(whole(x), eager(name, exact, x.double()).numpy(), eager(name, whole, x))
        with torch.autocast("cpu", torch.bfloat16):
            y = module(x)
            assert_close(y, eager(name, module.double(), x.double()).numpy(), eager(name, module.float(), x).bfloat16())
    assert y.dtype == torch.bfloat16


@each_impl
@each_layout
def test_a_shift_is_a_copy_to_the_bit(impl: str, memory: str) -> None:
    x = Problem(N=2, T=4, C=20, H=3, W=2, K=3, layout=memory).features()  # 20 // 8 = 2 channels each way
    for module in (
        TemporalShift(20, 4, impl=impl),
        ChannelwiseTemporalConv(20, 4, initial="shift", impl=impl),
        MODULES["tdn_shift"](20, 4, impl=impl),
    ):
        expected = by_time(shifted, x, 4)
        assert torch.equal(module(x), expected)
    assert expected[1, :2].equal(x[2, :2])
    assert expected[1, 2:4].equal(x[0, 2:4])


def by_time(function: Callable[[Tensor], Tensor], x: Tensor, num_segments: int) -> Tensor:
    return function(x.unflatten(0, (-1, num_segments)).transpose(1, 2)).transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize(("kernel_size", "frames"), [(1, 4), (5, 3), (3, 1)])
def test_pooling_divides_by_all_taps_at_a_clips_ends(kernel_size: int, frames: int) -> None:
    x = Problem(N=2, T=frames, C=4, H=3, W=2, K=3).features()
    pool = nn.AvgPool3d((kernel_size, 1, 1), stride=1, padding=(kernel_size // 2, 0, 0))
    long = F.pad(x.view(2, frames, -1), (0, 0, 0, 8)).view(2, -1, 4, 3, 2).transpose(1, 2)  # it takes no short clips
    expected = pool(long)[:, :, :frames].transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(TemporalAvgPool(4, frames, kernel_size)(x), expected)


@pytest.mark.parametrize("name", ["non_local", "tada", "channelwise_conv"])
@each_layout
def test_starts_as_the_identity(name: str, memory: str) -> None:
    """Where it is inserted the 2D network's function stays, in training too."""
    x = Problem(N=2, T=3, C=CHANNELS, H=4, W=3, K=3, layout=memory).features()
    module = small(name)
    assert module.training
    assert torch.equal(module(x), x)


def test_an_inflated_convolution_is_the_2d_one_on_a_clip_that_stands_still() -> None:
    conv = nn.Conv2d(6, 4, 1, stride=2, groups=2)
    before = copy.deepcopy(conv.state_dict())
    inflated = InflatedConv(conv, 5)
    assert {name: tuple(weight.shape) for name, weight in inflated.state_dict().items()} == {
        "weight": (4, 3, 3, 1),
        "bias": (4,),
    }
    frame = Problem(N=1, T=1, C=6, H=5, W=4, K=3).features()
    y = inflated(frame.expand(5, -1, -1, -1))
    for t in (1, 2, 3):
        torch.testing.assert_close(y[t], conv(frame)[0])
    bias = conv.bias.detach()[:, None, None]  # type: ignore[union-attr]
    torch.testing.assert_close(y[0] - bias, (conv(frame)[0] - bias) * 2 / 3)
    torch.testing.assert_close(conv.state_dict(), before, rtol=0, atol=0)


@each_layout
@pytest.mark.parametrize("options", [{}, {"stride": 2, "groups": 2}, {"dilation": 2, "bias": False}])
def test_an_inflated_convolution_over_space_is_a_3d_one(options: dict[str, Any], memory: str) -> None:
    """As in basic blocks, whose first convolution is 3×3: the gradients in float64, the layout, what stands still."""
    x = Problem(N=2, T=4, C=6, H=7, W=7, K=3, dtype=torch.float64, layout=memory).features().requires_grad_()
    conv = nn.Conv2d(6, 4, 3, padding=1, **options).double()
    module = InflatedConv(conv, 4)
    y = module(x)
    clips = x.detach().unflatten(0, (2, 4)).transpose(1, 2).contiguous().requires_grad_()
    weight = (conv.weight.detach()[:, :, None] / 3).expand(-1, -1, 3, -1, -1).clone().requires_grad_()
    spread = {name: (1, *getattr(conv, name)) for name in ("stride", "padding", "dilation")}
    expected = F.conv3d(clips, weight, conv.bias, **spread, groups=conv.groups)
    torch.testing.assert_close(y, expected.transpose(1, 2).flatten(0, 1))
    assert y.is_contiguous(memory_format=torch.channels_last if memory == "channels_last" else torch.contiguous_format)
    dy = torch.randn_like(y)
    dx, d_weight = torch.autograd.grad(y, (x, module.weight), dy)
    d_clips, d_cube = torch.autograd.grad(expected, (clips, weight), dy.unflatten(0, (2, 4)).transpose(1, 2))
    torch.testing.assert_close(dx, d_clips.transpose(1, 2).flatten(0, 1))
    torch.testing.assert_close(d_weight, d_cube.flatten(2, 3))
    still = x.detach()[:1].expand(4, -1, -1, -1)
    torch.testing.assert_close(module(still)[1:3], conv(still)[1:3])


@each_impl
def test_a_shared_convolution_after_tada_is_one_calibrated_for_each_frame(impl: str) -> None:
    """W_t = a_t·W, as the public code has it: N·T groups."""
    module: TAda = randomised(TAda(8, 3, impl=impl)).eval()
    conv = nn.Conv2d(8, 6, 3, stride=2, padding=1, groups=2, bias=False)
    x = Problem(N=2, T=3, C=8, H=5, W=5, K=3).features()
    factors = calibration(module, x.unflatten(0, (2, 3)).transpose(1, 2)).transpose(1, 2).flatten(0, 1)  # (N·T, C)
    by_group = factors.view(6, 2, 1, 4).expand(6, 2, 3, 4).reshape(6, 6, 4, 1, 1)  # of each output channel's inputs
    weights = (by_group * conv.weight).flatten(0, 1)
    expected = F.conv2d(x.reshape(1, 48, 5, 5), weights, stride=2, padding=1, groups=12).view(6, 6, 3, 3)
    torch.testing.assert_close(conv(module(x)), expected)


def test_the_last_frame_passes_the_motion_gate() -> None:
    module: TEI = randomised(TEI(16, 4))
    gates, kernel = module.branches(Problem(N=2, T=4, C=16, H=1, W=1, K=3).importance())
    assert torch.equal(gates[..., -1], torch.ones(2, 16))
    assert ((gates[..., :-1] > 0) & (gates[..., :-1] < 1)).all()
    assert torch.equal(kernel[0], module.interaction)
    assert torch.equal(TEI(16, 4).interaction.detach(), TemporalShift(16, 4).kernel)


def test_a_reversed_tam_has_tams_parameters() -> None:
    tam: TAM = randomised(TAM(8, 4)).eval()
    twin = ReversedTAM(8, 4).eval()
    twin.load_state_dict(tam.state_dict())
    x = Problem(N=2, T=4, C=8, H=3, W=2, K=3).features()
    with torch.no_grad():
        assert (twin(x) - tam(x)).abs().max() > 1e-3  # V is another one for each frame
        tam.get_parameter("L.3.weight").zero_()
        twin.load_state_dict(tam.state_dict())
        torch.testing.assert_close(twin(x), tam(x))  # V = 1/2
    assert GlobalTAM(8, 4).load_state_dict(tam.state_dict(), strict=False).missing_keys == []


WIDTHS = [64] * 3 + [128] * 4 + [256] * 6 + [512] * 3
OUTPUTS = [256] * 3 + [512] * 4 + [1024] * 6 + [2048] * 3
INPUTS = [64, *OUTPUTS[:-1]]


@pytest.mark.parametrize(
    ("name", "channels", "total"),
    [
        ("tam", WIDTHS, 25_590_320),
        ("tanet_r", WIDTHS, 25_590_320),
        ("tam", INPUTS, 40_266_864),
        ("tam", OUTPUTS, 44_458_064),
        ("global", WIDTHS, 24_330_960),
        ("local", WIDTHS, 25_586_992),
        ("global_se", WIDTHS, 24_645_328),
        ("avg_pool", WIDTHS, 24_327_632),
        ("shift", INPUTS, 24_327_632),
        ("conv", WIDTHS, 28_100_048),
        ("tei", INPUTS, 30_340_496),
        ("non_local", [512] * 2 + [1024] * 3, 31_686_096),
    ],
)
def test_parameters_of_a_resnet50_with_it(name: str, channels: list[int], total: int) -> None:
    """Beside C2D's 24,327,632 with 400 classes, for T = 8."""
    with torch.device("meta"):
        assert 24_327_632 + sum(count(MODULES[name](width, 8)) for width in channels) == total


def test_parameters_of_an_inflated_resnet50() -> None:
    with torch.device("meta"):
        convs = [nn.Conv2d(before, width, 1, bias=False) for before, width in zip(INPUTS, WIDTHS, strict=True)]
        every = 24_327_632 + sum(count(InflatedConv(conv, 8)) - count(conv) for conv in convs)
    assert every == 32_986_576


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_attention_is_not_scaled_and_follows_the_most_alike() -> None:
    """One position that is like no other attends to itself alone, however narrow the channels."""
    module = NonLocal(2, 2)
    with torch.no_grad():
        for conv in (module.theta, module.phi, module.g):
            conv.weight.copy_(torch.tensor([[1.0, 0.0]])[..., None, None])
        module.out.weight.fill_(1)
        module.bn.weight.fill_(1)
    module.eval()
    x = torch.zeros(2, 2, 1, 1)
    x[0, 0] = 10.0
    y = (module(x) - x) * (1 + module.bn.eps) ** 0.5
    torch.testing.assert_close(y[:, 0, 0, 0], torch.tensor([10.0, 5.0]))
