"""`python -m bench`: every command from its flags to its JSON, and that no time is taken of a wrong result."""

import importlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from bench import agreement, counters, networks, peers, shapes, timing, train
from bench.__main__ import COMMANDS, main
from bench.candidates import PASSES
from bench.options import Options
from tam_triton import TAM, functional
from tam_triton.kernels import tuned
from tam_triton.nets import tanet
from tests.support.options import options_without_text

QUICK = ["--rounds", "3", "--seconds", "0", "--segments", "2", "--threads", "1"]


def bench(folder: Path, *arguments: str) -> dict[str, Any]:
    """One run of the command line; its JSON."""
    file = folder / "new" / "results.json"
    assert main([*arguments, "--out", str(file)]) == 0
    document = json.loads(file.read_text())
    assert document["machine"]["threads"] == torch.get_num_threads() == 1
    assert document["machine"]["torch"] == torch.__version__
    assert document["machine"]["commit"]
    return document


def test_ops_gives_consistent_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All 16 TAMs of a network for tiny frames, where the sum weighs each shape by how often it occurs."""
    document = bench(tmp_path, "ops", *QUICK, "--pixels", "32", "--candidates", "ours", "eager", "--clips", "1")
    rows, sums = document["rows"], document["sums"]
    assert len(rows) == 2 * 7 * len(PASSES) * 3
    assert len(sums) == 2 * len(PASSES) * 3
    for row in rows:
        channels, height, width = map(int, row["shape"].split("×"))
        size = 1 * 2 * channels * height * width * 4
        assert row["traffic_bytes"] == PASSES[row["operator"]] * size
        assert row["time"]["rounds"] >= 3
        assert row["peak_bytes"] is None
        assert math.isclose(row["gigabytes_per_second"] * row["time"]["median"] * 1e6, row["traffic_bytes"])
        training, floor = row["operator"].endswith("_training"), row["candidate"] == "floor"
        assert (row["saved_bytes"] is not None) == (training and not floor)
        assert (row["launches"] is not None) == (not floor)
        fixed = row["operator"] == "shift_training"  # whose gradient needs nothing of X
        assert not training or floor or fixed or row["saved_bytes"] >= size
    for total in sums:
        keys = ("layout", "operator", "candidate")
        group = [row for row in rows if all(row[key] == total[key] for key in keys)]
        assert total["count"] == sum(row["count"] for row in group) == 16
        assert math.isclose(total["time"]["median"], sum(row["count"] * row["time"]["median"] for row in group))
        assert total["traffic_bytes"] == sum(row["count"] * row["traffic_bytes"] for row in group)
        floor = next(s for s in sums if s["candidate"] == "floor" and all(s[key] == total[key] for key in keys[:2]))
        assert math.isclose(total["of_copy"], floor["time"]["median"] / total["time"]["median"])
    assert "peak: not available on the CPU" in capsys.readouterr().out


def test_ops_compiles_traces_and_plots(tmp_path: Path) -> None:
    trace, plot = tmp_path / "trace.json", tmp_path / "plot.png"
    arguments = ["--shapes", "8x3x5", "--operators", "squeeze", "aggregate_training", "--layouts", "nchw"]
    document = bench(tmp_path, "ops", *QUICK, *arguments, "--profile", str(trace), "--plot", str(plot))
    names = ["ours", "compiled_plain", "eager", "compiled_eager"]
    for operator in ("squeeze", "aggregate_training"):
        assert [row["candidate"] for row in document["rows"] if row["operator"] == operator] == [*names, "floor"]
    assert all(row["launches"] is None for row in document["rows"] if "compiled" in row["candidate"])
    events = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert {f"{name}: squeeze at 8x3x5, nchw" for name in names} <= events
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_ops_in_low_precision(tmp_path: Path, dtype: str) -> None:
    arguments = ["--shapes", "16x4x4", "--candidates", "ours", "eager", "--dtype", dtype, "--clips", "2"]
    document = bench(tmp_path, "ops", *QUICK, *arguments)
    assert {row["traffic_bytes"] for row in document["rows"]} == {n * 2 * 2 * 16 * 16 * 2 for n in PASSES.values()}


def test_ops_refuses_to_time_a_wrong_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right, file = peers.excite_and_aggregate, tmp_path / "results.json"
    monkeypatch.setattr(peers, "excite_and_aggregate", lambda x, v, theta: right(x, v, theta.flip(-1)))
    arguments = ["--shapes", "8x4x4", "--operators", "aggregate", "--candidates", "ours", "eager", "--out", str(file)]
    with pytest.raises(agreement.DisagreementError, match=r"'ours' is off by .* nothing was timed"):
        main(["ops", *QUICK, *arguments])
    assert not file.exists()


def test_model_compares_networks_of_equal_weights(tmp_path: Path) -> None:
    arguments = ["--depth", "18", "--pixels", "64", "--layouts", "channels_last"]
    rows = bench(tmp_path, "model", *QUICK, *arguments)["rows"]
    assert [(row["mode"], row["network"]) for row in rows] == [
        (mode, name) for mode in ("evaluation", "training") for name in ("C2D", "TANet", "TANet, eager")
    ]
    for row in rows:
        plain = next(r for r in rows if r["network"] == "C2D" and r["mode"] == row["mode"])
        assert math.isclose(row["of_c2d"], row["time"]["median"] / plain["time"]["median"])
        assert math.isclose(row["clips_per_second"] * row["time"]["median"], 1e3)
        assert row["target"] is None  # set for ResNet-50 at 224 pixels alone
    saved = {row["network"]: row["saved_bytes"] for row in rows if row["mode"] == "training"}
    assert saved["C2D"] < saved["TANet"] < saved["TANet, eager"]


def test_model_refuses_to_time_a_wrong_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks.EagerTAM, "forward", lambda self, x: x)
    with pytest.raises(agreement.DisagreementError, match="'TANet' is off by"):
        main(["model", *QUICK, "--depth", "18", "--pixels", "32", "--modes", "evaluation"])


def test_train_takes_a_step_apart(tmp_path: Path) -> None:
    arguments = ["--depth", "18", "--pixels", "64", "--layouts", "nchw", "--clips", "2"]
    (ours,) = bench(tmp_path, "train", *QUICK, *arguments)["steps"]
    (eager,) = bench(tmp_path, "train", *QUICK, *arguments, "--eager")["steps"]
    for step in (ours, eager):
        parts = [step[part]["median"] for part in ("forward", "backward", "optimizer")]
        assert max(parts) < step["total"]["median"]
        assert 0 < step["tam_share"] < 1
        assert math.isclose(step["clips_per_second"] * step["total"]["median"], 2e3)
    assert ours["saved_bytes"] < eager["saved_bytes"]


def test_hooks_part_a_tam_from_the_norm_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Triton runs, what `bench train` times of TAM is not what the undisturbed step has of it: it says so."""
    fused = mock.Mock(wraps=functional.normalize_squeeze_and_aggregate)
    monkeypatch.setattr(functional, "normalize_squeeze_and_aggregate", fused)
    module, norm = TAM(4, 2, impl="triton").train(), nn.BatchNorm2d(4).train()
    x = torch.randn(4, 4, 3, 3, requires_grad=True)
    module.activated(x, norm, nn.ReLU())
    assert fused.call_count == 1
    stopwatch = train.Stopwatch(module, timing.clock("cpu"))
    module.activated(x, norm, nn.ReLU()).sum().backward()
    assert fused.call_count == 1
    assert all(spent > 0 for spent in stopwatch.take())

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert train.footnotes(train.Train(device="cuda"))[:1] == [train.BY_ITSELF]
    assert train.BY_ITSELF not in train.footnotes(train.Train(device="cuda", eager=True))
    assert train.BY_ITSELF not in train.footnotes(train.Train(device="cpu"))


