"""`python -m bench profile`: what is counted of operators and kernels, and what a GPU's trace is read as."""

import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import triton.profiler
from torch import Tensor
from torch.nn import functional
from triton import knobs
from triton.compiler.compiler import LazyDict

from bench import kineto, plots, profile
from bench.__main__ import main
from bench.dispatched import LABEL, Operation, Stated, operations, stating
from bench.kineto import Kernel

QUICK = ["--rounds", "3", "--seconds", "0", "--segments", "2", "--clips", "1", "--threads", "1"]
KILOBYTE = 256 * 4


def one(run: Any) -> Operation:
    (found,) = operations(run, "cpu")
    return found


def values(size: int = 256) -> Tensor:
    return torch.ones(size)


def test_bytes_are_what_is_read_and_written() -> None:
    x, y, wide = values(), values(), values(64).double()
    assert one(lambda: x + y).moved == 3 * KILOBYTE
    assert one(lambda: x + x).moved == 2 * KILOBYTE
    assert one(lambda: x.add_(y)).moved == 3 * KILOBYTE  # x is read and written
    assert one(lambda: torch.add(x, y, out=y)).moved == 3 * KILOBYTE
    assert one(lambda: torch._foreach_add_([x, y], 1.0)).moved == 4 * KILOBYTE
    assert one(lambda: torch.add(x, x, out=y)).moved == 2 * KILOBYTE  # y is written alone
    for filled in (y.zero_, y.uniform_, lambda: y.fill_(2.0), lambda: torch._foreach_zero_([y])):
        assert one(filled).moved == KILOBYTE
    assert one(lambda: y.copy_(x)).moved == one(lambda: torch._foreach_copy_([y], [x])).moved == 2 * KILOBYTE
    assert one(lambda: torch.zeros_like(x)).moved == one(lambda: x.new_ones(256)).moved == KILOBYTE
    maps = values().view(1, 1, 16, 16).requires_grad_()
    pooled = functional.max_pool2d(maps, 2)
    dy = torch.ones_like(pooled)
    backward = one(lambda: torch.autograd.grad(pooled, maps, dy))
    assert backward.moved == KILOBYTE + 64 * 4 + 64 * 8  # dX, of dY and where each maximum was, and not X
    with torch.inference_mode():
        assert one(lambda: wide.type_as(x)).moved == 64 * (8 + 4)
    narrow = values(1).expand(256)
    assert one(lambda: narrow + x).moved == 2 * KILOBYTE + 4
    assert one(lambda: torch.empty_like(x)).moved == 0
    assert operations(lambda: x.view(16, 16), "cpu") == []
    product = one(lambda: x.view(16, 16) @ y.view(16, 16))
    assert (product.name, product.flops) == ("aten::mm", 2 * 16**3)


def test_a_step_is_taken_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, trace, memory = (tmp_path / name for name in ("new/out.json", "new/trace.json", "new/memory.png"))
    network = ["--backbone", "resnet18", "--system", "tsm", "--pixels", "32"]
    files = ["--out", str(out), "--profile", str(trace), "--memory", str(memory)]
    assert main(["profile", "step", *QUICK, *network, *files, "--rows", "4"]) == 0
    printed = capsys.readouterr().out
    rows = {row["name"]: row for row in json.loads(out.read_text())["rows"]}
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1)
    assert rows["aten::convolution"]["launches"] == 20
    assert rows["aten::convolution_backward"]["teraflops"] > 0
    assert len([line for line in printed.splitlines() if "aten::" in line]) == 4 + 1  # and the peak's
    assert "MiB at the peak, in aten::" in printed
    assert f"{len(rows) - 4} more" in printed
    names = {event["name"] for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"phase forward", "phase backward", "phase optimizer", f"{LABEL}aten::convolution", "[memory]"} <= names
    assert memory.read_bytes().startswith(b"\x89PNG")


