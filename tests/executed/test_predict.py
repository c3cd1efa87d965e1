"""What is walked through machine code is what executed PTX does, and what is predicted of it is told as it is."""

import re
from collections import Counter
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

from bench import compiled, offline, predict
from bench.offline import Launch
from bench.ptx.driver import device
from bench.ptx.recorded import recording
from bench.shapes import LAYOUTS, Shape
from bench.sm import devices, model, sass, walk
from bench.sm.facts import facts
from bench.static import CALLS

pytestmark = pytest.mark.executed

OPERATORS = ("squeeze", "branches", "aggregate", "weight_gradients", "input_gradient")
H100 = devices.DEVICES["sm_90"]


def tensors(where: str, channels: int = 24, size: int = 7, layout: str = "nchw") -> tuple[Tensor, Tensor, Tensor]:
    """x, V and Θ of two clips of four frames."""
    x = torch.randn(8, channels, size, size, device=where).to(torch.bfloat16)
    v, theta = (torch.rand(2, channels, n, device=where).to(x.dtype) for n in (4, 3))
    return x.contiguous(memory_format=LAYOUTS[layout]), v, theta


def walked(launch: Launch) -> dict[tuple[str, str], list[int]]:
    """Requests and sectors of all programs, by tensor and direction."""
    program = sass.read(launch.compiled.asm["cubin"])
    found: dict[tuple[str, str], list[int]] = {}
    for number in range(launch.programs):
        for warp in walk.walk(program, launch.grid, number, launch.num_warps, launch.arguments).warps:
            for one, access in warp:
                if access is not None and access.tensor:
                    entry = found.setdefault((access.tensor, "store" if one.name == "STG" else "load"), [0, 0])
                    entry[0] += 1
                    entry[1] += access.sectors
    return found


@pytest.mark.parametrize(
    ("target", "layout", "size"),
    [("sm_90", "nchw", 7), ("sm_90", "channels_last", 8), ("sm_80", "channels_last", 7), ("sm_100", "nchw", 8)],
)
@pytest.mark.parametrize("operator", OPERATORS)
def test_accesses_are_those_of_executed_ptx(operator: str, target: str, layout: str, size: int) -> None:
    """Loops run as often, every address and mask is the same: all that the model is given."""
    with device(target) as executed, recording() as recorded:
        CALLS[operator](*tensors("cuda:0", size=size, layout=layout))
    assert len(recorded) == len(executed) > 0
    for one, done in zip(recorded, executed, strict=True):
        expected = {key: [traffic.requests, traffic.sectors] for key, traffic in done.counts.traffic.items()}
        named = {name: names for names, _ in expected for name in names.split(", ")}  # of one memory: together
        found: dict[tuple[str, str], list[int]] = {}
        for (name, kind), figures in walked(one.launch).items():
            entry = found.setdefault((named[name], kind), [0, 0])
            entry[:] = [a + b for a, b in zip(entry, figures, strict=True)]
        assert found == expected, one.launch.kernel


