"""What Hypothesis draws: feature maps and weights, in every layout and dtype, that shrink to readable examples."""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from tam_triton.kernels import launch

DENSE = ("contiguous", "channels_last")
LAYOUTS = (*DENSE, "sliced", "cropped", "transposed", "offset", "expanded")
WEIGHT_LAYOUTS = ("contiguous", "channels_fastest", "sliced", "expanded")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# Of X, as a power of two; dY is scaled the other way, as far as it goes: seven taps and sums over pixels stay finite.
# Tiny float32 and float16 are subnormal. bfloat16 is not, as Triton's interpreter converts such numbers wrongly, nor
# float64, in which the reference itself would lose them.
EXPONENTS = {
    "huge": {torch.float32: 108, torch.float16: 5, torch.bfloat16: 108, torch.float64: 1000},
    "tiny": {torch.float32: -128, torch.float16: -17, torch.bfloat16: -100, torch.float64: -900},
}


@dataclass(frozen=True, repr=False)
class Problem:
    """Dimensions, layouts and dtype of one call; the numbers follow from `values` and the seed.

    `layout` is X's and `dy_layout` that of its gradient (both of `LAYOUTS`), `weights_layout` that of V and Θ (of
    `WEIGHT_LAYOUTS`). `values` are "normal", small "integers", or "huge" or "tiny", which only X and dY are.
    """

    N: int
    T: int
    C: int
    H: int
    W: int
    K: int
    layout: str = "contiguous"
    dtype: torch.dtype = torch.float32
    seed: int = 0
    values: str = "normal"
    dy_layout: str = "contiguous"
    weights_layout: str = "contiguous"

    def __repr__(self) -> str:
        """What makes this problem again, without what goes without saying."""
        told = [
            field for field in fields(self) if field.default is MISSING or getattr(self, field.name) != field.default
        ]
        return f"Problem({', '.join(f'{field.name}={getattr(self, field.name)!r}' for field in told)})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """The same in Hypothesis's reports."""
        printer.text(repr(self))

    def tensor(self, *shape: int, salt: int = 0) -> Tensor:
        """Values of order 1, or small integers, whose sums float32 holds exactly."""
        generator = torch.Generator().manual_seed(97 * self.seed + salt)
        if self.values == "integers":
            return torch.randint(-3, 4, shape, generator=generator).to(self.dtype)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(self.dtype)

    def features(self, salt: int = 0, layout: str | None = None, scale: float | None = None) -> Tensor:
        """X `(N·T, C, H, W)` in the problem's layout and of its magnitude, or in those that are named."""
        x = self.tensor(self.N * self.T, self.C, self.H, self.W, salt=salt)
        return in_layout(x * (self.magnitude if scale is None else scale), layout or self.layout)

    def gradient(self) -> Tensor:
        """dY like X, in a layout of its own."""
        return self.features(salt=3, layout=self.dy_layout, scale=self.dy_magnitude)

    def importance(self) -> Tensor:
        """V `(N, C, T)`."""
        return weights_in_layout(self.tensor(self.N, self.C, self.T, salt=1), self.weights_layout)

    def kernel(self) -> Tensor:
        """Θ `(N, C, K)`."""
        return weights_in_layout(self.tensor(self.N, self.C, self.K, salt=2), self.weights_layout)

    @property
    def magnitude(self) -> float:
        """The order of X's values."""
        exponents = EXPONENTS.get(self.values)
        return 1.0 if exponents is None else 2.0 ** exponents[self.dtype]

    @property
    def dy_magnitude(self) -> float:
        """The order of dY's values: X times dY stays finite."""
        return min(1 / self.magnitude, 2.0 ** EXPONENTS["huge"][self.dtype])


def another(problem: Problem) -> Problem:
    """The same problem with other numbers."""
    return replace(problem, seed=problem.seed + 1)