def test_results_can_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By `bench compare`, which must find every row."""
    out = str(tmp_path / "out.json")
    assert main(["profile", "squeeze", "--shape", "8x4x4", *QUICK, "--out", out]) == 0
    assert main(["compare", out, out]) == 0
    rows = json.loads(Path(out).read_text())["rows"]
    assert f"{len(rows) + 1} times in both" in capsys.readouterr().out


def event(cat: str, name: str, ts: float, dur: float = 1.0, tid: int = 1, **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "pid": 0, "tid": tid, "ts": ts, "dur": dur, "args": args}


def test_kernels_are_those_of_the_innermost_operator_of_their_thread() -> None:
    events = [
        event("kernel", "second", 60, 7.0, tid=7, correlation=2),
        event("kernel", "first", 50, 3.0, tid=7, correlation=1),
        event("gpu_memset", "Memset (Device)", 70, 2.0, tid=7, correlation=3),
        event("user_annotation", f"{LABEL}outer", 0, 10),
        event("user_annotation", f"{LABEL}inner", 2, 3),
        event("user_annotation", f"{LABEL}other thread", 2, 3, tid=2),
        event("user_annotation", "a user's", 2.5, 1),
        event("cuda_driver", "cuLaunchKernelEx", 3, correlation=1),
        event("cuda_runtime", "cudaLaunchKernel", 8, correlation=2),
    ]
    assert kineto.kernels(events, LABEL) == [
        Kernel("first", 3.0, "inner"),
        Kernel("second", 7.0, "outer"),
        Kernel("Memset (Device)", 2.0, None),
    ]


def test_bytes_of_kernels_are_stated_or_those_of_an_operator_with_one_kernel() -> None:
    ran = [
        Kernel("ours", 10.0, "tam_triton::squeeze"),
        Kernel("add", 5.0, "aten::add"),
        Kernel("ours", 20.0, "tam_triton::squeeze"),
        Kernel("transform", 1.0, "aten::convolution"),
        Kernel("gemm", 9.0, "aten::convolution"),
    ]
    called = [
        Operation("tam_triton::squeeze", 1, None, None),
        Operation("aten::add", 5_000_000, None, None),
        Operation("aten::convolution", 7, 8, None),
    ]
    stated = [Stated("ours", "8×8", 1_000_000, 30), Stated("ours", "8×8", 3_000_000, 50)]
    rows = {row.name: row for row in profile.table([profile.of_kernels(ran, called, stated)] * 2, copy=2000.0)}
    assert list(rows) == ["ours 8×8", "gemm", "add", "transform"]
    ours = rows["ours 8×8"]
    assert (ours.launches, ours.time.median, ours.moved) == (2, pytest.approx(0.03), 4_000_000)
    assert ours.gigabytes_per_second == pytest.approx(4e6 / 30e-6 / 1e9)
    assert ours.of_copy == pytest.approx(4e6 / 30e-6 / 2e12)
    assert ours.teraflops == pytest.approx(80 / 30e-6 / 1e12)
    assert ours.share == pytest.approx(30 / 45)
    assert rows["add"].moved == 5_000_000
    assert rows["gemm"].moved is None  # two kernels of one operator


def test_launches_state_themselves_while_they_are_asked() -> None:
    def launched() -> LazyDict:
        metadata = LazyDict({"name": "squeeze_kernel", "stream": 0})
        metadata.add(lambda: {"name": "squeeze_kernel 8×8", "bytes": 12, "flops32": 3}, ())
        return metadata

    with stating() as stated:
        knobs.runtime.launch_enter_hook(launched())
        knobs.runtime.launch_enter_hook(LazyDict({"name": "a user's"}))
    knobs.runtime.launch_enter_hook(launched())
    assert stated == [Stated("squeeze_kernel", "8×8", 12, 3), Stated("a user's", "", None, None)]


def test_memory_is_that_of_the_device(tmp_path: Path) -> None:
    def memory(ts: float, size: int, kind: int) -> dict[str, Any]:
        return {"ph": "i", "name": "[memory]", "ts": ts, "args": {"Bytes": size, "Device Type": kind}}

    events = [memory(5, -100, 1), memory(3, 300, 1), memory(4, 7, 0), event("user_annotation", f"{LABEL}inner", 2, 2)]
    found = list(kineto.allocations(events, LABEL, on_gpu=True))
    assert [(one.nbytes, one.within) for one in found] == [(300, "inner"), (-100, None)]
    assert [one.nbytes for one in kineto.allocations(events, LABEL, on_gpu=False)] == [7]


def with_proton(folder: Path, **others: Any) -> profile.Profile:
    """On the CPU, which no command line gets."""
    small: dict[str, Any] = {"shape": "8x4x4", "clips": 1, "segments": 2, "rounds": 1, "seconds": 0, "threads": 1}
    options = profile.Profile(subject="squeeze", device="cpu", **small, **others)
    object.__setattr__(options, "proton", folder / "v1.0" / "step.hatchet")
    (folder / "v1.0").mkdir()
    return options


def process_id(options: profile.Profile) -> None:
    assert options.proton is not None
    options.proton.write_text(str(os.getpid()))


def test_proton_has_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here torch.profiler may have been used, and CUPTI has one subscriber a process."""
    monkeypatch.setattr(profile, "profiled_by_proton", process_id)
    profile.write_proton(options := with_proton(tmp_path))
    assert options.proton is not None
    assert int(options.proton.read_text()) != os.getpid()