def test_eager_twin_shares_its_weights() -> None:
    network = tanet(18, 5, 2)
    twin = networks.eager_twin(network)
    for own, shared in zip(network.state_dict().values(), twin.state_dict().values(), strict=True):
        assert own.data_ptr() == shared.data_ptr()
    assert sum(isinstance(module, networks.EagerTAM) for module in twin.modules()) == 8
    assert not any(isinstance(module, networks.EagerTAM) for module in network.modules())


def test_eager_tam_never_runs_the_fused_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """In evaluation TAM takes the BatchNorm and ReLU before it into its own kernels; the peer may not."""
    module = networks.EagerTAM(8, 2, impl="triton").eval()
    x, norm = torch.randn(4, 8, 3, 3), torch.nn.BatchNorm2d(8).eval()
    monkeypatch.setattr(peers, "tam", lambda module, x: x + 7)
    with torch.no_grad():
        assert torch.equal(module.activated(x, norm, torch.nn.ReLU()), norm(x).relu() + 7)


def test_counters_count() -> None:
    x = torch.randn(4, 8, requires_grad=True)
    weight = torch.randn(8, 8, requires_grad=True)

    def run() -> Tensor:
        y = (x @ weight).exp()  # saves x, the weight, and the result; its view is the same storage
        return (y.view(-1) * y.view(-1)).sum()

    assert counters.saved_bytes(run) == (32 + 64 + 32) * 4
    assert counters.saved_bytes(run, [weight]) == (32 + 32) * 4
    assert counters.launches(run, "cpu") == 4  # mm, exp, mul, sum
    assert counters.peak_bytes(run, "cpu") is None