def in_layout(x: Tensor, layout: str) -> Tensor:
    """The values of `x` `(N·T, C, H, W)` with other strides; "expanded" repeats every frame's first pixel."""
    if layout == "contiguous":
        return x.contiguous()
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout in ("sliced", "cropped"):
        wide = x.new_full((x.shape[0], x.shape[1] + 1, x.shape[2], x.shape[3] + 2), float("nan"))
        wide = in_layout(wide, "contiguous" if layout == "sliced" else "channels_last")
        wide[:, 1:, :, 1:-1] = x
        return wide[:, 1:, :, 1:-1]
    if layout == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "offset":
        buffer = x.new_full((x.numel() + 1,), float("nan"))
        buffer[1:] = x.flatten()
        return buffer[1:].view(x.shape)
    if layout == "expanded":
        return x[:, :, :1, :1].expand(x.shape)
    raise ValueError(f"layout: got {layout!r}, expected one of {LAYOUTS}")


def weights_in_layout(weights: Tensor, layout: str) -> Tensor:
    """The same for V or Θ `(N, C, ·)`; "expanded" repeats every row's first value."""
    if layout == "contiguous":
        return weights.contiguous()
    if layout == "channels_fastest":
        return weights.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "sliced":
        return torch.nn.functional.pad(weights, (1, 2), value=float("nan"))[..., 1:-2]
    if layout == "expanded":
        return weights[..., :1].expand(weights.shape)
    raise ValueError(f"weights_layout: got {layout!r}, expected one of {WEIGHT_LAYOUTS}")


@functools.cache
def block_edges(itemsize: int) -> list[tuple[int, int]]:
    """(C, P) at, one below and one above the size of every block and tile that the launch rules choose for small maps.

    The smallest come first.
    """
    edges: set[tuple[int, int]] = set()
    for channels, pixels, channels_last in itertools.product(range(1, 34), range(1, 260), (False, True)):
        elements = launch.temporal_block(channels, pixels, channels_last, itemsize).elements
        described = (2, channels, pixels, channels_last, itemsize)
        for off, more in itertools.product((-1, 0, 1), repeat=2):
            edges |= {(1, elements + off), (elements + off, 1)}
            for tile in (launch.squeeze_tile(*described), launch.band_tile(*described)):
                edges.add((tile.channels + off, tile.pixels + more))
    small = [(C, P) for C, P in edges if C >= 1 and P >= 1 and C * P <= 520]
    return sorted(small, key=lambda edge: (edge[0] * edge[1], edge))


@st.composite
def problems(
    draw: st.DrawFn,
    *,
    dtypes: Sequence[torch.dtype] = DTYPES,
    layouts: Sequence[str] = LAYOUTS,
    integers: bool = False,
    extremes: bool = False,
) -> Problem:
    """Small problems of any shape: one clip, frame, channel or pixel, fewer frames than taps, and the edges of blocks.

    Args:
        draw: Hypothesis's own.
        dtypes: those to draw from.
        layouts: those of X and dY; where all are dense, the weights are too.
        integers: small integers only, which make sums in float32 exact.
        extremes: huge and tiny values beside normal ones.
    """
    dtype = draw(st.sampled_from(dtypes))
    small = st.tuples(st.integers(1, 11), st.integers(1, 5), st.integers(1, 5))
    edge = st.sampled_from(block_edges(dtype.itemsize)).map(lambda size: (size[0], 1, size[1]))
    C, H, W = draw(st.one_of(small, small, small, edge))
    longest = 7 if C * H * W <= 128 else 3
    weights = WEIGHT_LAYOUTS if set(layouts) - set(DENSE) else ("contiguous",)
    return Problem(
        N=draw(st.integers(1, 3 if longest == 7 else 1)),
        T=draw(st.integers(1, longest)),
        C=C,
        H=H,
        W=W,
        K=draw(st.sampled_from((1, 3, 5, 7) if longest == 7 else (1, 3))),
        layout=draw(st.sampled_from(layouts)),
        dtype=dtype,
        seed=draw(st.integers(0, 2**16)),
        values="integers" if integers else draw(st.sampled_from(("normal", *EXPONENTS) if extremes else ("normal",))),
        dy_layout=draw(st.sampled_from(layouts)),
        weights_layout=draw(st.sampled_from(weights)),
    )


def examples(share: float) -> settings:
    """A part of the profile's examples, for tests that interpret many kernels: the share holds under every profile."""
    return settings(max_examples=max(1, round(share * settings().max_examples)))
