"""The layers of the build for the Hub, which lend others their forward: no constructor, no state, no methods."""

from functools import partial

import torch
from torch import Tensor, nn

from tam_triton import functional
from tam_triton.checks import check_features, check_segments
from tam_triton.derivatives import is_channels_last
from tam_triton.temporal.folding import fold
from tam_triton.temporal.tam import run_branches


class TAM(nn.Module):
    """The forward of a temporal adaptive module (arXiv 2005.06803, equations 1 to 5), for one that has these members.

    So have this library's TAM and mmaction2's, with its adaptive convolution's stride of 1 and padding of K // 2.
    """

    has_backward: bool = True
    can_torch_compile: bool = True

    G: nn.Sequential
    """From rows of X̂ `(N·C, T)` to Θ `(N·C, K)`: Linear, BatchNorm1d, ReLU, Linear, Softmax."""
    L: nn.Sequential
    """From X̂ `(N, C, T)` to V `(N, C, T)`: Conv1d, BatchNorm1d, ReLU, Conv1d, Sigmoid."""
    num_segments: int
    """T, the frames of a clip."""

    def forward(self, x: Tensor) -> Tensor:
        """`(N·T, C, H, W)` → the same shape, dtype and layout."""
        return adapt(x, self.G, self.L, self.num_segments, self.training)


def adapt(x: Tensor, G: nn.Sequential, L: nn.Sequential, num_segments: int, training: bool) -> Tensor:
    """A temporal adaptive module by its two branches.

    Args:
        x: feature maps `(N·T, C, H, W)`.
        G: the global branch, from rows of X̂ `(N·C, T)` to Θ `(N·C, K)`; its last Linear has K rows.
        L: the local branch, from X̂ `(N, C, T)` to V `(N, C, T)`.
        num_segments: T, the frames of a clip.
        training: whether BatchNorms take the statistics of the batch.

    Raises:
        TypeError: x is no dense float tensor; `G` has no Linear.
        ValueError: x is of another rank or empty, or T does not divide its frames.
    """
    check_features(x)
    check_segments(x, num_segments)
    rows = [layer.out_features for layer in G if isinstance(layer, nn.Linear)]
    if not rows:
        raise TypeError(f"G: got {type(G).__name__} without a Linear, expected the last one to have K rows")
    on_triton = functional.choose(None, x) == "triton"
    if on_triton and not (training or torch.is_grad_enabled() or x.dtype == torch.float64):
        folded = fold(x, G, L, rows[-1])
        if folded is not None:
            branches = (folded.global_branch, folded.local_branch)
            return functional.evaluate(x, *branches, num_segments, folded.eps)
    run = partial(
        run_branches, G=G, L=L, kernel_size=rows[-1], channels_last=is_channels_last(x), folds=on_triton and training
    )
    return functional.squeeze_and_aggregate(x, run, num_segments, rows[-1])
