import json
import sys
from contextlib import closing

import pytest
import torch

from train.errors import InputError
from train.fit.learner import StepResult
from train.fit.meter import Meter
from train.log import JsonLines, RunLog, read_events
from train.team import Team


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


class FakeCurves:
    def __init__(self):
        self.points, self.purge_steps, self.closed = [], [], False

    def add(self, group, values, position):
        self.points += [(f"{group}/{name}", value, position) for name, value in values.items()]

    def close(self):
        self.closed = True


@pytest.fixture
def curves(monkeypatch):
    fake = FakeCurves()

    def opened(folder, warn, purge_step):
        fake.purge_steps.append(purge_step)
        return fake

    monkeypatch.setattr("train.log.Curves", opened)
    return fake


def test_every_line_is_there_at_once(tmp_path):
    path = tmp_path / "log.jsonl"
    with JsonLines(path) as log:
        log.write("begin", loss=1.5, path=tmp_path, names=("a", "ß"))
        assert lines_of(path) == [{"event": "begin", "loss": 1.5, "path": str(tmp_path), "names": ["a", "ß"]}]
        log.write("end", loss=float("nan"), nested={"norm": float("inf")})
    assert lines_of(path)[1] == {"event": "end", "loss": "nan", "nested": {"norm": "inf"}}


@pytest.mark.parametrize("half", ["", '{"event": "st'])
def test_append_after_a_kill(tmp_path, half):
    path = tmp_path / "log.jsonl"
    path.write_text('{"event": "step", "step": 1}\n' + half)
    with JsonLines(path, append=True) as log:
        log.write("resume")
    assert [line["event"] for line in lines_of(path)] == ["step", "resume"]
    with JsonLines(path) as log:
        log.write("begin")
    assert [line["event"] for line in lines_of(path)] == ["begin"]


def test_what_comes_again_is_left_out(tmp_path, curves):
    """A run that was killed goes on from before its last lines, and writes them again."""
    path = tmp_path / "log.jsonl"
    path.write_text("")
    with closing(RunLog(tmp_path, append=True, tensorboard=True)) as log:
        for step in (2, 4, 6):
            log.event("step", step=step)
        for epoch in (1, 2):
            log.event("epoch", step=2 * epoch, epoch=epoch)
            log.event("left_out", epoch=epoch, path="ß")
        log.event("warning", message="of no step")
        path.write_text(path.read_text() + "a line of another program\n")
        log.rewind(4, epochs=1)
        log.begin(4, 10)
        log.event("step", step=6)
    events = [line for line in path.read_text().splitlines() if line.startswith("{")]
    assert [(line["event"], line.get("step", line.get("epoch"))) for line in map(json.loads, events)] == [
        *(("step", 2), ("step", 4), ("epoch", 2), ("left_out", 1), ("warning", None), ("step", 6))
    ]
    assert "a line of another program" in path.read_text()
    assert curves.purge_steps == [5]


def test_lines_of_other_programs_stay(tmp_path):
    others = [
        "no JSON",
        "5",
        "null",
        "[1]",
        "[" * 100_000,
        '{"step": "x", "epoch": null}',
        '{"event": "epoch"}',
        "\x85",
    ]
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join([*others, '{"event": "step", "step": 3}', ""]), encoding="utf-8")
    with closing(RunLog(tmp_path, append=True)) as log:
        log.rewind(2, 0)
        log.event("step", step=3, path="a\u2028b\x85c")
    assert path.read_text(encoding="utf-8").split("\n")[: len(others)] == others
    assert read_events(path, "step") == [{"event": "step", "step": 3, "path": "a\u2028b\x85c"}]


def test_all_say_the_same(tmp_path, capsys, curves):
    with closing(RunLog(tmp_path, tensorboard=True)) as log:
        log.begin(0, 10)
        log.steps(4, 0.5, {"loss": 2.5, "lr": 0.1}, "step 4: fine")
        log.progress(4)
        log.epoch(8, 1, {"train": {"top1": 0.5}, "val": {"top1": 0.25}}, "epoch 1: good")
        log.warn("a file is missing", path="x")
    assert lines_of(tmp_path / "log.jsonl") == [
        {"event": "step", "step": 4, "epoch": 0.5, "loss": 2.5, "lr": 0.1},
        {"event": "epoch", "step": 8, "epoch": 1, "train": {"top1": 0.5}, "val": {"top1": 0.25}},
        {"event": "warning", "message": "a file is missing", "path": "x"},
    ]
    assert capsys.readouterr().out.splitlines() == ["step 4: fine", "epoch 1: good", "warning: a file is missing"]
    assert curves.points == [
        ("train/loss", 2.5, 4),
        ("train/lr", 0.1, 4),
        ("epoch/train/top1", 0.5, 1),
        ("epoch/val/top1", 0.25, 1),
    ]
    assert curves.closed


def test_processes_that_do_not_lead_say_nothing(tmp_path, capsys):
    with closing(RunLog(None)) as log:
        log.begin(0, 10)
        log.steps(4, 0.5, {"loss": 2.5}, "step 4")
        log.warn("nothing")
        log.progress(4)
    assert capsys.readouterr() == ("", "")


def test_tensorboard_is_named_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    with pytest.raises(InputError, match="tensorboard: is not installed"):
        RunLog(tmp_path, tensorboard=True)


def test_meter(monkeypatch):
    now = 0.0
    monkeypatch.setattr("train.fit.meter.time.perf_counter", lambda: now)
    meter = Meter(Team(torch.device("cpu")), clips_per_step=64)
    for loss in (3.0, 1.0):
        with meter.waiting():
            now += 0.5
        now += 1.5
        with meter.aside():  # a checkpoint, say
            now += 100
        meter.add(StepResult(torch.tensor(loss), torch.tensor(7.0 * loss)))
    metrics = meter.report(lr=0.01)
    assert metrics == {
        "loss": 2.0,
        "lr": 0.01,
        "grad_norm": 7.0,
        "step_seconds": 2.0,
        "data_wait_seconds": 0.5,
        "clips_per_second": 32.0,
    }
    assert meter.text(metrics) == (
        "loss 2.0000  lr 0.01  grad norm 7.00  32.0 clips/s  2.000 s a step, 0.500 s of it waiting for data"
    )
    assert meter.report(lr=0.01) == {}
