"""`python -m bench device`: each step costs only itself, and the page tells what came of all."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch

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
RESULTS = {"sums": [{"layout": "nchw", "operator": "tam", "candidate": "ours", "time": {"median": 1.5}, "of_copy": 1}]}


def test_a_step_that_fails_or_hangs_costs_only_itself(tmp_path: Path) -> None:
    write = f"open({str(tmp_path / 'ops_bf16.json')!r}, 'w').write({json.dumps(RESULTS)!r})"
    with mock.patch.object(device, "plan", return_value=[*STEPS, python("ops_bf16", write)]):
        done = run(Device(tmp_path, device="cpu"))
    assert [one.outcome for one in done] == ["done", "failed with status 3", "stopped after its 1 s", "done"]
    assert (tmp_path / "greet.log").read_text() == "hello\n"
    page = (tmp_path / "README.md").read_text()
    assert "| hang | to hang | 1 | stopped after its 1 s | [hang.log](hang.log) |" in page
    assert "| nchw | tam | ours | 1.5 | 1 |" in page


def test_what_an_earlier_run_left_is_not_on_the_page(tmp_path: Path) -> None:
    (tmp_path / "ops_bf16.json").write_text(json.dumps(RESULTS))
    with mock.patch.object(device, "plan", return_value=[python("ops_bf16", "raise SystemExit(3)")]):
        run(Device(tmp_path, device="cpu"))
    assert "| ours |" not in (tmp_path / "README.md").read_text()


SLEEPING = f"""
import subprocess
child = subprocess.Popen({[sys.executable, "-c", "import time; time.sleep(60)"]})
print(child.pid, flush=True)
child.wait()
"""


def wait(reached: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 120
    while not reached():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def is_gone(log: Path) -> bool:
    """Whether the process that a step names in its log ended; nobody may have looked after it."""
    status = Path("/proc", log.read_text().strip(), "stat")
    return not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] == "Z"


def test_a_step_that_hangs_leaves_no_process(tmp_path: Path) -> None:
    """Such as a worker of pytest, which would keep the GPU busy under the next step's clock."""
    log = tmp_path / "hang.log"
    assert device.executed(python("hang", SLEEPING), 1, log, {}).outcome == "stopped after its 1 s"
    wait(lambda: is_gone(log), "it lives")


def test_a_command_that_is_ended_leaves_no_process(tmp_path: Path) -> None:
    program = f"""
import pathlib
from unittest import mock
from bench import device
step = device.Step("hang", "", 60, ({sys.executable!r}, "-c", {SLEEPING!r}))
with mock.patch.object(device, "plan", return_value=[step]):
    device.run(device.Device(pathlib.Path({str(tmp_path)!r}), device="cpu"))
"""
    log = tmp_path / "hang.log"
    with subprocess.Popen([sys.executable, "-c", program], cwd=device.ROOT) as process:
        wait(lambda: log.exists() and log.read_text().endswith("\n"), "it did not begin")
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 128 + signal.SIGTERM
    wait(lambda: is_gone(log), "it lives")


def test_a_step_sees_the_gpu_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so do those that take no device, as the tests and `bench predict`."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert device.visible("cuda") == device.visible("cpu") == {}
    assert device.visible("cuda:1") == {"CUDA_VISIBLE_DEVICES": "1"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, GPU-7")
    assert device.visible("cuda:1") == {"CUDA_VISIBLE_DEVICES": "GPU-7"}
    commands = [step.command for step in plan(Device(tmp_path, device="cuda:1"))]
    assert not any("cuda:1" in command for command in commands)
    assert any(command[-2:] == ("bench.one_pass", "cuda") for command in commands)
    with pytest.raises(ValueError, match="device: got 'cuda:2', but torch finds no such device here"):
        Device(tmp_path, device="cuda:2")
    device.executed(python("env", "import os; print(os.environ['SEEN'])"), 60, tmp_path / "log", {"SEEN": "7"})
    assert (tmp_path / "log").read_text() == "7\n"


def test_what_was_predicted_alone_is_not_called_measured(tmp_path: Path) -> None:
    (file := tmp_path / "predict.csv").write_text("target,launched,measured\nsm_90,1.5,\nsm_90,2.5,\n")
    assert device.predicted(file) == "Times of every launch as predicted for sm_90, none of them measured"
    file.write_text("target,launched,measured\nsm_90,1.5,1.6\nsm_90,2.5,\n")
    assert device.predicted(file) == "Predicted beside measured times of every launch"


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