@triton.jit
def add_kernel(x_ptr, weight_ptr, y_ptr, n, rounds, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for i in range(rounds):
        total += tl.load(x_ptr + i * n + at, mask=at < n, other=0.0) * tl.load(weight_ptr + i)
    tl.store(y_ptr + tl.num_programs(0) * BLOCK - BLOCK + at - tl.program_id(0) * BLOCK, total, mask=at < n)


@triton.jit
def gather_kernel(x_ptr, index_ptr, y_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(y_ptr + at, tl.load(x_ptr + tl.load(index_ptr + at)))


def launched(target: str, kernel: Any, grid: int, *arguments: Any, **options: Any) -> Launch:
    """One launch, compiled."""
    with offline.launches(target) as launches:
        kernel[(grid,)](*arguments, **options)
    return launches[0]


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_a_known_kernel(target: str) -> None:
    """Trips of the loop, masked lanes, tensors told apart, the number of programs: all of it by hand."""
    n, rounds, block = 1000, 7, 256
    x, weight, y = (torch.empty(size) for size in (n * rounds, rounds, 4 * block))
    launch = launched(target, add_kernel, 4, x, weight, y, n, rounds, BLOCK=block, num_warps=2)
    program = sass.read(launch.compiled.asm["cubin"])
    for number, lanes in ((0, 256), (3, 1000 - 3 * 256)):
        found = walk.walk(program, launch.grid, number, launch.num_warps, launch.arguments)
        accesses = [access for warp in found.warps for _, access in warp if access is not None]
        of_x = [access for access in accesses if access.tensor == "x_ptr"]
        assert sum(access.bytes for access in of_x) == rounds * lanes * 4
        assert sum(access.bytes for access in accesses if access.tensor == "y_ptr") == lanes * 4
        assert sum(access.tensor == "weight_ptr" for access in accesses) == rounds * launch.num_warps
        assert sum(access.fresh for access in accesses if access.tensor == "weight_ptr") == 1
        start = number * block * 4 // walk.SECTOR
        first = {s - (1 << walk.APART) // walk.SECTOR for s in found.touched["x_ptr"]}
        assert min(first) == start
    last = min(s for s in found.touched["y_ptr"]) - (3 << walk.APART) // walk.SECTOR
    assert last == 3 * block * 4 // walk.SECTOR  # num_programs


def test_an_address_that_was_loaded_is_refused() -> None:
    x, index = torch.empty(64), torch.empty(64, dtype=torch.int32)
    launch = launched("sm_90", gather_kernel, 1, x, index, x, BLOCK=64)
    with pytest.raises(ValueError, match=r"gather_kernel: LDG.*the address depends on values that were loaded"):
        walk.middle(launch, sass.read(launch.compiled.asm["cubin"]))


def row(operator: str, target: str = "sm_90", layout: str = "nchw") -> predict.Row:
    """The first launch at 64×56×56, with its sensitivity."""
    options = predict.Predict(target=target, operators=(operator,), sensitivity=True, measure=False)  # type: ignore[arg-type]
    return predict.rows_of(options, "bfloat16", layout, Shape(64, 56))[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_a_kernel_that_streams_is_near_the_floor(layout: str) -> None:
    """Eight frames, read and written once; the kernel's time was measured to be within a tenth of this on an H100."""
    one = row("aggregate", layout=layout)
    assert one.floor is not None
    assert one.predicted is not None
    assert one.varied is not None
    assert one.floor == pytest.approx(2 * 64 * 64 * 56 * 56 * 2 / (0.93 * 3.35e12) * 1e6)
    assert one.floor <= one.predicted <= 1.3 * one.floor
    assert one.sectors == 4
    assert one.in_flight is not None
    assert one.in_flight > one.needed
    for low, high in one.varied.values():
        assert low <= one.predicted * 1.01
        assert one.predicted <= high * 1.01
    assert one.varied["bandwidth"][1] > 1.2 * one.predicted


def test_facts_of_amd() -> None:
    one = row("aggregate", "gfx942")
    assert one.predicted is None
    assert one.launched is None
    assert one.instructions is not None
    assert 10 < one.instructions < 400
    assert one.mix is not None
    assert one.mix["VALU"] > one.mix["VMEM"] > 0
    assert one.in_flight is not None
    assert 1 < one.in_flight < 200
    assert list(predict.sums([one])) == []


def test_facts_count_what_is_walked() -> None:
    n = 4096
    x, weight, y = torch.empty(n * 3), torch.empty(3), torch.empty(n)
    launch = launched("sm_90", add_kernel, 4, x, weight, y, n, 3, BLOCK=1024, num_warps=4)
    found = walk.middle(launch, sass.read(launch.compiled.asm["cubin"]))
    got = facts(found, launch, H100, {"x_ptr"})
    assert got is not None
    steps = [one for warp in found.warps for one, _ in warp]
    vectors = 3 * 1024 * 4 / 512
    assert got.instructions == len(steps) / vectors
    assert sum(got.mix.values()) == pytest.approx(got.instructions)
    names = Counter(one.name for one in steps)
    assert (got.shuffles, got.barriers) == (names["SHFL"] / vectors, names["BAR"] / vectors)
    assert (got.shared, got.passes) == (0, 0)
    assert 0 < got.in_flight <= model.resident(launch, H100) * 3 * 1024 * 4
    assert got.sectors == 4


class Profiler:
    """What the driver's would tell: the kernels between its marks, each of five microseconds or six."""

    def __init__(self, launches: list[Any], **_: Any) -> None:
        self.launches, self.first = launches, len(launches)

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_: object) -> None:
        self.last = len(self.launches)

    def events(self) -> list[Any]:
        names = [launch.kernel for launch in self.launches[self.first : self.last]]
        return [
            SimpleNamespace(name=name, time_range=SimpleNamespace(elapsed_us=lambda i=i: 5.0 + (i == 0)))
            for i, name in enumerate(names)
        ]


def test_measured_stands_beside_predicted(capsys: pytest.CaptureFixture[str]) -> None:
    """On the stand-in, with a clock of its own: each launch is made again by itself."""
    with (
        device("sm_90") as launches,
        mock.patch.object(torch.cuda, "is_available", return_value=True),
        mock.patch.object(torch.cuda, "synchronize"),
        mock.patch.object(devices, "present", return_value=H100),
        mock.patch.object(predict.timing, "flush"),
        mock.patch.object(predict, "ROUNDS", 3),
        mock.patch.object(predict, "profile", partial(Profiler, launches)),
    ):
        rows = predict.run(predict.Predict(operators=("squeeze", "branches"), shapes=((16, 7),), clips=1, measure=True))
    assert [one.measured for one in rows] == [5.0] * len(rows)
    assert Counter(launch.kernel for launch in launches) == Counter(4 * [one.kernel for one in rows])
    assert re.search(r"squeeze_kernel .* 5\.00 +\d+%", capsys.readouterr().out)


def test_a_profiler_that_sees_nothing_is_an_error() -> None:
    with (
        mock.patch.object(torch.cuda, "synchronize"),
        mock.patch.object(predict.timing, "flush"),
        mock.patch.object(predict, "profile", partial(Profiler, [])),
        pytest.raises(RuntimeError, match=r"banded_kernel: torch\.profiler saw no launch"),
    ):
        predict.microseconds("banded_kernel", lambda: None)


def test_a_measurement_for_another_gpu_is_refused() -> None:
    with (
        mock.patch.object(torch.cuda, "is_available", return_value=True),
        mock.patch.object(devices, "present", return_value=H100),
        pytest.raises(ValueError, match="got sm_80, but the GPU here is sm_90"),
    ):
        predict.Predict(target="sm_80", measure=True)


def test_entries_of_the_users_cache_do_not_matter(tmp_path: Path) -> None:
    """Another tool may have left them in another textual form; here nothing is left of them."""

    def accesses() -> dict[str, Counter[int]]:
        return compiled.access_bytes(launched("sm_90", add_kernel, 1, x, x, x, 64, 2, BLOCK=64).compiled)

    x = torch.empty(128)
    expected = accesses()
    with knobs.cache.scope():
        knobs.cache.dir = str(tmp_path)
        with mock.patch.object(offline, "own_cache", nullcontext):
            assert accesses() == expected
            files = [file for file in tmp_path.rglob("*") if file.suffix in (".ttir", ".llir", ".ptx")]
            assert len(files) >= 3
            for file in files:
                file.write_text("")
            with pytest.raises((ValueError, StopIteration, IndexError)):
                accesses()
        assert accesses() == expected
