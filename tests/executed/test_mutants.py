"""Wrong PTX is seen, each kind of fault by the check that is for it."""

from collections.abc import Iterator
from unittest import mock

import pytest
from triton.runtime import driver

from bench.offline import AbsentDevice
from tests.executed.mutants import MUTANTS, TARGET, Mutant, changes, killers

pytestmark = pytest.mark.executed
MOST = 3  # places of each kernel; `python -m tests.executed.mutants` makes the change at all


@pytest.fixture(autouse=True, scope="module")
def absent_gpu() -> Iterator[None]:
    """Strides are asked for outside `device`."""
    with mock.patch.object(driver, "_active", AbsentDevice(TARGET)):
        yield


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.fault)
def test_every_change_is_seen(mutant: Mutant) -> None:
    found = [check for case in mutant.cases for check in killers(mutant, case, MOST)]
    assert mutant.checks[0] in found
    assert set(found) <= set(mutant.checks)


def test_a_change_is_made_at_one_place_after_the_other() -> None:
    mutant = Mutant("", r"\n(b)ar", r"\nf\1", (), [])
    assert list(changes(mutant, "a\nbar\nbar")) == ["a\nfb\nbar", "a\nbar\nfb"]
