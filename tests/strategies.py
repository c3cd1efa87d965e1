"""What Hypothesis draws: feature maps and weights, in every layout and dtype, that shrink to readable examples."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

LAYOUTS = ("contiguous", "channels_last", "sliced", "transposed", "offset")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Problem:
    """Dimensions, layout and dtype of one call; the values follow from the seed."""

    N: int
    T: int
    C: int
    H: int
    W: int
    K: int
    layout: str = "contiguous"
    dtype: torch.dtype = torch.float32
    seed: int = 0
    integers: bool = False

    def tensor(self, *shape: int, salt: int = 0) -> Tensor:
        """Values of order 1, or small integers, whose sums float32 holds exactly."""
        generator = torch.Generator().manual_seed(97 * self.seed + salt)
        if self.integers:
            return torch.randint(-3, 4, shape, generator=generator).to(self.dtype)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(self.dtype)

    def features(self, salt: int = 0, layout: str | None = None) -> Tensor:
        """`(N·T, C, H, W)` in the problem's layout, or the one that is named."""
        x = self.tensor(self.N * self.T, self.C, self.H, self.W, salt=salt)
        return in_layout(x, layout or self.layout)

    def importance(self) -> Tensor:
        """V `(N, C, T)`."""
        return self.tensor(self.N, self.C, self.T, salt=1)

    def kernel(self) -> Tensor:
        """Θ `(N, C, K)`."""
        return self.tensor(self.N, self.C, self.K, salt=2)


def in_layout(x: Tensor, layout: str) -> Tensor:
    """The same values as `x` with other strides."""
    if layout == "contiguous":
        return x.contiguous()
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        wide = x.new_full((x.shape[0], x.shape[1] + 1, x.shape[2], x.shape[3] + 2), float("nan"))
        wide[:, 1:, :, 1:-1] = x
        return wide[:, 1:, :, 1:-1]
    if layout == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "offset":
        buffer = x.new_full((x.numel() + 1,), float("nan"))
        buffer[1:] = x.flatten()
        return buffer[1:].view(x.shape)
    raise ValueError(f"layout: got {layout!r}, expected one of {LAYOUTS}")


def problems(
    *, dtypes: tuple[torch.dtype, ...] = DTYPES, integers: bool = False, max_pixels: int = 9
) -> st.SearchStrategy[Problem]:
    """Small problems of any shape: one clip, one frame, one channel, one pixel, fewer frames than taps among them."""
    return st.builds(
        Problem,
        N=st.integers(1, 3),
        T=st.integers(1, 9),
        C=st.integers(1, 19),
        H=st.integers(1, max_pixels),
        W=st.integers(1, max_pixels),
        K=st.sampled_from((1, 3, 5, 7)),
        layout=st.sampled_from(LAYOUTS),
        dtype=st.sampled_from(dtypes),
        seed=st.integers(0, 2**16),
        integers=st.just(integers),
    )
