"""`python -m bench device`: each step costs only itself, and the page tells what came of all."""

import json
import sys
from pathlib import Path
from unittest import mock

import pytest

from bench import device
from bench.__main__ import main
from bench.device import Device, Step, plan, run


def python(name: str, code: str, seconds: float = 60) -> Step:
    return Step(name, f"to {name}", seconds, (sys.executable, "-c", code))


STEPS = [
    python("greet", "print('hello')"),
    python("fail", "raise SystemExit(3)"),
    python("hang", "import time; time.sleep(60)", seconds=1),
]


def test_a_step_that_fails_or_hangs_costs_only_itself(tmp_path: Path) -> None:
    results = {
        "sums": [{"layout": "nchw", "operator": "tam", "candidate": "ours", "time": {"median": 1.5}, "of_copy": 1}]
    }
    (tmp_path / "ops_bf16.json").write_text(json.dumps(results))
    with mock.patch.object(device, "plan", return_value=STEPS):
        done = run(Device(tmp_path, device="cpu"))
    assert [one.outcome for one in done] == ["done", "failed with status 3", "stopped after its 1 s"]
    assert (tmp_path / "greet.log").read_text() == "hello\n"
    page = (tmp_path / "README.md").read_text()
    assert "| hang | to hang | 1 | stopped after its 1 s | [hang.log](hang.log) |" in page
    assert "| nchw | tam | ours | 1.5 | 1 |" in page


def test_what_did_not_begin_is_named(tmp_path: Path) -> None:
    with mock.patch.object(device, "plan", return_value=STEPS):
        done = run(Device(tmp_path, device="cpu", minutes=0.01, steps=("greet",)))
    assert [one.outcome for one in done] == ["not begun: no time was left"]


def test_one_step_of_the_true_plan(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["device", "--device", "cpu", "--out", str(tmp_path / "new"), "--steps", "facts"]) == 0
    assert "triton" in (tmp_path / "new" / "facts.log").read_text()
    assert "facts" in capfd.readouterr().out


def test_each_step_has_a_name_of_its_own(tmp_path: Path) -> None:
    """Which is that of its files."""
    steps = plan(Device(tmp_path, device="cpu"))
    assert len({step.name for step in steps}) == len(steps)
    assert all(step.name.isidentifier() for step in steps)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"steps": ("facts", "fact")}, "steps: got fact, expected some of facts"), ({"minutes": 0}, "minutes: got 0")],
)
def test_wrong_options_are_refused(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Device(tmp_path, device="cpu", **options)  # type: ignore[arg-type]
