"""`python -m bench compare`: what two files of results differ in by more than their noise."""

import json
from pathlib import Path

import pytest

from bench.__main__ import main

TIME = '{"network": "other", "time": {"median": 1, "spread": 0}}'
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


def test_rows_that_a_number_names_are_all_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A stream's, by how many frames are computed again; None is the whole window."""
    paths = []
    for name, of_one in (("a.json", 5.0), ("b.json", 10.0)):
        times = {None: 40.0, 1: of_one, 8: 41.0}
        rows = [
            {"system": "tsm", "recompute": frames, "time": {"median": median, "spread": 0.1, "rounds": 3}}
            for frames, median in times.items()
        ]
        paths.append(tmp_path / name)
        paths[-1].write_text(json.dumps({"rows": rows}))
    assert main(["compare", *map(str, paths)]) == 0
    line, last = capsys.readouterr().out.splitlines()
    assert line.startswith("rows tsm recompute 1 time ")
    assert "+100.0%  slower" in line
    assert last.startswith("3 times in both: 1 slower, 0 faster, 2 within noise")


def test_a_time_of_nothing_before_is_no_division_by_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A kernel that less than half of the calls launched."""
    before, after = file(tmp_path / "a.json", kernel=(0.0, 0.0)), file(tmp_path / "b.json", kernel=(1.0, 0.0))
    assert main(["compare", before, after]) == 0
    assert main(["compare", before, before]) == 0
    assert "slower" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file or directory"),
        ("no JSON", "expected results with times"),
        ("[]", "expected results with times"),
        ('{"rows": [{"network": "slower"}]}', "expected results with times"),
        (f'{{"rows": [{TIME}]}}', "of which no time is in"),
        (f'{{"rows": [{", ".join(2 * [TIME])}]}}', "with more than one time of 'rows other time'"),
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
