"""`python -m bench cost`: what it counts by formulas against counts by hand, and published figures."""

import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from torchvision.models import get_model_weights

import tam_triton
from bench.__main__ import main
from bench.cost import OF_THE_PAPER, Cost, Row, measure
from bench.published import PUBLISHED
from bench.static import batch_norm, branch_weights
from tam_triton import TAM, flops, functional, ops
from tam_triton.nets import list_models
from tam_triton.nets.flops import Counts, count

N, T, C, H, W, K, ALPHA, BETA = 2, 4, 8, 3, 5, 3, 2, 4
X = N * T * C * H * W  # elements of a feature map
LINEARS = N * C * (T * ALPHA * T + ALPHA * T * K)
CONVOLUTIONS = N * T * (3 * C * C // BETA + C // BETA * C)
OF_BRANCHES = N * C * (ALPHA * T + K) + N * T * (C // BETA + C)  # elements of their results


def features(device: str, **options: Any) -> Tensor:
    return torch.ones(N * T, C, H, W, device=device, **options)


@functools.cache
def one(system: str, backbone: str = "resnet50", **options: Any) -> Row:
    (row,) = measure(Cost((system,), (backbone,), **options))
    return row


def counted(row: Row) -> Counts:
    assert row.counts is not None, row.refusal
    return row.counts


@pytest.mark.parametrize(("device", "impl"), [("meta", None), ("cpu", "torch"), ("cpu", "triton")])
@pytest.mark.parametrize("training", [False, True])
def test_a_tam_counts_as_by_hand(device: str, impl: str | None, training: bool) -> None:
    """Whatever computes it, and with or without a gradient to come."""
    module = TAM(C, T, K, ALPHA, BETA, impl=impl).to(device).train(training)
    with torch.set_grad_enabled(training):
        counts = count(lambda: module(features(device)))
    assert counts.macs == K * X + LINEARS + CONVOLUTIONS
    assert counts == Counts(CONVOLUTIONS, LINEARS, 0, K * X, N * C * T + X + OF_BRANCHES)


@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize("norm", [None, batch_norm(torch.ones(1, C))])
def test_folded_layers_count_as_the_layers(impl: str, norm: list[Tensor] | None) -> None:
    """The operator of both branches has the MACs of their layers, and a BatchNorm before TAM none."""
    branches = branch_weights(torch.ones(N, C, T), torch.ones(N, C, K), ALPHA, BETA)
    counts = count(lambda: functional.evaluate(features("cpu"), *branches, T, 1e-5, norm=norm, impl=impl))
    assert counts.macs == counts.aggregation == K * X + LINEARS + CONVOLUTIONS
    assert counts.activations == N * C * T + X + N * C * (T + K)


@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_gradients_count_as_the_forward(impl: str) -> None:
    """dX is an aggregation, and the band that dV and dΘ come from has as many products."""
    x, v, theta = features("cpu", requires_grad=True), torch.ones(N, C, T), torch.ones(N, C, K)
    v.requires_grad_()
    forward = count(lambda: tam_triton.aggregate(x, v, theta, impl=impl))
    both = count(lambda: tam_triton.aggregate(x, v, theta, impl=impl).sum().backward())
    assert forward == Counts(aggregation=K * X, activations=X)
    assert both.aggregation == 3 * K * X


def test_any_flop_counter_of_torchs_knows_the_operators() -> None:
    with FlopCounterMode(display=False) as counter:
        torch.ops.tam_triton.aggregate(features("meta"), None, torch.ones(C, 5, device="meta"), T)
    assert counter.get_total_flops() == 2 * 5 * X


def test_an_operator_without_a_formula_is_not_counted_as_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(flops.FORMULAS) == set(ops.OPERATORS)
    monkeypatch.delitem(flop_registry, torch.ops.tam_triton_plain.squeeze)
    with pytest.raises(ValueError, match=r"operators: no formula for tam_triton_plain\.squeeze"):
        count(lambda: tam_triton.squeeze(features("meta"), T))


def test_layers_of_torch_count_by_what_they_are() -> None:
    conv, linear = nn.Conv2d(4, 6, 3, padding=1, groups=2, device="meta"), nn.Linear(6, 5, device="meta")

    def run() -> Tensor:
        y = linear(conv(torch.empty(2, 4, 7, 7, device="meta")).mean((2, 3)))
        return y[:, None] @ y[:, :, None]

    with torch.no_grad():
        assert count(run) == Counts(
            convolutions=2 * 6 * 49 * 2 * 9, linears=2 * 6 * 5, products=2 * 5, activations=2 * 6 * 49 + 2 * 5 + 2
        )


def test_tanet_and_c2d_on_resnet_50() -> None:
    tanet, c2d = one("tanet"), one("c2d")
    assert (tanet.parameters, c2d.parameters) == (25_590_320, 24_327_632)
    assert round(counted(tanet).macs / 1e9, 4) == 42.7835
    assert round(counted(tanet).aggregation / 1e9, 4) == 0.0598
    assert round(counted(c2d).macs / 1e9, 2) == 42.71
    assert counted(c2d).aggregation == 0
    at_224 = counted(one("c2d", frames=1, pixels=224, num_classes=1000))
    assert round(at_224.macs / 1e9, 2) == 4.09  # ResNet-50 by torchvision; pycls has 11.1 M activations for it
    assert round((at_224.activations - 1000) / 1e6, 1) == 11.1


@pytest.mark.parametrize("setting", PUBLISHED, ids=lambda setting: "-".join(map(str, setting[:3])))
def test_published_figures(setting: Any) -> None:
    """Parameters to the unit where they are published so, else to what is printed; MACs within 1 %."""
    system, frames, num_classes, stages = setting
    row = one(system, frames=8 if system.startswith("slowfast") else frames, num_classes=num_classes, stages=stages)
    known = row.published
    assert known is PUBLISHED[setting]
    assert row.frames == frames
    assert row.parameters is not None
    exact = known.parameters % 1000 != 0
    assert abs(row.parameters - known.parameters) <= (0 if exact else 2e-3 * known.parameters)
    assert known.of_parameters(row.parameters) == "+0" or not exact
    share = known.of_macs(counted(row))
    assert (share is None) == (known.macs is None)
    assert share is None or abs(share) < 0.01


@pytest.mark.parametrize(
    "backbone",
    [*OF_THE_PAPER, "resnet18", "convnext_tiny", "efficientnet_b0", "regnet_y_400mf", "mobilenet_v3_small"],
)
def test_backbones_cost_what_torchvision_says(backbone: str) -> None:
    """One frame of the size and the classes of its weights; RegNets cannot be built on meta, and are moved there."""
    said = get_model_weights(backbone).DEFAULT.meta
    pixels = 299 if backbone == "inception_v3" else 224
    row = one("c2d", backbone, frames=1, pixels=pixels, num_classes=1000)
    assert round(counted(row).macs / 1e9, 3) == said["_ops"]
    auxiliary = 27_161_264 - 23_834_568 if backbone == "inception_v3" else 0  # the head for training, left out
    assert row.parameters == said["num_params"] - auxiliary


def test_every_system_counts_on_its_backbone() -> None:
    for row in measure(Cost(backbones=("resnet50",), pixels=32)):
        assert counted(row).macs > 0
        assert row.published is None  # these are at 256 pixels


def test_the_page_prints_what_is_counted() -> None:
    """A row of bench/README.md is a system, with its stages if not in all; or a backbone, with C2D and TANet."""
    page = (Path(__file__).parents[2] / "bench/README.md").read_text(encoding="utf-8")
    section = page.partition("## What the systems cost")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in re.findall(r"^\| `.*$", section, re.MULTILINE)]
    systems, backbones = [row for row in rows if len(row) == 8], [row for row in rows if len(row) == 5]
    assert {name for first, *_ in systems for name in re.findall("`(.*?)`", first)} == set(list_models())
    assert [first.strip("`") for first, *_ in backbones] == list(OF_THE_PAPER)
    for first, parameters, _, macs, aggregation, _, difference, activations in systems:
        row = one(first.split("`")[1], stages=tuple(re.findall(r"res\d", first)))
        counts, share = counted(row), row.published and row.published.of_macs(counted(row))
        assert parameters == f"{row.parameters:,}"
        assert macs == f"{counts.macs / 1e9:.4f}"
        assert aggregation == (f"{counts.aggregation / 1e9:.4f}" if counts.aggregation else "")
        assert difference == ("" if share is None else f"{share:+z.2%}")
        assert activations == f"{counts.activations / 1e6:.1f}"
    for first, *figures in backbones:
        pair = [one(system, first.strip("`")) for system in ("c2d", "tanet")]
        assert figures == [text for row in pair for text in (f"{row.parameters:,}", f"{counted(row).macs / 1e9:.3f}")]


def test_stages_in_any_order_and_all_of_them() -> None:
    assert one("tanet", stages=("res5", "res4")).published == PUBLISHED[("tanet", 8, 400, ("res4", "res5"))]  # type: ignore[index]
    assert one("tanet", stages=("res5", "res4", "res3", "res2")).published == one("tanet").published


def test_a_refusal_is_a_line_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "cost.json"
    arguments = ["--systems", "c2d", "nl_c2d", "slowfast_4x16", "--backbones", "inception_v3", "--out", str(file)]
    assert main(["cost", "--pixels", "96", *arguments]) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if "inception_v3" in line]
    assert [line.split()[0] for line in printed] == ["c2d", "nl_c2d", "slowfast_4x16"]
    assert "refused" not in printed[0]
    assert "refused: backbone: got Inception3, expected a ResNet" in printed[1]
    assert "refused: backbone: got 'inception_v3' for slowfast_4x16" in printed[2]
    rows = json.loads(file.read_text())["rows"]
    assert [row["counts"] is None for row in rows] == [False, True, True]
    assert "Kernel size can't be greater" in (one("c2d", "inception_v3", pixels=32).refusal or "")


def test_patterns_choose() -> None:
    rows = list(measure(Cost(("i3d*", "c2d"), ("resnet[15]*", "resnet18"), pixels=32)))
    systems = [name for name in list_models() if name == "c2d" or name.startswith("i3d")]
    assert [row.system for row in rows] == systems * (len(rows) // len(systems))
    assert [row.backbone for row in rows[:: len(systems)]] == ["resnet18", "resnet50", "resnet101", "resnet152"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--frames", "0"], "frames: got 0, expected at least 1"),
        (["--pixels", "31"], "pixels: got 31, expected at least 32"),
        (["--num-classes", "0"], "num_classes: got 0, expected at least 1"),
        (["--systems", "tanett"], "systems: got 'tanett', which no name matches, expected one of c2d,"),
        (["--backbones", "vgg*"], "backbones: got 'vgg*', which no name matches, expected one of convnext_base,"),
        (["--systems"], "systems: got none, expected at least one name or pattern"),
        (["--stages", "res1"], "res2"),
    ],
)
def test_wrong_options_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["cost", *arguments])
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
