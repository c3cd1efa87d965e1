import csv
import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.fit_runs import Videos, run_one, tiny_config
from train.__main__ import main
from train.checkpoint import TrainedNetwork, load_checkpoint, save_checkpoint
from train.data.dataset import Views
from train.data.entries import Entry, Split
from train.data.index import Checked, Index, IndexWriter
from train.data.loader import Loading
from train.errors import InputError
from train.evaluation.protocols import choose_views
from train.evaluation.scores import VideoScores
from train.evaluation.test import EvaluationConfig
from train.evaluation.view_changes import ViewChanges
from train.evaluation.views import score_videos
from train.fit.config import Compute
from train.networks import build_network
from train.recipes import RECIPES
from train.team import Team

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = ("falls", "rises", "stays")
HEIGHT, WIDTH = 40, 64
LENGTHS = (70, 83, 76, 90, 64)
ALONE, READING = Team(torch.device("cpu")), Loading(workers=0)
SMALL = ("--views.short-side", "40", "--views.crop-size", "40", "--loading.workers", "0", "--threads", "1")
PICTURES = {"confusion.png", "per_class.png"}
FILES = {"scores.npz", "result.json", "classes.csv", "confusion.csv", "missing.csv", *PICTURES}


def make_video(folder, length, seed, height=HEIGHT, width=WIDTH):
    """Pictures whose brightness tells frames, places and videos apart."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 200, (length, 4, 4, 3))
    folder.mkdir(parents=True)
    for number, frame in enumerate(coarse, start=1):
        picture = frame.repeat(height // 4, 0).repeat(width // 4, 1) + rng.integers(0, 55, (height, width, 3))
        Image.fromarray(picture.astype(np.uint8)).save(folder / f"img_{number:05d}.png", compress_level=1)
    return Entry(folder, seed % len(CLASSES), "frames", length, "img_{:05d}.png")


def make_trained(name="demo", **changes):
    """A network of random weights by the published recipe `name`, but for its size."""
    recipe = RECIPES[name]
    model = replace(RECIPES["demo"].model, dropout=0.3)
    recipe = replace(recipe, model=model, data=replace(recipe.data, num_classes=None), **changes)
    torch.manual_seed(5)
    network = build_network(model, len(CLASSES), recipe.sampling.num_segments)
    torch.nn.init.normal_(network.get_parameter("fc.weight"))
    return TrainedNetwork(network.eval(), recipe, CLASSES)


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return Split("val", tuple(make_video(folder / f"{i}", n, i) for i, n in enumerate(LENGTHS)), CLASSES)


@pytest.fixture(scope="module")
def files(split, tmp_path_factory):
    """A checkpoint, and an index in which one video more is gone."""
    folder = tmp_path_factory.mktemp("files")
    gone = replace(split.entries[0], path=split.entries[0].path.parent / "gone", label=2)
    listed = replace(split, entries=(*split.entries, gone))
    with IndexWriter(folder / "val.jsonl", listed, folder, {}) as writer:
        for number, entry in enumerate(listed.entries):
            problem = ("missing", "no such folder") if entry == gone else (None, "")
            writer.write(Checked(number, entry, *problem))
    views = Views("spread", clips=3, crops=3, short_side=40, crop_size=40)
    sampling = replace(RECIPES["demo"].sampling, num_segments=4)
    save_checkpoint(folder / "network.pt", make_trained(sampling=sampling, test=views))
    return folder


def run_all(trained, split, views, **options):
    return score_videos(trained, Index(split, ()), views, ALONE, READING, **options)


def frames_by_hand(kind, n, T, clips):
    """PAPER.md's rules, a clip after the other."""
    chosen = []
    for clip in range(clips):
        if kind == "dense":
            start = int(np.linspace(0, max(1, 1 + n - 64) - 1, clips)[clip])
            chosen.append([(start + i * (64 // T)) % n for i in range(T)])
        elif clips == 1:
            chosen.append([int(n / T / 2 + i * n / T) for i in range(T)])
        else:
            start = int(np.linspace(0, n / T - 1, clips)[clip])
            chosen.append([int(start + i * n / T) % n for i in range(T)])
    return chosen


def scores_by_hand(trained, entry, kind, T, clips, crops, size, probabilities=False):
    """The mean over all views of one video, each view computed alone from pictures that Pillow reads."""
    pictures = [np.asarray(Image.open(entry.path / f"img_{i + 1:05d}.png")) for i in range(entry.num_frames)]
    height, width = pictures[0].shape[:2]
    top = (height - size) // 2
    lefts = [(width - size) // 2] if crops == 1 else [0, (width - size) // 2, width - size]
    answers = []
    for indices in frames_by_hand(kind, entry.num_frames, T, clips):
        for left in lefts:
            view = np.stack([pictures[i][top : top + size, left : left + size] for i in indices]) / 255.0
            view = (view - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
            with torch.no_grad():
                logits = trained.network(torch.tensor(view, dtype=torch.float32).permute(0, 3, 1, 2)[None])[0]
            answers.append((logits.softmax(0) if probabilities else logits).double().numpy())
    assert len(answers) == clips * crops
    return np.mean(answers, 0)


PUBLISHED = {
    "k400-8f": ("dense", 8, 10, 3, 256),
    "k400-16f": ("dense", 16, 4, 3, 256),
    "ssv1-8f": ("segments", 8, 1, 1, 224),
    "ssv1-16f": ("segments", 16, 1, 1, 224),
    "ssv2-8f": ("segments", 8, 2, 3, 256),
    "ssv2-16f": ("segments", 16, 2, 3, 256),
}


@pytest.mark.parametrize(("name", "average"), [*((name, "logits") for name in PUBLISHED), ("ssv2-8f", "probabilities")])
def test_published_protocols(split, name, average):
    kind, T, clips, crops, size = PUBLISHED[name]
    trained = make_trained(name)
    assert trained.recipe.test == Views("spread", clips, crops, 256, size)
    assert trained.recipe.sampling.num_segments == T
    size = size * 40 // 256
    two = replace(split, entries=split.entries[:2])
    seen = []
    trained.network.register_forward_hook(lambda network, arguments, output: seen.append(len(output)))
    scores = run_all(trained, two, replace(trained.recipe.test, short_side=40, crop_size=size, average=average))
    assert sum(seen) == 2 * clips * crops
    assert scores.kind == average
    expected = [
        scores_by_hand(trained, e, kind, T, clips, crops, size, average == "probabilities") for e in two.entries
    ]
    np.testing.assert_allclose(scores.scores, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(np.subtract(*expected)).max() > 1e-3  # the videos are not alike


def test_crops_of_256_pixels(tmp_path):
    """Larger than the 224 that networks are trained with: they take any size."""
    split = Split("val", (make_video(tmp_path / "a", 16, 1, 256, 340),), CLASSES)
    trained = make_trained("ssv2-8f")
    scores = run_all(trained, split, trained.recipe.test)
    expected = scores_by_hand(trained, split.entries[0], "segments", 8, 2, 3, 256)
    np.testing.assert_allclose(scores.scores[0], expected, rtol=1e-4, atol=1e-4)


def test_protocols_on_the_command_line():
    def views(recipe, protocol="recipe", **changes):
        config = EvaluationConfig(Path("x"), protocol=protocol, views=ViewChanges(**changes))
        return choose_views(config, RECIPES[recipe].test)

    assert views("k400-16f") == Views("spread", 4, 3, 256, 256)
    assert views("k400-16f", "10x3") == Views("spread", 10, 3, 256, 256)
    assert views("ssv2-8f", "1x1") == Views("middle", 1, 1, 256, 224)
    assert views("ssv2-8f", "2x3", clips=5, average="probabilities") == Views("spread", 5, 3, 256, 256, "probabilities")
    assert views("ssv2-8f", "1x1", clips=3) == Views("spread", 3, 1, 256, 224)
    assert views("k400-8f", clips=1) == Views("middle", 1, 3, 256, 256)
    assert views("k400-8f", clips=1, placement="spread") == Views("spread", 1, 3, 256, 256)
    with pytest.raises(InputError, match=r"views.clips: got 3, expected 1 where the placement is middle"):
        views("ssv2-8f", "1x1", clips=3, placement="middle")
    with pytest.raises(InputError, match=r"views.crops: got 0, expected at least 1"):
        views("ssv2-8f", crops=0)


def test_a_video_that_is_missing_changes_nothing_else(split, tmp_path):
    trained = make_trained("k400-8f")
    views = replace(trained.recipe.test, short_side=40, crop_size=40)
    whole = run_all(trained, split, views, batch_size=30)
    entries = list(split.entries)
    entries[1] = replace(entries[1], path=tmp_path / "gone")
    entries[3] = make_video(tmp_path / "torn", LENGTHS[3], 3)
    last_clip_alone = frames_by_hand("dense", LENGTHS[3], 8, 10)[9][-1]
    (entries[3].path / f"img_{last_clip_alone + 1:05d}.png").write_bytes(b"no picture")
    broken = run_all(trained, replace(split, entries=tuple(entries)), views, batch_size=30)
    assert np.array_equal(broken.scores, whole.scores[[0, 2, 4]])
    assert [Path(name).name for name in broken.videos] == ["0", "2", "4"]
    assert [Path(missing.video).name for missing in broken.missing] == ["gone", "torn"]
    assert all(missing.reason for missing in broken.missing)
    accuracy, right = broken.accuracy(), (whole.predicted == whole.labels)[[0, 2, 4]].sum()
    assert (accuracy.videos, accuracy.missing) == (3, 2)
    assert (accuracy.top1, accuracy.top1_of_all) == (right / 3, right / 5)
    assert (accuracy.top5, accuracy.top5_of_all) == (1.0, 3 / 5)


TWO_PROCESSES = """
import os, sys
from train.__main__ import main
for rank in "01":
    if os.fork() == 0:
        os.environ["RANK"] = rank
        status = main(sys.argv[1:])
        sys.stdout.flush()
        os._exit(status)
sys.exit(max(os.waitstatus_to_exitcode(os.wait()[1]) for _ in "01"))
"""


def test_two_processes_give_the_bits_of_one(files, tmp_path, capsys):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    arguments = [
        *("test", str(files / "network.pt"), "--data", str(files / "val.jsonl"), "--device", "cpu", *SMALL),
        *("--batch-size", "18"),
    ]
    command = [sys.executable, "-c", TWO_PROCESSES, *arguments, "--out", str(tmp_path / "two")]
    environment = os.environ | address | {"WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    both = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert both.returncode == 0, both.stderr
    assert main([*arguments, "--out", str(tmp_path / "one")]) == 0
    alone = capsys.readouterr().out
    assert both.stdout == alone.replace(str(tmp_path / "one"), str(tmp_path / "two"))  # one of the two speaks
    one, two = (VideoScores.load(tmp_path / name / "scores.npz") for name in ("one", "two"))
    assert one.scores.tobytes() == two.scores.tobytes()
    assert (one.videos, one.missing, one.protocol) == (two.videos, two.missing, two.protocol)
    assert "val: 5 of 6 usable" in alone
    assert "3 × 3 views of a video" in alone
    assert "missing: 1 of 6 videos" in alone
    assert "\n  gone: missing: no such folder\n" in alone


def test_what_a_test_leaves(files, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["test", str(files / "network.pt"), "--data", str(files / "val.jsonl"), "--out", str(out), *SMALL]
    assert main(command) == 0
    assert {path.name for path in out.iterdir()} == FILES
    scores = VideoScores.load(out / "scores.npz")
    assert scores.protocol["views"]["clips"] == 3
    assert scores.protocol["network"] == str(files / "network.pt")
    result = json.loads((out / "result.json").read_text())
    assert (result["videos"], result["missing"], result["top1"]) == (5, 1, scores.accuracy().top1)
    (missing,) = csv.DictReader((out / "missing.csv").read_text().splitlines())
    assert (Path(missing["video"]).name, missing["class"]) == ("gone", "stays")
    capsys.readouterr()
    assert main(command) == 1
    assert f"error: out: {out} holds scores already" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--precision", "bf16", "--no-channels-last"]) == 0
    rough = VideoScores.load(out / "scores.npz").scores
    assert 0 < np.abs(rough - scores.scores).max() < 0.05 * np.abs(scores.scores).max()


def test_checkpoint_of_a_run_scores_as_its_validation_did(tmp_path):
    videos = Videos.make(tmp_path / "data")
    config = tiny_config(tmp_path / "run", compute=Compute(ema=0.5))
    config = replace(config, recipe=replace(config.recipe, optimization=replace(config.recipe.optimization, epochs=1)))
    assert run_one(config, videos) == 0
    lines = map(json.loads, (config.out / "log.jsonl").read_text().splitlines())
    (epoch,) = (line for line in lines if line["event"] == "epoch")
    trained = load_checkpoint(config.out / "checkpoints" / "best.pt")
    accuracy = run_all(trained, videos.val, trained.recipe.validation).accuracy()
    assert (accuracy.videos, accuracy.top1) == (7, epoch["val"]["top1"])


def test_published_weights(split, files, tmp_path, monkeypatch, capsys):
    trained = make_trained("ssv2-8f")
    monkeypatch.setitem(RECIPES, "ssv2-8f", trained.recipe)
    state = {f"module.base_model.{name}": tensor for name, tensor in trained.network.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 50}, tmp_path / "published.pth")
    options = ["--recipe", "ssv2-8f", "--data", str(files / "val.jsonl"), *SMALL]
    assert main(["test", "--weights", str(tmp_path / "published.pth"), *options, "--out", str(tmp_path / "a")]) == 0
    expected = run_all(trained, split, replace(trained.recipe.test, short_side=40, crop_size=40))
    np.testing.assert_array_equal(VideoScores.load(tmp_path / "a" / "scores.npz").scores, expected.scores)
    torch.save({name: tensor for name, tensor in state.items() if ".tam." not in name}, tmp_path / "c2d.pth")
    capsys.readouterr()
    assert main(["test", "--weights", str(tmp_path / "c2d.pth"), *options, "--out", str(tmp_path / "b")]) == 1
    assert "is of another system than this TANet" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_what_does_not_fit(files, tmp_path, capsys):
    def error_of(*arguments):
        assert main(["test", *SMALL, "--out", str(tmp_path / "none"), *map(str, arguments)]) == 1
        assert not (tmp_path / "none").exists()
        return capsys.readouterr().err

    checkpoint, index = files / "network.pt", files / "val.jsonl"
    missing = tmp_path / "missing"
    assert "no such file" in error_of("--weights", missing, "--recipe", "ssv2-8f", "--data", index)
    assert "no such file" in error_of(missing, "--data", index)
    assert "no such file" in error_of(checkpoint, "--data", missing)
    assert "data: got none, expected the index" in error_of(checkpoint)
    assert "views.crop_size: got 60, expected at most the short side of 40" in error_of(
        checkpoint, "--data", index, "--views.crop-size", 60
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "checkpoint: got None and weights None, expected one of the two"),
        ({"checkpoint": Path("c"), "weights": Path("w"), "recipe": "k400-8f"}, "expected one of the two"),
        ({"checkpoint": Path("c"), "recipe": "k400-8f"}, "expected both of them or neither"),
        ({"weights": Path("w")}, "expected both of them or neither"),
        ({"weights": Path("w"), "recipe": "k400"}, "recipe: got 'k400', expected one of k400-8f, "),
        ({"checkpoint": Path("c"), "batch_size": 0}, "batch_size: got 0, expected at least 1"),
        ({"checkpoint": Path("c"), "threads": 0}, "threads: got 0, expected at least 1"),
    ],
)
def test_options_that_exclude_each_other(options, message):
    with pytest.raises(InputError, match=message):
        EvaluationConfig(**options)


def test_data_of_other_classes(split):
    trained, views = make_trained(), Views(short_side=40, crop_size=40)
    swapped = replace(split, class_names=("rises", "falls", "stays"))
    with pytest.raises(InputError, match="class 0 is 'rises', but the network was trained with 'falls' there"):
        run_all(trained, swapped, views)
    with pytest.raises(InputError, match="has 4 classes, but the network was trained on 3"):
        run_all(trained, replace(split, class_names=(*CLASSES, "turns")), views)
    gone = replace(split, entries=tuple(replace(entry, path=entry.path / "gone") for entry in split.entries))
    with pytest.raises(InputError, match="none of the 5 videos can be read"):
        run_all(trained, gone, views).accuracy()
    trained.network.get_parameter("fc.bias").data[1] = float("nan")
    with pytest.raises(InputError, match="those of 5 videos are no finite numbers; the first is 0"):
        run_all(trained, split, views)
