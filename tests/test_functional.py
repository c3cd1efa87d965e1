"""What the public functions say of bad calls, and which implementation they choose."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tam_triton import aggregate, ops, squeeze, squeeze_and_aggregate
from tam_triton.functional import choose

X = torch.zeros(8, 6, 3, 3)
V = torch.zeros(2, 6, 4)
THETA = torch.zeros(2, 6, 3)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([1.0], TypeError, "x: got list, expected a Tensor"),
        (X.int(), TypeError, "x: got dtype torch.int32, expected one of torch.float32"),
        (X.to(torch.complex64), TypeError, "x: got dtype torch.complex64"),
        (X.to_sparse(), TypeError, "x: got layout torch.sparse_coo, expected a dense"),
        (X[0], ValueError, r"x: got shape \(6, 3, 3\), expected 4 dimensions"),
        (X[:, :, :0], ValueError, r"x: got empty shape \(8, 6, 0, 3\)"),
        (X[:7], ValueError, "got 4, expected a divisor of x's N·T = 7|got T = 4 frames .* N·T = 7"),
    ],
)
@pytest.mark.parametrize(
    "call",
    [
        lambda x: squeeze(x, 4),
        lambda x: aggregate(x, V, THETA),
        lambda x: squeeze_and_aggregate(x, lambda s: (s, s[..., :3]), 4, 3),
    ],
    ids=["squeeze", "aggregate", "squeeze_and_aggregate"],
)
def test_bad_features(call: Callable[[Any], Tensor], x: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(x)


@pytest.mark.parametrize("segments", [0, -4, 3, 9])
def test_bad_segments(segments: int) -> None:
    with pytest.raises(ValueError, match=f"num_segments: got {segments}, expected a divisor of x's N·T = 8"):
        squeeze(X, segments)


def test_segments_of_another_type() -> None:
    with pytest.raises(TypeError, match="num_segments: got float, expected an int"):
        squeeze(X, 4.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("importance", "kernel", "error", "message"),
    [
        (None, THETA, TypeError, "importance: got NoneType, expected a Tensor"),
        (V, 3, TypeError, "kernel: got int, expected a Tensor"),
        (V[0], THETA, ValueError, r"importance: got shape \(6, 4\), expected 3 dimensions above 0: \(N, C, T\)"),
        (V, THETA[..., :0], ValueError, r"kernel: got shape \(2, 6, 0\), expected 3 dimensions above 0: \(N, C, K\)"),
        (V[:1], THETA, ValueError, r"importance: got \(N, C\) = \(1, 6\), expected \(2, 6\)"),
        (V, THETA[:, :5], ValueError, r"kernel: got \(N, C\) = \(2, 5\), expected \(2, 6\)"),
        (V[..., :3], THETA, ValueError, "importance: got T = 3 frames .* divisor of x's N·T = 8"),
        (V, THETA[..., :2], ValueError, "kernel: got K = 2 taps, expected an odd number"),
        (V.int(), THETA, TypeError, "importance: got dtype torch.int32"),
        (V, THETA.double(), TypeError, "kernel: got dtype torch.float64, expected float32"),
        (V.to("meta"), THETA, ValueError, "importance: got device meta, expected x's cpu"),
    ],
)
def test_bad_weights(importance: Any, kernel: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        aggregate(X, importance, kernel)
    with pytest.raises(error, match=message):
        squeeze_and_aggregate(X.clone().requires_grad_(), lambda _: (importance, kernel), 4, 3)


def test_branches_of_another_kernel_size() -> None:
    with pytest.raises(ValueError, match="kernel: got 3 taps, expected kernel_size=5"):
        squeeze_and_aggregate(X.clone().requires_grad_(), lambda s: (s, s[..., :3]), 4, 5)


def test_choice_of_implementation(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(None, X) == "torch"
    assert choose("triton", X) == "triton"  # this suite interprets the kernels
    with pytest.raises(ValueError, match="impl: got 'numpy', expected"):
        choose("numpy", X)
    monkeypatch.setattr(ops, "INTERPRETED", False)
    with pytest.raises(ValueError, match='impl: got "triton" for x on cpu, expected x on a GPU'):
        squeeze(X, 4, impl="triton")
    monkeypatch.setattr(ops, "HAS_TRITON", False)
    assert choose(None, X) == "torch"
