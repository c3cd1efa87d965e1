"""Launch rules at the shapes of TANet-50, and what each launch states about itself."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import triton.language as tl
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime import driver
from triton.runtime.interpreter import GridExecutor

from bench.interpreted import counting
from bench.shapes import DTYPES, LAYOUTS, Shape, tanet50
from bench.static import CALLS, branch_weights
from bench.traffic import by_kernel
from tam_triton import TAM, kernels, layout
from tam_triton.kernels import launch, metadata

T, K = 8, 3
MULTIPROCESSORS = 132
ONE = launch.Device(1, 32)  # multiprocessor
MAX_GRID = 2**31 - 1
MAX_THREADS = 1024  # of a program: 16 wavefronts of 64 on HIP
ON_X = ("banded_kernel", "squeeze_kernel", "weight_gradients_kernel", "moments_kernel")
STATED = {
    "banded_kernel": metadata.banded,
    "squeeze_kernel": metadata.squeeze,
    "weight_gradients_kernel": metadata.weight_gradients,
    "add_parts_kernel": metadata.add_parts,
    "projections_kernel": metadata.projections,
    "weights_kernel": metadata.weights,
    "output_gradients_kernel": metadata.output_gradients,
    "input_gradients_kernel": metadata.input_gradients,
    "moments_kernel": metadata.moments,
    "statistics_kernel": metadata.statistics,
    "norm_gradients_kernel": metadata.norm_gradients,
}
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


@dataclass(frozen=True)
class Seen:
    """A launch as Triton gets it."""

    kernel: str
    grid: tuple[int, ...]
    arguments: dict[str, Any]

    @property
    def programs(self) -> int:
        return torch.Size(self.grid).numel()

    def stated(self) -> dict[str, Any]:
        return STATED[self.kernel](self.grid, SimpleNamespace(name=self.kernel), self.arguments)


@contextmanager
def seen(execute: bool = False) -> Iterator[list[Seen]]:
    """Every launch inside; nothing runs unless asked for."""
    launches: list[Seen] = []
    call = GridExecutor.__call__

    def record(self: GridExecutor, *args: Any, **kwargs: Any) -> None:
        arguments = {**dict(zip(self.arg_names, args, strict=False)), **kwargs}
        launches.append(Seen(self.fn.__name__, tuple(self.grid), arguments))
        if execute:
            call(self, *args, **kwargs)

    with mock.patch.object(GridExecutor, "__call__", record):
        yield launches


def operands(shape: Shape, clips: int, dtype: str, layout: str) -> tuple[Tensor, Tensor, Tensor]:
    size = (clips * T, shape.channels, shape.size, shape.size)
    x = torch.empty(size, dtype=DTYPES[dtype], memory_format=LAYOUTS[layout])
    return x, torch.empty(clips, shape.channels, T, dtype=x.dtype), torch.empty(clips, shape.channels, K, dtype=x.dtype)


@pytest.mark.parametrize("warp", [32, 64])
@pytest.mark.parametrize("clips", [1, 8])
@each_layout
@each_dtype
def test_every_multiprocessor_has_work(dtype: str, layout: str, clips: int, warp: int) -> None:
    """Every kernel on a tensor of X's size, at every site of TANet-50; and grids and warps within the limits."""
    with mock.patch.object(launch, "ASSUMED", launch.Device(MULTIPROCESSORS, warp)):
        for shape in tanet50():
            x, v, theta = operands(shape, clips, dtype, layout)
            for name in CALLS:
                with seen() as launches:
                    CALLS[name](x, v, theta)
                for each in launches:
                    where = (name, each.kernel, str(shape), each.grid)
                    # Small maps are cut until a program has two or three tiles to load, and the smallest not at all.
                    small = each.arguments.get("steps", 9) <= 3 or shape.size**2 <= launch.SMALL_MAP
                    busy = each.programs >= MULTIPROCESSORS or (clips == 1 and small) or each.programs >= 64
                    assert busy or each.kernel not in ON_X, where
                    assert each.programs <= MAX_GRID, where
                    assert each.grid[1:] == (1,) * len(each.grid[1:]), where
                    assert each.arguments["num_warps"] * warp <= MAX_THREADS, where
                assert (
                    "branch" in name or name == "batch_norm_gradients" or any(each.kernel in ON_X for each in launches)
                )


@pytest.mark.parametrize(
    ("programs", "segments", "frames"),
    [
        (132, 8, 8),
        (1000, 8, 8),
        (131, 8, 4),
        (98, 8, 4),
        (49, 8, 2),
        (32, 8, 1),
        (1, 8, 1),
        (100, 1, 1),
        (98, 16, 8),
        (132, 16, 8),
        (132, 17, 6),
        (132, 9, 5),
    ],
)
def test_time_is_split_only_to_fill_the_device(programs: int, segments: int, frames: int) -> None:
    assert launch.frames_of_part(programs, segments, most=8) == frames


