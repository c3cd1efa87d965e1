"""The model of a multiprocessor on traces whose time is known by hand; devices and options as they are read."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

from bench import predict
from bench.sm import devices, model
from bench.sm.facts import asked_ahead
from bench.sm.sass import NO_SCOREBOARD
from bench.sm.walk import Access
from tests.bench.test_sass import instruction
from tests.bench.test_static import run_bench

H100 = devices.DEVICES["sm_90"]
LATENCY, L2 = 800, 280


def step(pipe: str = "ALU", kind: int = model.PLAIN, **fields: Any) -> model.CStep:
    """One instruction that nothing waits for."""
    usual = {
        "interval": model.INTERVALS[pipe],
        "stall": 1,
        "write": NO_SCOREBOARD,
        "read": NO_SCOREBOARD,
        "latency": 30,
    }
    return model.CStep(pipe=model.NUMBERS[pipe], kind=kind, **(usual | fields))


def load(sectors: int = 16, board: int = 0, kind: int = model.LOAD_DRAM, **fields: Any) -> model.CStep:
    """Of 128 bits by each lane: 512 bytes, four lines."""
    size = sectors * 32
    return step("MEMORY", kind, write=board, unit=max(1, sectors // 4), l2=size, dram=size, latency=38, **fields)


def cycles(
    *warps: list[model.CStep], programs: int = 1, slots: int = 1, dram_bytes: float = 1e9, **fields: int
) -> float:
    """How long it takes, bandwidth of L2 apart."""
    usual = {"fma_pipes": 2, "l2": L2, "dram": LATENCY, "launch": 0, "barrier": 20} | fields
    setting = model.CSetting(
        warps=len(warps), slots=slots, programs=programs, l2_bytes=1e9, dram_bytes=dram_bytes, **usual
    )
    return float(model.simulate(warps, setting).cycles)


def test_a_warp_that_waits_for_each_load_pays_its_latency() -> None:
    trace = [part for _ in range(10) for part in (load(), step(wait=1))]
    assert cycles(trace) == pytest.approx(10 * LATENCY, rel=0.02)


def test_loads_at_once_pay_it_once() -> None:
    trace = [*(load() for _ in range(10)), step(wait=1)]
    assert cycles(trace) == pytest.approx(LATENCY + 40, rel=0.05)


def test_copies_are_waited_for_by_groups() -> None:
    """Three groups; two may be on their way when the first is needed, none when the last is."""
    group = [load(board=NO_SCOREBOARD, asynchronous=1), step("MEMORY", model.GROUP, write=0)]
    wait = [step("CONTROL", model.WAIT_GROUP, unit=0, keep=2), *([step(stall=15)] * 100)]
    everything = step("CONTROL", model.WAIT_GROUP, unit=0, keep=0)
    assert cycles([*group * 3, *wait, everything]) == pytest.approx(LATENCY + 1500, rel=0.05)
    assert cycles([*group * 3, *wait, *group, everything]) == pytest.approx(2 * LATENCY + 1500, rel=0.05)


def test_streaming_is_limited_by_bandwidth() -> None:
    """64 warps, two loads ahead each: 64 KB under way, where 10 bytes a cycle × 800 cycles ask for 8."""
    trace = [load(board=0), *(part for i in range(1, 20) for part in (load(board=i % 2), step(wait=1 << (i - 1) % 2)))]
    total = 64 * 20 * 512
    assert cycles(*[trace] * 8, programs=8, slots=8, dram_bytes=10) == pytest.approx(total / 10 + LATENCY, rel=0.02)


def test_too_few_bytes_ahead_are_limited_by_latency() -> None:
    """One warp, 512 bytes ahead, of 10 a cycle × 800 = 8000 that the bandwidth asks for."""
    trace = [part for _ in range(20) for part in (load(), step(wait=1))]
    assert cycles(trace, dram_bytes=10) == pytest.approx(20 * (LATENCY + 51), rel=0.02)


@pytest.mark.parametrize(
    ("pipes", "warps", "expected"),
    [
        (("ALU",), 64, 16 * 2),  # 16 lanes of a partition: two cycles an instruction, 16 warps in each
        (("FMA",), 64, 16 * 1),  # two such pipes
        (("ALU", "FMA"), 64, 16 * 2),  # side by side: one slot for instructions in each partition is the limit
        (("XU",), 64, 16 * 8),
        (("ALU",), 1, 4),  # alone: its own stalls
    ],
)
def test_instructions_are_limited_by_pipes_and_slots(pipes: tuple[str, ...], warps: int, expected: int) -> None:
    count = 200
    trace = [step(pipe, stall=4) for _ in range(count) for pipe in pipes]
    assert count * expected * 0.99 <= cycles(*[trace] * warps) <= count * expected * 1.2


def test_an_a100_has_one_pipe_for_float32() -> None:
    trace = [step("FMA", stall=4)] * 200
    assert cycles(*[trace] * 64, fma_pipes=1) == pytest.approx(2 * cycles(*[trace] * 64), rel=0.05)


def test_a_barrier_waits_for_the_slowest() -> None:
    slow, fast = [step(stall=10)] * 100, [step()]
    barrier, after = step("CONTROL", model.BARRIER), [step(stall=10)] * 50
    assert cycles([*slow, barrier, *after], [*fast, barrier, *after]) == pytest.approx(1500 + 20, rel=0.02)


def test_a_barrier_that_not_all_reach_ends_for_those_that_do() -> None:
    """A warp that has ended is not waited for, as on a GPU."""
    assert cycles([step(), step("CONTROL", model.BARRIER), step()], [step()]) < 60


def test_programs_follow_one_another() -> None:
    trace = [load(), step(wait=1)]
    one = cycles(trace)
    assert cycles(trace, programs=6, slots=2) == pytest.approx(3 * one, rel=0.05)
    assert cycles(trace, programs=6, slots=6) == pytest.approx(one, rel=0.05)


def test_small_tensors_come_from_dram_in_the_first_wave_alone() -> None:
    trace = [load(kind=model.LOAD_SHARED), step(wait=1)]
    assert cycles(trace, programs=1) == pytest.approx(LATENCY, rel=0.05)
    assert cycles(trace, programs=4) == pytest.approx(LATENCY + 3 * L2, rel=0.1)


def test_conflicts_take_the_unit_of_all_partitions() -> None:
    trace = [step("MEMORY", model.ON_CHIP, unit=32) for _ in range(50)]
    assert cycles(*[trace] * 4) == pytest.approx(4 * 50 * 32, rel=0.05)


def test_an_instruction_that_no_pipe_is_known_for_is_named() -> None:
    with pytest.raises(ValueError, match=r"QUUX.FAST R1, R2: no pipe is known.*model\.py"):
        model.pipe(instruction("QUUX.FAST R1, R2"))


def test_bytes_asked_for_ahead() -> None:
    """Two loads before the first is waited for, then one at a time."""
    access = Access("x_ptr", 512, 16, 4, 16)
    loads = [(instruction("LDG.E.128 R4, [R2.64]", write=board), access) for board in (0, 1)]
    waits = [(instruction("FADD R1, R4, R4", wait=1 << board), None) for board in (0, 1)]
    assert asked_ahead([*loads, *waits], {"x_ptr"}) == (1024 + 512) / 2
    assert asked_ahead([*loads, *waits], {"y_ptr"}) == 0
    copies = [(instruction("LDGSTS.E.128 [R1], [R2.64]"), access), (instruction("LDGDEPBAR R0", write=0), None)]
    assert asked_ahead([*copies * 3, (instruction("DEPBAR.LE SB0, 0x1"), None)], {"x_ptr"}) == 3 * 512


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"operators": ("squeeeze",)}, "operators: got squeeeze, expected some of squeeze, "),
        ({"clips": 0}, "clips: got 0, expected at least 1"),
        ({"measure": True}, "measure: got True, but torch finds no GPU here"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predict.Predict(**options)


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(RuntimeError, match="install a C compiler"):
        model.library.__wrapped__()


def test_the_command(tmp_path: Path) -> None:
    """In a process of its own: here, kernels are interpreted."""
    out = tmp_path / "predict.csv"
    done = run_bench(
        "predict", "--operators", "input_gradient", "--shapes", "64", "7", "--jobs", "1", "--out", str(out)
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("PREDICTED for H100 (sm_90), compiled by triton 3.")
    rows = predict.read(out)
    assert [row["layout"] for row in rows] == ["nchw", "channels_last"]
    assert all(0 < float(row["predicted"]) < float(row["launched"]) < 20 for row in rows)
    assert sum("the four of a TAM" in line for line in done.stdout.splitlines()) == 2


@pytest.mark.parametrize(
    ("told", "bandwidth"),
    [({"memory_clock_rate": 3_201_000, "memory_bus_width": 6144}, 2 * 3.201e9 * 6144 / 8), ({}, H100.bandwidth)],
)
def test_the_gpu_that_is_there(told: dict[str, int], bandwidth: float) -> None:
    """Its own number of multiprocessors and bandwidth, where torch tells them."""
    properties = SimpleNamespace(name="NVIDIA H200", major=9, minor=0, multi_processor_count=132, **told)
    with mock.patch.object(torch.cuda, "get_device_properties", return_value=properties):
        found = devices.present()
    assert (found.name, found.target, found.multiprocessors) == ("NVIDIA H200", "sm_90", 132)
    assert found.bandwidth == pytest.approx(bandwidth)


def test_a_gpu_that_is_not_known_is_named() -> None:
    properties = SimpleNamespace(name="NVIDIA L4", major=8, minor=9, multi_processor_count=58)
    with (
        mock.patch.object(torch.cuda, "get_device_properties", return_value=properties),
        pytest.raises(ValueError, match=r"got NVIDIA L4 \(sm_89\), expected one of sm_80, sm_90, sm_100"),
    ):
        devices.present()


@pytest.mark.parametrize(("available", "minor", "expected"), [(True, 0, "sm_80"), (True, 9, None), (False, 0, None)])
def test_what_is_predicted_by_default(available: bool, minor: int, expected: str | None) -> None:
    """Of the GPU that is there, if there is one that the model knows."""
    properties = SimpleNamespace(name="NVIDIA GPU", major=8, minor=minor, multi_processor_count=108)
    with (
        mock.patch.object(torch.cuda, "is_available", return_value=available),
        mock.patch.object(torch.cuda, "get_device_properties", return_value=properties),
    ):
        assert devices.here() == expected
