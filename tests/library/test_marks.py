"""Which tests `-m` leaves to run: those of its mark, wherever they lie."""

from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

from tests.conftest import pytest_collection_modifyitems


def skipped(expression: str, *marks: str) -> list[str]:
    """Why a test of these marks in tests/executed is skipped on a machine with a GPU, where `-m` is as given."""
    added: list[pytest.MarkDecorator] = []
    item: Any = SimpleNamespace(
        keywords={"tests": True, "executed": True, **dict.fromkeys(marks, True)},
        get_closest_marker=lambda name: name if name in marks else None,
        add_marker=added.append,
    )
    config: Any = SimpleNamespace(getoption=lambda _: expression)
    with mock.patch.object(torch.cuda, "is_available", return_value=True):
        pytest_collection_modifyitems(config, [item])
    return [one.kwargs["reason"] for one in added]


@pytest.mark.parametrize(
    ("expression", "marks", "count"),
    [
        ("gpu", ["gpu"], 0),
        ("executed and not deep", ["executed"], 0),
        ("", [], 0),
        ("", ["gpu"], 1),
        ("", ["executed"], 1),
        ("gpu", ["executed"], 1),
    ],
)
def test_a_folder_of_a_marks_name_is_no_mark(expression: str, marks: list[str], count: int) -> None:
    assert len(skipped(expression, *marks)) == count
