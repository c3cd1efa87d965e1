"""No access leaves its tensors: the net under every interpreted test, and offsets that pass 2³¹ elements.

The same is proved for whole grids, symbolically, by `make sanitize`.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

from bench.interpreted import AddressError
from bench.shapes import LAYOUTS
from bench.static import read
from tam_triton import kernels, plain
from tam_triton.layout import INT32_ELEMENTS

ROOT = Path(__file__).parents[2]
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


@triton.jit
def copy_kernel(x_ptr, y_ptr, size, BLOCK: tl.constexpr, LOADED: tl.constexpr, STORED: tl.constexpr):
    """The masks let through that many elements too many."""
    q = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + q, tl.load(x_ptr + q, mask=q < size + LOADED, other=0.0), mask=q < size + STORED)


def copy(x: Tensor, loaded: int = 0, stored: int = 0) -> Tensor:
    y = torch.zeros(x.numel() + 1)[:-1]
    copy_kernel[(4,)](x, y, x.numel(), BLOCK=32, LOADED=loaded, STORED=stored)
    return y


def test_a_right_kernel_passes() -> None:
    x = torch.arange(100.0)
    assert torch.equal(copy(x), x)


@pytest.mark.parametrize(
    ("too_many", "message"),
    [
        ({"loaded": 1}, r"copy_kernel: 1 of 5 addresses loaded lie outside; .* x_ptr of 400 bytes, .* 400$"),
        ({"stored": 1}, r"copy_kernel: 1 of 5 addresses stored lie outside; .* y_ptr of 400 bytes, .* 400$"),
    ],
    ids=["load", "store"],
)
def test_a_wrong_kernel_fails_the_test_that_launches_it(too_many: dict[str, int], message: str) -> None:
    """Though the memory is there: what counts is the view that was passed."""
    buffer = torch.full((200,), 7.0)
    with pytest.raises(AddressError, match=message):
        copy(buffer[50:150], **too_many)


@pytest.mark.out_of_bounds
def test_a_test_may_do_it_on_purpose() -> None:
    assert torch.equal(copy(torch.ones(101)[:100], loaded=1, stored=1), torch.ones(100))


@contextmanager
def outer_programs(count: int) -> Iterator[None]:
    """Runs only the first and the last programs of every grid: the largest offsets are at one end or the other."""
    execute = GridExecutor.__call__
    programs: list[int] = []

    def shortened(self: GridExecutor, *args: object, **kwargs: object) -> None:
        programs.append(self.grid[0])
        with mock.patch.object(self, "grid", (min(programs[-1], 2 * count),)):
            execute(self, *args, **kwargs)

    def moved(self: InterpreterBuilder, x: int, y: int, z: int) -> None:
        self.grid_idx = (x if x < count else max(x, programs[-1] - 2 * count + x), y, z)

    def counted(self: InterpreterBuilder, x: int, y: int, z: int) -> None:
        self.grid_dim = (programs[-1], y, z)

    with (
        mock.patch.object(GridExecutor, "__call__", shortened),
        mock.patch.object(InterpreterBuilder, "set_grid_idx", moved),
        mock.patch.object(InterpreterBuilder, "set_grid_dim", counted),
    ):
        yield
    assert any(of > 2 * count for of in programs)


@each_layout
@pytest.mark.parametrize(
    ("clips", "segments", "channels", "size"),
    [(1, 1, 2**21, 33), (3, 2, 2**19, 27)],
    ids=["a frame", "many clips"],
)
def test_right_beyond_int32(clips: int, segments: int, channels: int, size: int, layout: str) -> None:
    """The last channels of more than 2³¹ elements; only the pages that are touched take memory."""
    shape = (clips * segments, channels, size, size)
    x, dy = (torch.empty(shape, dtype=torch.float16, memory_format=LAYOUTS[layout]) for _ in range(2))
    assert x.numel() > INT32_ELEMENTS
    end = slice(-4, None)
    last_x, last_dy = (
        torch.randint(-3, 4, (segments, 4, size, size), generator=torch.Generator().manual_seed(i)).to(x.dtype)
        for i in range(2)
    )
    x[-segments:, end], dy[-segments:, end] = last_x, last_dy
    importance = torch.randint(-3, 4, (clips, channels, segments)).to(x.dtype)
    kernel = torch.randint(-3, 4, (clips, channels, 3)).to(x.dtype)
    last_v, last_theta = importance[-1:, end], kernel[-1:, end]

    with outer_programs(8), np.errstate(all="ignore"):  # what the other programs would have written is anything
        squeezed = kernels.squeeze(x, segments)
        y = kernels.aggregate(x, importance, kernel)
        dv, dtheta = kernels.weight_gradients(dy, x, importance, kernel)
        dx = kernels.input_gradient(dy, importance, kernel, importance, layout == "channels_last")

    assert torch.equal(squeezed[-1, end, -1], plain.squeeze(last_x, segments)[0, :, -1])  # the last frame
    expected = plain.weight_gradients(last_dy, last_x, last_v, last_theta)
    assert torch.equal(dv[-1:, end], expected[0])
    assert torch.equal(dtheta[-1:, end], expected[1])
    pixel = (slice(-segments, None), -1, -1, -1)  # the last element of a frame, in either layout
    assert torch.equal(y[pixel], plain.aggregate(last_x, last_v, last_theta)[pixel])
    assert torch.equal(dx[pixel], plain.input_gradient(last_dy, last_v, last_theta, last_v, False)[pixel])


def test_compiled_base_offsets_are_int64(tmp_path: Path) -> None:
    """For a frame of more than 2³¹ elements; test_static has the same for the shapes of TANet-50."""
    channels, size = 4, 23171
    assert channels * size**2 > INT32_ELEMENTS
    command = ["--targets", "sm_90", "--dtypes", "bfloat16", "--shapes", str(channels), str(size)]
    command += ["--clips", "1", "--segments", "2", "--long", "--jobs", "1", "--out", str(tmp_path / "huge.csv")]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-m", "bench", "static", *command], cwd=ROOT, env=environment, check=True)
    rows = read(tmp_path / "huge.csv")
    large = [row for row in rows if row["widest"] != "-"]
    # Those of the branches, and the gradients of γ and β, take small tensors alone.
    of_maps = {one for one in kernels.__all__ if "branch" not in one and one != "batch_norm_gradients"}
    assert {row["operator"].split(",")[0] for row in large} == of_maps
    assert {row["int64"] for row in large} == {"yes"}