def test_interleaved_runs_in_turn_warm_and_long_enough() -> None:
    calls: list[str] = []
    timing.interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, "cpu", 3)
    assert "".join(calls) == "ab" + "aabb" + "bbaa" + "aabb"
    times = timing.interleaved({"a": lambda: None}, "cpu", 1, seconds=0.01)
    assert times["a"].rounds > 100


def test_marks_lie_in_the_stream_of_the_device_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """In that of the current device, if it is another, nothing would lie between them."""
    event = mock.create_autospec(torch.cuda.Event)
    monkeypatch.setattr(torch.cuda, "Event", event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: f"stream of {device}")
    mark = timing.clock("cuda:1").mark()
    event.assert_called_once_with(enable_timing=True)
    mark.record.assert_called_once_with("stream of cuda:1")


def test_shapes() -> None:
    assert sum(shape.count for shape in shapes.tanet50()) == 16
    assert shapes.parse("64x56x28").features(1, 2, torch.float32, "nchw", "cpu").shape == (2, 64, 56, 28)
    module_inputs: list[tuple[int, ...]] = []
    network = tanet(50, 5, 1).eval()
    for module in network.modules():
        if isinstance(module, TAM):
            module.register_forward_pre_hook(lambda _, inputs: module_inputs.append(tuple(inputs[0].shape[1:])))
    with torch.no_grad():
        network(torch.zeros(1, 3, 72, 72))
    listed = [(s.channels, s.size, s.size) for s in shapes.tanet50(72) for _ in range(s.count)]
    assert sorted(listed) == sorted(module_inputs)


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in COMMANDS)
    assert main(["nothing"]) == 2
    assert "got command 'nothing'" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_text(name: str) -> None:
    assert options_without_text(getattr(importlib.import_module(f"bench.{name}"), COMMANDS[name][0])) == []


