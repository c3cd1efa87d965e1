"""From each form in which data sets are given out to scores by a published protocol, by the commands of the docs."""

import csv
import json

import pytest

from tests.support.data_sets import DATA_SETS, VIDEOS
from train.__main__ import main

pytestmark = pytest.mark.usefixtures("one_thread")

# Form: recipe, protocol, clips and crops. Every recipe's own protocol, and the one of validation.
RUNS = {
    "kinetics": ("k400-8f", "recipe", 10, 3),
    "kinetics_flat": ("k400-16f", "recipe", 4, 3),
    "video_list": ("k400-8f", "1x1", 1, 1),
    "frames_list": ("ssv1-16f", "recipe", 1, 1),
    "something_v1": ("ssv1-8f", "recipe", 1, 1),
    "something_v2": ("ssv2-8f", "recipe", 2, 3),
    "tree": ("ssv2-16f", "2x3", 2, 3),
}
# The recipes but for size: frames of 72 × 96 pixels, a small network from random weights, six epochs of three steps.
SMALL = """
    --data.num-classes 3 --model.backbone small --model.weights None --model.dropout 0 --augmentation.crop-size 64
    --optimization.batch-size 6 --optimization.lr 0.01 --optimization.epochs 6 --optimization.milestones 4
    --validation.short-side 72 --validation.crop-size 64 --loading.workers 0 --device cpu --threads 1
"""


@pytest.mark.parametrize("form", RUNS)
def test_from_files_to_scores(form, tmp_path, capfd):
    recipe, protocol, clips, crops = RUNS[form]
    data = DATA_SETS[form](tmp_path)
    index, run, scores = {split: tmp_path / f"{split}.jsonl" for split in VIDEOS}, tmp_path / "run", tmp_path / "scores"

    for split, dataset in data.lists.items():
        prepare = ["prepare", str(dataset), "--source", data.source, *data.options, "--out", str(index[split])]
        assert main([*prepare, "--processes", "1"]) == 0
    said = capfd.readouterr().out
    assert "train: 18 of 18 usable" in said
    assert "val: 9 of 10 usable" in said

    inputs = ["--data.train", str(index["train"]), "--data.val", str(index["val"])]
    assert main(["fit", recipe, *inputs, *SMALL.split(), "--out", str(run)]) == 0
    events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    epochs = [event for event in events if event["event"] == "epoch"]
    assert [(epoch["train"]["total"], epoch["val"]["total"]) for epoch in epochs] == [(18, 9)] * 6

    size = ["--views.short-side", "72", "--views.crop-size", "72", "--loading.workers", "0", "--device", "cpu"]
    checkpoint = str(run / "checkpoints" / "step-00000018.pt")
    assert main(["test", checkpoint, "--protocol", protocol, *size, "--out", str(scores)]) == 0
    result = json.loads((scores / "result.json").read_text())
    views = result["protocol"]["views"]
    assert (views["clips"], views["crops"]) == (clips, crops)
    assert (result["videos"], result["missing"]) == (9, 1)
    assert result["top1"] >= 7 / 9  # a third by chance
    rows = list(csv.DictReader((scores / "classes.csv").read_text().splitlines()))
    assert tuple(row["class"] for row in rows) == data.class_names
    assert [row["videos"] for row in rows] == ["3", "3", "3"]