@each_layout
@pytest.mark.parametrize("size", [7, pytest.param(14, marks=pytest.mark.deep)])
def test_splitting_time_changes_no_bit_of_a_frame(size: int, layout: str) -> None:
    """Y, dX and dV of a frame are the same sums; dΘ is a sum over parts, exact in small integers."""
    segments = 7
    generator = torch.Generator().manual_seed(0)

    def values(*shape: int, exact: bool) -> Tensor:
        if exact:
            return torch.randint(-3, 4, shape, generator=generator).float()
        return torch.randn(shape, generator=generator).half()

    cases = []
    for exact in (False, True):
        x, dy = (
            values(segments, 3, size, size, exact=exact).contiguous(memory_format=LAYOUTS[layout]) for _ in range(2)
        )
        cases.append((x, dy, values(1, 3, segments, exact=exact), values(1, 3, K, exact=exact), exact))

    def results() -> list[Tensor]:
        found = []
        for x, dy, v, theta, exact in cases:
            dv, dtheta = kernels.weight_gradients(dy, x, v, theta)
            dx = kernels.input_gradient(dy, v, theta, v, layout == "channels_last")
            found += [kernels.aggregate(x, v, theta), dx, dv, *([dtheta] if exact else [])]
        return found

    with seen(execute=True) as launches, mock.patch.object(launch, "band_frames", return_value=3):
        split = results()
    assert all(each.arguments["FRAMES"] < segments for each in launches if "FRAMES" in each.arguments)
    with mock.patch.object(launch, "ASSUMED", ONE), seen(execute=True) as launches:
        whole = results()
    assert all(each.arguments["FRAMES"] == segments for each in launches if "FRAMES" in each.arguments)
    for a, b in zip(split, whole, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("multiprocessors", [1, MULTIPROCESSORS])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@each_layout
@pytest.mark.parametrize("size", [7, pytest.param(14, marks=pytest.mark.deep)])
def test_stated_bytes_are_those_counted(size: int, layout: str, dtype: str, multiprocessors: int) -> None:
    """Frames that parts of a clip read twice among them."""
    shape = Shape(16 if size == 7 else 8, size)
    x, v, theta = (torch.zeros_like(tensor) for tensor in operands(shape, 1, dtype, layout))
    for name in CALLS:
        device = mock.patch.object(launch, "ASSUMED", launch.Device(multiprocessors, 32))
        with device, seen(execute=True) as launches, counting() as counted:
            CALLS[name](x, v, theta)
        counted = [each for each in counted if not each.kernel.startswith("torch ")]
        assert [each.kernel for each in launches] == [each.kernel for each in counted]
        for each, moved in zip(launches, counted, strict=True):
            (count,) = by_kernel([moved], x).values()
            assert each.stated()["bytes"] == pytest.approx(count * x.nbytes, rel=0.05), (name, each.kernel)


LONG = torch.zeros(1, 4, 64).normal_(generator=torch.Generator().manual_seed(0))
TAPS = torch.zeros(1, 16, 15).normal_(generator=torch.Generator().manual_seed(1))
WIDE_CASES = {
    "pixels of the last part": (38_500, lambda: kernels.squeeze(torch.ones(1, 1, 300, 128), 1)),
    "frames of V": (200, lambda: kernels.aggregate(LONG.mT.reshape(64, 4, 1, 1), LONG, TAPS[:, :4])),
    "taps of Θ": (
        100,
        lambda: kernels.weight_gradients(TAPS.mT.reshape(15, 16, 1, 1), TAPS.mT.reshape(15, 16, 1, 1), TAPS, TAPS)[1],
    ),
    "weights of the branches": (900, lambda: kernels.branches(LONG, *branch_weights(LONG, TAPS), 1e-5, True)[0]),
}


@pytest.mark.parametrize("name", WIDE_CASES)
def test_offsets_that_32_bits_cannot_hold(name: str) -> None:
    """Not of X alone: with a limit below 2³¹, each kernel counts in 64 bits what passes it, and finds the same."""
    limit, call = WIDE_CASES[name]
    expected = call()
    with mock.patch.object(layout, "INT32_ELEMENTS", limit), seen(execute=True) as launches:
        result = call()
    assert [each.arguments["INDEX"] for each in launches if "INDEX" in each.arguments] != []
    assert all(each.arguments.get("INDEX", tl.int64) == tl.int64 for each in launches)
    assert torch.equal(result, expected)


def test_stated_figures() -> None:
    """By hand: 2 clips × 8 frames × 4 channels × 9 pixels, K = 3, whole clips."""
    x = torch.zeros(16, 4, 3, 3)
    v, theta = torch.zeros(2, 4, 8), torch.zeros(2, 4, 3)
    with mock.patch.object(launch, "ASSUMED", ONE), seen() as launches:
        kernels.aggregate(x, v, theta)
        kernels.squeeze(x.double(), 8)
        kernels.weight_gradients(x, x, v, theta)
    aggregate, squeeze, gradients = (each.stated() for each in launches if each.kernel != "add_parts_kernel")
    assert aggregate == {
        "name": "banded_kernel forward 2×8×4×9 float32",
        "bytes": 4 * (2 * 576 + 64 + 24),
        "flops32": 7 * 576,
    }
    assert squeeze == {"name": "squeeze_kernel 2×8×4×9 float64", "bytes": 8 * (576 + 64), "flops64": 576}
    assert gradients["flops32"] == 6 * 576
    assert gradients["bytes"] == 4 * (2 * 576 + 2 * (64 + 24))


def test_every_kernel_states_its_figures() -> None:
    with seen() as launches:
        for shape, call in itertools.product((Shape(16, 14), Shape(4, 56)), CALLS.values()):
            call(*operands(shape, 1, "float32", "nchw"))
    assert {each.kernel for each in launches} == set(STATED)
    for each in launches:
        assert set(each.stated()) == {"name", "bytes", "flops32"}
        assert each.stated()["flops32"] > 0


class Launches(TorchDispatchMode):
    """Which of torch's operators a GPU would launch, in the library's own too; refuses what would wait for it."""

    WAITING = ("_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2")
    WITHOUT = ("detach", "empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "promote_types")

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def kernel(self) -> Callable[..., None]:
        """In place of a launch. No tensor is kept, which autograd would copy to keep its gradient apart."""
        return lambda executor, *_, **__: self.names.append(executor.fn.__name__)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._opname
        if func.namespace == "tam_triton":
            with self:
                return getattr(kernels, name)(*args, **(kwargs or {}))
        with self:
            if (parts := func.decompose(*args, **(kwargs or {}))) is not NotImplemented:
                return parts  # of operators that are others put together, as `contiguous` is a copy or none
        if name in self.WAITING:
            raise AssertionError(f"{name} waits for the GPU")
        if not func.is_view and name not in self.WITHOUT:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def a_step(module: TAM, layout: str) -> list[str]:
    """What forward and backward launch, by name: the library's kernels and torch's operators."""
    x = torch.zeros(2 * T, module.channels, 7, 7).contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    dy = torch.zeros_like(x)
    waiting = [mock.patch.object(Tensor, name, side_effect=AssertionError(name)) for name in ("cpu", "numpy", "tolist")]
    with Launches() as launches, ExitStack() as stack:
        for patch in waiting:
            stack.enter_context(patch)
        stack.enter_context(mock.patch.object(GridExecutor, "__call__", launches.kernel()))
        module(x).backward(dy)
    return launches.names


ONE_STEP = [
    *("squeeze_kernel", "projections_kernel", "weights_kernel", "_foreach_add_", "_foreach_lerp_", "banded_kernel"),
    *("weight_gradients_kernel", "output_gradients_kernel", "input_gradients_kernel", "banded_kernel"),
]


@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
@each_layout
def test_a_step_of_tam_launches_ten_kernels(layout: str, autocast: bool) -> None:
    """No copy, no fill, and nothing that waits for the GPU."""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert a_step(TAM(64, T, impl="triton"), layout) == ONE_STEP


def test_what_is_launched_beside_is_seen() -> None:
    """Copies of weights that lie otherwise, fills where V has no gradient, and a number that the host asks for."""
    layers = TAM(64, T, impl="triton")
    layers.L[4].register_forward_hook(lambda *_: None)
    assert "clone" in a_step(layers, "channels_last")
    layers.L[4].register_forward_hook(lambda module, inputs, y: y * float(y.sum()))
    with pytest.raises(AssertionError, match="_local_scalar_dense waits for the GPU"):
        a_step(layers, "nchw")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (GPUTarget("cuda", 90, 32), {"maxnreg": 128}),
        (GPUTarget("hip", "gfx942", 64), {}),
        (GPUTarget("hip", "gfx1100", 32), {}),  # warps as NVIDIA's have them
    ],
)
def test_registers_are_asked_of_compilers_that_take_the_option(target: GPUTarget, expected: dict[str, int]) -> None:
    active = mock.Mock()
    active.get_current_target.return_value = target
    active.utils.get_device_properties.return_value = {"multiprocessor_count": 96}
    with mock.patch.object(driver, "_active", active), knobs.runtime.scope():
        knobs.runtime.interpret = False
        assert launch.registers(128) == expected
        assert launch.registers(None) == {}
        assert ("maxnreg" in vars(make_backend(target).parse_options({"num_warps": 2}))) == bool(expected)
    assert launch.registers(128) == {}  # interpreted


def test_bytes_of_split_clips() -> None:
    """Two parts of four frames read a frame of each other's: ten for eight."""
    assert metadata.frames_read(8, 8, 3) == 8
    assert metadata.frames_read(8, 4, 3) == 10
    assert metadata.frames_read(8, 1, 3) == 22
    assert metadata.frames_read(7, 3, 5) == 5 + 6 + 3
