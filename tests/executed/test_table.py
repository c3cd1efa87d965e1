"""The table of errors: what is committed is whole and within the rule, and its rows are what the command makes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.executed import table
from tests.executed.table import ELSEWHERE, FULL, RESULTS, SHAPES, Rows, combinations, key, main, page, read, units
from tests.support.tolerance import assert_close, error_of

pytestmark = pytest.mark.executed

PAGE = Path(__file__).parents[2] / "docs" / "proof.md"
ELSEWHERE_DTYPES = ("float32", "bfloat16")
ANEW = "write it anew with `python -m tests.executed.table`"


@pytest.fixture(scope="module")
def committed() -> Rows:
    return read(RESULTS)


def test_every_operator_dtype_and_layout_is_committed(committed: Rows) -> None:
    """All of one target, and of the others at least the dtypes that networks have."""
    keys = [key(row) for row in committed]
    assert {one for one in combinations() if one[0] == FULL or one[1] in ELSEWHERE_DTYPES} <= set(keys), ANEW
    assert keys == [one for one in combinations() if one in keys], ANEW
    for row in committed:
        assert int(row["problems"]) == (len(SHAPES) if row["target"] == FULL else ELSEWHERE), row
        assert int(row["launches"]) >= int(row["problems"]), row


def test_no_result_is_off_by_more_than_is_allowed(committed: Rows) -> None:
    """And none is exact on all problems, which would be nothing compared."""
    assert [row for row in committed if not 0 < max(units(row)) <= 1] == []


def test_the_page_has_the_table(committed: Rows) -> None:
    assert "\n".join(page(committed)) in PAGE.read_text(encoding="utf-8"), f"{PAGE.name} lacks what the command prints"


def test_rows_are_what_is_executed(committed: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In two parts, into one file. Counts are those of the committed rows; errors depend on this CPU's plain torch."""
    out = tmp_path / "new" / "executed.csv"
    for dtype in ("float16", "bfloat16"):
        arguments = ["--targets", "sm_90", "--dtypes", dtype, "--operators", "squeeze", "--out", str(out)]
        assert main(arguments) == 0
    assert "2 rows executed, 2 kept" in capsys.readouterr().out
    rows = read(out)
    expected = [row for row in committed if key(row) in set(map(key, rows))]
    counted = [name for name in expected[0] if "worst" not in name and not name.endswith("at")]
    assert [[row[name] for name in counted] for row in rows] == [[row[name] for name in counted] for row in expected], (
        f"kernels or compiler are others than those of {RESULTS.name}: {ANEW}"
    )
    assert all(0 < one <= 1 for row in rows for one in units(row))


def test_what_is_off_by_more_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Functions that err by fifty times what their manual allows; on one problem."""
    monkeypatch.setattr(table, "ENDS", (-50.0,))
    monkeypatch.setattr(table, "ELSEWHERE", 1)
    out = tmp_path / "executed.csv"
    arguments = ["--targets", "sm_80", "--dtypes", "float32", "--operators", "squeeze", "--out", str(out)]
    assert main(arguments) == 1
    assert "off by more than is allowed: sm_80 float32 nchw squeeze" in capsys.readouterr().out
    assert all(float(row["worst"]) < 1 < float(row["worst_at_ends"]) for row in read(out))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--operators", "squeeze", "sqeeze"], "operators: got sqeeze, expected some of squeeze, aggregate,"),
        (["--out", "{other}"], "got columns ['target', 'dtype'], expected target, dtype, layout,"),
    ],
)
def test_what_cannot_be_used_is_refused(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.csv"
    other.write_text("target,dtype\nsm_90,float32\n")
    assert main([argument.format(other=other) for argument in arguments]) == 2
    assert said in capsys.readouterr().err
    assert other.read_text() == "target,dtype\nsm_90,float32\n"


def test_errors_are_in_units_of_what_is_allowed() -> None:
    """Plain torch is off by 3 of 256, a step is 2⁻²³ of that: twice their sum is allowed."""
    truth, plain = np.array([256.0, 1.0]), torch.tensor([256.0, 4.0])
    allowed = 2 * (3 + 2.0**-15)
    for off, right in ((allowed, True), (2 * allowed, False)):
        result = torch.tensor([256.0 + off, 1.0])
        assert error_of(result, truth, plain).in_units == off / allowed
        if right:
            assert_close(result, truth, plain)
            continue
        with pytest.raises(AssertionError, match="off by 12 where 6 is allowed"):
            assert_close(result, truth, plain)
    with pytest.raises(AssertionError, match="off by nan"):
        assert_close(torch.tensor([float("nan"), 1.0]), truth, plain)


def test_what_is_rounded_is_rounded_up() -> None:
    assert [table.in_units(one) for one in (0.5, 1.0, 1.0000001, float("inf"))] == ["0.500", "1.000", "1.001", "inf"]
    row = {"operator": "squeeze", "dtype": "float64", "worst": "inf", "worst_at_ends": "-"}
    assert page([row | {"launches": "3", "instructions": "4000"}])[-1] == "| all | – | – | – | inf | 3 | 4,000 |"
