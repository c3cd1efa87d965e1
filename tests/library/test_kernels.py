"""Every operator on fixed shapes against the NumPy reference: interpreted Triton kernels and plain torch alike."""

from dataclasses import replace
from types import ModuleType

import pytest

from tam_triton import kernels
from tests.support.operators import OPERATORS, check_against_reference, each_backend
from tests.support.strategies import DENSE, Problem

# TANet's stages at small channel counts, and every degenerate one: a single clip, frame, channel or pixel, fewer frames
# than taps, primes.
SHAPES = [
    Problem(N=2, T=8, C=5, H=7, W=7, K=3),
    Problem(N=1, T=3, C=16, H=7, W=7, K=3),
    Problem(N=1, T=4, C=6, H=14, W=14, K=3),
    Problem(N=3, T=1, C=7, H=5, W=3, K=3),
    Problem(N=2, T=1, C=1, H=1, W=1, K=7),
    Problem(N=2, T=2, C=12, H=2, W=3, K=7),
    Problem(N=2, T=5, C=17, H=4, W=4, K=1),
    Problem(N=1, T=3, C=33, H=17, W=1, K=3),
]
LARGE = [
    Problem(N=1, T=6, C=3, H=14, W=14, K=5),
    Problem(N=1, T=2, C=3, H=28, W=28, K=3),
    Problem(N=1, T=26, C=2, H=3, W=3, K=5),
    Problem(N=1, T=3, C=1, H=57, W=29, K=3),
    Problem(N=2, T=7, C=1, H=1, W=1, K=5),
]
each_layout = pytest.mark.parametrize("memory", DENSE)
each_shape = pytest.mark.parametrize(
    "shape",
    [*SHAPES, *(pytest.param(shape, marks=pytest.mark.deep) for shape in LARGE)],
    ids=lambda p: f"N{p.N}T{p.T}C{p.C}P{p.H}x{p.W}K{p.K}",
)


@each_backend
@each_layout
@each_shape
def test_equal_the_reference(backend: ModuleType, memory: str, shape: Problem) -> None:
    for operator in OPERATORS:
        check_against_reference(backend, operator, replace(shape, layout=memory, dy_layout=memory))


@each_layout
@pytest.mark.parametrize(("T", "K"), [(33, 3), (70, 19)])
def test_branches_of_long_clips(memory: str, T: int, K: int) -> None:
    """More frames, and a wider hidden layer, than a block has."""
    problem = Problem(N=1, T=T, C=18, H=1, W=1, K=K, layout=memory)
    (branches,) = (operator for operator in OPERATORS if operator.name == "branches")
    check_against_reference(kernels, branches, problem)


@each_layout
def test_split_pixels_sum_alike(memory: str) -> None:
    """One channel of many pixels is squeezed in several parts."""
    problem = Problem(N=1, T=2, C=1, H=64, W=41, K=3, layout=memory)
    for operator in OPERATORS:
        if operator.averages:
            check_against_reference(kernels, operator, problem)