def test_tuned_launches_are_for_the_device_that_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And not for the one that is current before it is made so."""
    entered: list[torch.device] = []

    @contextmanager
    def current(device: torch.device) -> Iterator[None]:
        entered.append(device)
        yield
        entered.pop()

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device", current)
    read: list[torch.device] = []
    monkeypatch.setattr(tuned, "read", lambda path: read.extend(entered))
    Options(device="cuda:1", tuned=tmp_path / "tuned.json")
    assert read == [torch.device("cuda:1")]


def test_a_step_is_measured_at_least_so_long(tmp_path: Path) -> None:
    arguments = ["--depth", "18", "--pixels", "32", "--layouts", "nchw", "--clips", "1", "--segments", "2"]
    (step,) = bench(tmp_path, "train", "--rounds", "1", "--seconds", "1", "--threads", "1", *arguments)["steps"]
    assert step["total"]["rounds"] * step["total"]["median"] > 500


WITH_TAPS = ("ops", "profile", "static", "predict", "tune --out tuned.json", "execute")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ops", "--shapes", "64x56"], "shapes: got '64x56', expected CxHxW"),
        (["ops", "--rounds", "0"], "rounds: got 0, expected at least 1"),
        *(
            ([*words.split(), "--kernel-size", "4"], "kernel_size: got 4, expected an odd number")
            for words in WITH_TAPS
        ),
        (["ops", "--plot", "picture.jpg"], "plot: got picture.jpg, expected a name that ends in .png"),
        (["ops", "--device", "gpu"], "device: got 'gpu', expected cpu, cuda"),
        (["device", "--out", "out", "--device", "gpu"], "device: got 'gpu', expected cpu, cuda"),
        (["ops", "--tuned", "tuned.json", "--device", "cpu"], "tuned: got device 'cpu', expected a GPU"),
        (["stream", "--systems", "c2d", "tms"], "system: got 'tms', expected one of"),
        (["stream", "--systems", "slowfast_8x8", "--segments", "32"], "systems: got 'slowfast_8x8', whose first"),
        (["stream", "--systems", "c2d", "--stages", "res5"], "stages: got ('res5',) for c2d"),
        (["profile", "step", "--backbone", "resnet17"], "backbone: got 'resnet17', expected one of"),
        (["model", "--pixels", "8"], "pixels: got 8, expected at least 32"),
        (["model", "--graphs"], "graphs: got device 'cpu', expected a GPU"),
    ],
)
def test_wrong_options_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    printed = " ".join(capsys.readouterr().err.replace("│", " ").split())  # out of the box that tyro draws
    assert message in printed


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_ops_on_a_gpu(tmp_path: Path, layout: str) -> None:
    """A shape that is replayed from a CUDA graph and one that is not."""
    shapes_ = ["--shapes", "64x7x7", "64x112x112", "--clips", "4", "--segments", "8"]
    arguments = ["--rounds", "3", "--threads", "1", "--dtype", "float16", "--layouts", layout]
    document = bench(tmp_path, "ops", *arguments, *shapes_, "--device", "cuda", "--profile", str(tmp_path / "t.json"))
    measured = [row for row in document["rows"] if row["candidate"] != "floor"]
    assert len(measured) == 2 * len(PASSES) * 4
    for row in measured:
        assert row["launches"] >= 1
        assert row["peak_bytes"] > 0
    assert document["machine"]["cuda"]


@pytest.mark.gpu
def test_networks_on_a_gpu(tmp_path: Path) -> None:
    arguments = ["--depth", "18", "--pixels", "64", "--device", "cuda", "--dtype", "float16"]
    rows = bench(tmp_path, "model", *QUICK, *arguments)["rows"]
    rows += bench(tmp_path, "model", *QUICK, *arguments, "--graphs")["rows"]
    steps = bench(tmp_path, "train", *QUICK, *arguments)["steps"]
    assert all(entry["peak_bytes"] > 0 for entry in rows + steps)


def test_a_stream_of_each_system_is_timed(tmp_path: Path) -> None:
    """By how many frames are computed again, beside the window; of C2D they are never more than the new one."""
    arguments = ["--systems", "c2d", "tsm", "--backbone", "resnet18", "--pixels", "32", "--recompute", "1", "2"]
    rows = bench(tmp_path, "stream", *QUICK, *arguments)["rows"]
    assert [(row["system"], row["recompute"]) for row in rows] == [(s, r) for s in ("c2d", "tsm") for r in (None, 1, 2)]
    for row in rows:
        window = next(one for one in rows if (one["system"], one["recompute"]) == (row["system"], None))
        assert math.isclose(row["of_window"], row["gmacs"] / window["gmacs"])
        assert math.isclose(row["time_of_window"], row["time"]["median"] / window["time"]["median"])
    shares = {(row["system"], row["recompute"]): row["of_window"] for row in rows}
    assert shares["c2d", 1] == shares["c2d", 2] == 0.5
    assert 0.5 < shares["tsm", 1] < shares["tsm", 2] <= 1
    file = str(tmp_path / "new" / "results.json")
    assert main(["compare", file, file]) == 0
