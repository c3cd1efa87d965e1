"""The suite kills every mutant of `mutants`; what it took beyond the properties of other files is here."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tam_triton import kernels, plain
from tam_triton.plain import in_cache
from tests.properties.injection import Mutant, injected, kill, mutated_source
from tests.properties.mutants import MUTANTS
from tests.support.strategies import Problem

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(600)
def test_every_mutant_is_killed() -> None:
    """In processes of their own, where properties do not shrink what they find."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.properties.mutants"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(MUTANTS)} mutants, 0 survive" in done.stdout


def test_an_unchanged_copy_survives() -> None:
    """Else being a copy is what kills."""
    for mutant in (next(m for m in MUTANTS if m.backend == backend and m.operator) for backend in ("kernels", "plain")):
        same = Mutant(**{**vars(mutant), "wrong": mutant.right})
        assert not kill(same)


def test_a_text_that_is_not_there_is_refused() -> None:
    mutant = Mutant("", "kernels/parts.py", "no such text", "", "")
    with pytest.raises(ValueError, match=r"parts.py: 'no such text' occurs 0 times"):
        mutated_source(mutant)


def test_the_fault_is_gone_afterwards() -> None:
    before = kernels.aggregate
    with injected(MUTANTS[0]):
        assert kernels.aggregate is not before
    assert kernels.aggregate is before


def test_pieces_of_pixels_add_up() -> None:
    """channels_last tensors that no cache holds are gone through in pieces; those of other tests have one."""
    problem = Problem(N=1, T=2, C=64, H=120, W=120, K=3, layout="channels_last", values="integers")
    arguments = (problem.features(salt=3), problem.features(), problem.importance(), problem.kernel())
    assert arguments[0].nbytes > 3 * in_cache.PIECE_BYTES
    dy, x, v, theta = (tensor.double() for tensor in arguments)  # float64 takes another form
    exact = plain.weight_gradients(dy, x, v, theta)
    for result, expected in zip(plain.weight_gradients(*arguments), exact, strict=True):
        assert torch.equal(result.double(), expected)
    assert torch.equal(plain.aggregate(*arguments[1:]).double(), plain.aggregate(x, v, theta))
