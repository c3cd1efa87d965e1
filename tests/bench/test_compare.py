"""`python -m bench compare`: what two files of results differ in by more than their noise."""

import json
from pathlib import Path

import pytest

from bench.__main__ import main

MACHINE = {"device": "a CPU", "torch": "2.14.1"}


def file(path: Path, torch: str = "2.14.1", **times: tuple[float, float]) -> str:
    """Results of networks by name, and what stands beside them."""
    rows = [
        {"network": name, "layout": "nchw", "time": {"median": median, "spread": spread, "rounds": 5}, "of_c2d": 1.0}
        for name, (median, spread) in times.items()
    ]
    document = {"machine": MACHINE | {"torch": torch}, "options": {"clips": 1, "out": str(path)}, "rows": rows}
    path.write_text(json.dumps(document))
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    before = file(tmp_path / "a.json", slower=(10.0, 0.5), noisy=(10.0, 0.5), faster=(10.0, 0.1), gone=(1.0, 0.1))
    after = file(tmp_path / "b.json", "2.15", slower=(11.5, 0.5), noisy=(10.9, 0.5), faster=(8.0, 0.1))
    return [before, after]


def test_what_differs_is_told(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The largest share first; what is apart by less than both spreads is counted alone."""
    assert main(["compare", *files]) == 0
    machine, first, second, last = capsys.readouterr().out.splitlines()
    assert machine == "machine, torch: 2.14.1 → 2.15"
    assert first.split() == [
        "rows",
        "faster",
        "nchw",
        "time",
        "10.000±0.100",
        "→",
        "8.000±0.100",
        "ms",
        "-20.0%",
        "faster",
    ]
    assert second.split()[-2:] == ["+15.0%", "slower"]
    assert last == "3 times in both: 1 slower, 1 faster, 1 within noise; 1 only before, 0 only after"


def test_everything(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *files, "--everything"]) == 0
    assert "+9.0%  within noise" in capsys.readouterr().out


@pytest.mark.parametrize(("limit", "ends"), [("0.1", True), ("0.2", False)])
def test_a_limit_ends_with_a_status(limit: str, ends: bool, files: list[str]) -> None:
    if not ends:
        assert main(["compare", *files, "--limit", limit]) == 0
        return
    with pytest.raises(SystemExit, match=r"^1$"):
        main(["compare", *files, "--limit", limit])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file or directory"),
        ("no JSON", "expected results with times"),
        ("[]", "expected results with times"),
        ('{"rows": [{"network": "slower"}]}', "expected results with times"),
        ('{"rows": [{"network": "other", "time": {"median": 1, "spread": 0}}]}', "of which no time is in"),
    ],
)
def test_what_is_no_file_of_results_is_refused(
    text: str | None, message: str, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.json"
    if text is not None:
        other.write_text(text)
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["compare", files[0], str(other)])
    said = capsys.readouterr().err
    assert message in said
    assert "other.json" in said
