"""docs/own-data-set.md, from its first block to its last: what it writes, its commands, its program.

And docs/kinetics-400.md of what that has tested.
"""

import re
import shlex
from typing import Any

import pytest

from tests.support.pages import Block, blocks, run_block, run_page
from train.__main__ import main

PAGE = "docs/own-data-set.md"
FEWER = (
    ('{"train": 40, "val": 10}', '{"train": 6, "val": 2}'),
    ("--optimization.epochs 12", "--optimization.epochs 1"),
)
SMALL = {
    "fit": "--device cpu --threads 1 --loading.workers 0 --optimization.batch-size 6",
    "test": "--device cpu --threads 1 --loading.workers 0",
    "predict": "--device cpu",
    "export": "--most 2",
    "visualize": "--device cpu --most 2",
    "prepare": "--processes 1",
}
NOT_HERE = ("pip install", "python -m train fit own")
"""What a reader without a GPU, or with all installed, leaves out."""


@pytest.mark.usefixtures("one_thread")
def test_the_page(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    left_out = []
    text = "".join(block.code for block in blocks(PAGE))
    for before, _ in FEWER:
        assert text.count(before) == 1
    for block in blocks(PAGE):
        code = block.code
        for before, after in FEWER:
            code = code.replace(before, after)
        if block.language == "python":
            run_block(Block(block.page, block.line, block.language, code, None), names)
            continue
        for line in code.splitlines():
            if line.startswith(NOT_HERE):
                left_out.append(line)
                continue
            program, command, *arguments = shlex.split(line)[2:]
            assert program == "train"
            assert main([command, *arguments, *SMALL[command].split()]) == 0, line
    assert len(left_out) == len(NOT_HERE)
    said = capfd.readouterr().out
    for expected in ("18 of 18 usable", "18 videos of 3 classes to train on, 6 to validate on", "tested 6 of 6 videos"):
        assert expected in said, expected
    assert (tmp_path / "runs/trial/test/confusion.png").exists()
    assert (tmp_path / "runs/trial/seen/index.html").exists()
    run_page("docs/kinetics-400.md")
    row = capfd.readouterr().out
    assert re.fullmatch(r"\| runs/trial/test \| 1 × 1 of 64 \| [\d.]+% / 100.0% \| 6 of 6 videos \|\n", row), row
    assert {name for name, _ in names["model"].predict(names["video"])} == set(names["model"].class_names)