def test_proton_is_started_as_its_release_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the names of its own arguments; the call is warm, and no other one is seen."""
    seen: list[str] = []
    options = with_proton(tmp_path)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(profile, "subject", lambda _: lambda: seen.append("call"))
    start = mock.create_autospec(triton.profiler.start, side_effect=lambda *_, **__: seen.append("start"))
    monkeypatch.setattr(triton.profiler, "start", start)
    monkeypatch.setattr(triton.profiler, "finalize", mock.create_autospec(triton.profiler.finalize))
    with pytest.raises(RuntimeError, match=r"proton: .*step\.hatchet was not written"):
        profile.profiled_by_proton(options)
    assert seen == ["call", "start", "call"]
    start.assert_called_once_with(str(tmp_path / "v1.0" / "step"), hook="triton")


@pytest.mark.parametrize("where", [(profile, "write_proton"), (plots, "draw_memory")])
def test_what_another_file_is_refused_for_costs_no_results(
    where: tuple[Any, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(*where, mock.Mock(side_effect=RuntimeError("no more")))
    files = {"out": tmp_path / "out.json", "profile": tmp_path / "trace.json", "memory": tmp_path / "memory.png"}
    with pytest.raises(RuntimeError, match="no more"):
        profile.run(with_proton(tmp_path, **files))
    assert json.loads((tmp_path / "out.json").read_text())["rows"]
    assert (tmp_path / "trace.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["aggregat"], "subject: got 'aggregat', expected one of"),
        (["aggregate", "--shape", "64"], "expected CxHxW"),
        (["step", "--memory", "m.pdf"], "memory: got m.pdf, expected a name that ends in .png"),
        (["step", "--proton", "p.json"], "proton: got p.json, expected a name that ends in .hatchet"),
        (["step", "--proton", "p.hatchet", "--device", "cpu"], "expected a GPU"),
        (["aggregate", "--kernel-size", "2"], "kernel_size: got 2, expected an odd number"),
    ],
)
def test_wrong_options_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["profile", *arguments])
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.gpu
def test_kernels_of_a_gpu(tmp_path: Path) -> None:
    """This library's with what they state, torch's with what their operator moves; memory, and Proton's file."""
    out, memory, proton = (tmp_path / name for name in ("out.json", "memory.png", "step.hatchet"))
    arguments = ["--device", "cuda", "--backbone", "resnet18", "--pixels", "64", "--rounds", "3", "--seconds", "0"]
    files = ["--out", str(out), "--memory", str(memory), "--proton", str(proton)]
    assert main(["profile", "step", *arguments, *files, "--clips", "1"]) == 0
    rows = json.loads(out.read_text())["rows"]
    ours = [row for row in rows if row["name"].startswith("banded_kernel ")]
    assert ours
    assert all(row["moved"] > 0 and row["operator"].startswith("tam_triton::") for row in ours)
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert memory.exists()
    assert proton.exists()
