"""`python -m train visualize`: from videos to tensors, figures and a page, and what it refuses."""

import base64
import errno
import json
import re
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import tam_triton
from tam_triton import inspect
from tam_triton.classifier import Prediction
from tam_triton.inspect import Weights
from tests.support.fit_runs import make_split
from tests.support.pages import run_page
from tests.support.video_files import encode, striped_frames
from tests.train.evaluation.test_testing import CLASSES, make_trained, make_video
from train.__main__ import main
from train.checkpoint import save_checkpoint
from train.data.index import Checked, IndexWriter
from train.errors import InputError
from train.evaluation.places import spread
from train.networks import build_network
from train.recipes import RECIPES
from train.visualize.collect import Collected, Seen, list_videos, motion_of
from train.visualize.config import VisualizeConfig
from train.visualize.filters import read_filters
from train.visualize.pictures import label, offsets, plot_motion, rank_correlation
from train.visualize.visualize import FIGURES, PAGE, TENSORS

pytestmark = pytest.mark.usefixtures("one_thread")

ODD = "<script>$a.mp4"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkpoint of a TANet, of a C2D and of I3D; videos, one of them broken, and an index of seven others."""
    root = tmp_path_factory.mktemp("place")
    trained = make_trained(sampling=replace(RECIPES["demo"].sampling, num_segments=4))
    save_checkpoint(root / "best.pt", trained)
    for system in ("c2d", "i3d", "local"):
        recipe = replace(trained.recipe, model=replace(trained.recipe.model, system=system))
        network = build_network(recipe.model, len(CLASSES), 4)
        save_checkpoint(root / f"{system}.pt", replace(trained, network=network, recipe=recipe))
    (root / "in").mkdir()
    encode(root / "in" / ODD, striped_frames(20))
    (root / "in" / "broken.mp4").write_bytes(b"no video" * 100)
    make_video(root / "frames", 12, 1)
    split = make_split(root, "val", 7)
    with IndexWriter(root / "val.jsonl", split, root, {}) as writer:
        for number, entry in enumerate(split.entries):
            writer.write(Checked(number, entry, None))
    return root


def run(capsys, *arguments):
    status = main(["visualize", *map(str, arguments), "--device", "cpu"])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_from_videos_to_a_page(place, monkeypatch, capsys):
    out = place / "seen"
    videos = [place / "in", place / "fr*s"]
    more = ["--data", f"bars={place / 'val.jsonl'}", "--most", "3", "--i3d", place / "i3d.pt", "--shown", "2"]
    status, said, _ = run(capsys, place / "best.pt", *videos, *more, "--out", out)
    assert status == 0
    assert "bars: 3 of 7 videos, evenly spread" in said
    assert "5 of 6 videos looked at; 1 cannot be read and are left out:" in said
    assert f"  {place / 'in' / 'broken.mp4'}: is not a video file" in said
    with np.load(out / TENSORS) as file:
        arrays = dict(file)
    check_tensors(place, arrays)
    for name in FIGURES:
        assert matplotlib.image.imread(out / name)[..., :3].std() > 0.05, name
    check_page(out, arrays)
    check_the_docs(place, out, arrays, monkeypatch)
    assert "layer4.0.tam torch.Size([1, 128, 4])" in capsys.readouterr().out
    status, _, errors = run(capsys, place / "best.pt", place / "frames", "--out", out)
    assert (status, "holds kernels already; take another folder, or --overwrite" in errors) == (1, True)


def check_tensors(place, arrays):
    """They are those of the videos."""
    paths = [str(place / "in" / ODD), str(place / "frames"), *(str(place / "val" / f"00{i}") for i in (1, 3, 5))]
    assert arrays["paths"].tolist() == paths
    assert arrays["data_sets"].tolist() == ["videos"] * 2 + ["bars"] * 3
    assert arrays["classes"].tolist() == ["", "", "rises", "falls", "stays"]
    assert arrays["failures"][:, 0].tolist() == [str(place / "in" / "broken.mp4")]
    made_of = json.loads(str(arrays["made_of"]))
    assert made_of["TAMs"] == ["layer3.0.tam", "layer4.0.tam"]
    assert made_of["checkpoint"] == str(place / "best.pt")
    assert made_of["I3D"] == f"{place / 'i3d.pt'}, layer3.0.conv1, layer4.0.conv1"

    model = tam_triton.load(place / "best.pt")
    clip = model.clip(paths[0])
    with torch.no_grad(), inspect.collecting(model.network) as expected:
        logits = model(clip[None])[0]
    for name, (weights,) in expected.items():
        torch.testing.assert_close(torch.from_numpy(arrays[f"{name}.kernel"][:1]), weights.kernel, rtol=0, atol=1e-6)
        assert weights.importance is not None
        found = torch.from_numpy(arrays[f"{name}.importance"][:1])
        torch.testing.assert_close(found, weights.importance, rtol=0, atol=1e-6)
    assert arrays["predicted"][0] == CLASSES[int(logits.argmax())]
    luma = clip.double().numpy() @ (0.299, 0.587, 0.114)
    assert arrays["motion"][0] == pytest.approx(np.abs(np.diff(luma, axis=0)).mean(), rel=1e-5)


def check_page(seen, arrays):
    """It is whole, and asks for nothing from outside."""
    text = (seen / PAGE).read_text(encoding="utf-8")
    assert set(re.findall(r"https?://[^\s\"']*", text)) == {"http://www.w3.org/2000/svg"}  # a name, not a place
    assert not re.search(r"<link|<script[^>]+src|@import|url\(", text)
    sources = re.findall(r'src="(data:image/png;base64,)([^"]*)"', text)
    assert [base64.b64decode(image) for _, image in sources] == [(seen / name).read_bytes() for name in FIGURES]
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    content = json.loads(data)
    assert [video["name"] for video in content["videos"]] == [Path(path).name for path in arrays["paths"]]
    assert (content["videos"][0]["name"], content["shown"]) == (ODD, [1, 3])
    assert [video["strip"] is not None for video in content["videos"]] == [False, True, False, True, False]
    block = content["blocks"][1]
    assert (block["label"], block["offsets"]) == ("layer4.0.tam (stage5_1b)", ["t−1", "t", "t+1"])
    assert [len(row) for row in block["i3d"]["taps"]] == [5, 5, 5]
    for name in ("importance", "kernel"):
        values = np.frombuffer(base64.b64decode(block[name]), "<f4")
        assert np.array_equal(values, arrays[f"layer4.0.tam.{name}"][[1, 3]].ravel())
    shares = [sum(row) for rows in block["all"].values() for row in rows]
    assert shares == pytest.approx([1] * 6, abs=1e-3)


def check_the_docs(place, seen, arrays, monkeypatch):
    """Its blocks, with the files that they name."""
    monkeypatch.chdir(place)
    Path("runs/own/checkpoints").mkdir(parents=True)
    Path("runs/own/checkpoints/best.pt").symlink_to(place / "best.pt")
    Path("runs/seen").symlink_to(seen)
    Path("videos/val/waving").mkdir(parents=True)
    Path("videos/val/waving/one.mp4").symlink_to(place / "in" / ODD)
    names = run_page("docs/visualizing.md")
    assert np.array_equal(names["kernel"], arrays["layer3.0.tam.kernel"])


def test_names_that_are_there_twice():
    def seen(path):
        return Seen("videos", Path(path), None, Prediction("a", 1.0), 0.0, b"")

    videos = (seen("x/waving/1.mp4"), seen("x/jumping/1.mp4"), seen("x/waving/2.mp4"))
    collected = Collected(videos, 4, {}, ())
    assert [collected.name_of(video) for video in videos] == ["waving/1.mp4", "jumping/1.mp4", "2.mp4"]


def test_videos_that_have_moved(place, tmp_path):
    header, *lines = (place / "val.jsonl").read_text().splitlines()
    written = json.loads(header) | {"root": "/gone"}
    written.pop("from_here", None)
    index = tmp_path / "val.jsonl"
    index.write_text("\n".join([json.dumps(written), *lines]) + "\n")
    listed, _ = list_videos({"bars": (index,)}, 3, {"bars": place})
    assert [video.entry.path for video in listed] == [place / "val" / f"00{i}" for i in (1, 3, 5)]


def test_a_network_without_importance_maps_or_offsets(place, tmp_path, capsys):
    status, said, _ = run(
        capsys, place / "local.pt", place / "frames", "--blocks", "layer1.*", "--out", tmp_path / "out"
    )
    assert (status, "layer1.0.tam (stage2_1b)" in said, "1 video looked at" in said) == (0, True, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("{}/best.pt {}/*.avi", "{}/*.avi: matches nothing"),
        ("{}/best.pt {}/gone.mp4", "none of the 1 videos can be read; the last is {}/gone.mp4"),
        ("{}/c2d.pt {}/in", "{}/c2d.pt: is of c2d, in which there is no TAM; expected one of TANet"),
        ("{}/best.pt {}/in --blocks layer9", "blocks: got 'layer9', expected one of layer1.0.tam, layer2.0.tam, "),
        ("{}/best.pt {}/in --i3d {}/best.pt", "i3d: {}/best.pt is of tanet, expected one of i3d, i3d_every_other"),
        ("{}/best.pt {}/in --i3d {}/val.jsonl", "{}/val.jsonl: "),
        ("{}/best.pt {}/in --out {}/best.pt", "out: {}/best.pt is a file, expected a folder"),
        ("{}/best.pt {}/in --out /proc/out", "/proc/out: cannot be written to: "),
        ("{}/in --weights {}/val.jsonl --recipe k400-8f", "weights: {}/val.jsonl"),
        ("{}/best.pt --data a={}/gone.jsonl", "{}/gone.jsonl: "),
        ("{}/best.pt --data a={}/in --root a=/", "root: got / for a, which is {}/in, expected an index"),
    ],
)
def test_errors(place, tmp_path, capsys, arguments, message):
    arguments = arguments.replace("{}", str(place)).split()
    if "--out" not in arguments:
        arguments += ["--out", tmp_path / "out"]
    status, _, errors = run(capsys, *arguments)
    assert status == 1
    assert errors.splitlines()[-1].startswith("error: " + message.replace("{}", str(place)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "files: got none, expected CHECKPOINT VIDEO …"),
        ({"files": ["best.pt"]}, "files: got best.pt, and no --data, expected videos: VIDEO … or --data NAME=PLACE"),
        (
            {"files": ["in"], "weights": Path("a.pt")},
            "recipe: got None with weights a.pt, expected both of them or nei",
        ),
        ({"files": ["best.pt"], "data": ("val.jsonl",)}, "data: got 'val.jsonl', expected NAME=PLACE"),
        (
            {"files": ["best.pt"], "data": ("a=v.jsonl",), "root": ("b=in",)},
            "root: got 'b', expected a name of --data: a",
        ),
        ({"files": ["best.pt"], "data": ("a=v.jsonl",), "root": ("in",)}, "root: got 'in', expected NAME=FOLDER"),
        ({"files": ["best.pt", "in"], "data": ("videos=in",)}, "data: got 'videos' twice, expected another name"),
        ({"files": ["best.pt", "in"], "most": 0}, "visualizeconfig.most: got 0, expected at least 1"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        VisualizeConfig(**options | {"files": tuple(options.get("files", ()))})


def test_what_was_written_stays(place, tmp_path, capsys, monkeypatch):
    """Where the disk is full at the third file, which the error names."""
    save, drawn = Figure.savefig, []

    def full(figure, path, **options):
        drawn.append(path)
        if len(drawn) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(figure, path, **options)

    monkeypatch.setattr(Figure, "savefig", full)
    out = tmp_path / "out"
    status, _, errors = run(capsys, place / "best.pt", place / "frames", "--blocks", "layer4.0.tam", "--out", out)
    assert (status, errors.splitlines()[-1]) == (
        1, f"error: [Errno 28] No space left on device: '{out / 'distributions.png'}'",
    )  # fmt: skip
    assert {path.name for path in out.iterdir()} == {TENSORS, "kernels.png"}


def test_motion():
    clip = torch.zeros(3, 4, 4, 3, dtype=torch.uint8)
    assert motion_of(clip) == motion_of(clip[:1]) == 0
    clip[1, :2] = 200  # half of the pixels, there and back
    assert motion_of(clip) == pytest.approx(100)
    clip[1, ..., :2] = 0  # only blue stays
    assert motion_of(clip) == pytest.approx(0.114 * 100)


def test_kernels_that_are_alike_but_for_rounding(tmp_path):
    kernel = torch.full((2, 8, 5), 0.2) + 1e-8 * torch.arange(80).view(2, 8, 5)
    about = ("all", Path("one.mp4"), None, Prediction("stays", 1.0), 0.0, b"")
    seen = Collected((Seen(*about), Seen(*about)), 4, {"a.tam": Weights(None, kernel)}, ())
    plot_motion(tmp_path / "motion.png", seen)
    assert matplotlib.image.imread(tmp_path / "motion.png").std() > 0.05


def test_filters_are_the_nearest_of_the_stage(place):
    (filters,) = read_filters(place / "i3d.pt", ["layer3.4.tam"]).values()
    assert filters.name == "layer3.0.conv1"
    model = tam_triton.load(place / "i3d.pt").network
    weight = model.get_parameter("layer3.0.conv1.weight").detach()  # (64, 32, 3·3, 3), tap after tap
    assert filters.taps.shape == (64 * 32 * 3 * 3, 3)
    for tap in range(3):
        assert torch.equal(filters.taps[:, tap], weight[:, :, 3 * tap : 3 * tap + 3].flatten())


def test_names_and_ranks():
    assert label("backbone.features.3.tam") == "backbone.features.3.tam"
    assert label("layer3.5.tam") == "layer3.5.tam (stage4_6b)"
    assert offsets(1) == ["t"]
    assert offsets(5) == ["t−2", "t−1", "t", "t+1", "t+2"]
    assert spread(7, 3) == [1, 3, 5]
    assert rank_correlation(np.array([1.0, 5.0, 30.0]), np.array([-1.0, -2.0, -2.5])) == pytest.approx(-1)
    assert rank_correlation(np.array([1.0, 2.0]), np.array([1.0, 2.0])) is None
    still = np.array([0.0, 0.0, 0.0, 0.0, 7.0])  # what says nothing of order is not ordered by the list
    assert rank_correlation(still, np.array([1.0, 2.0, 3.0, 4.0, 2.5])) == pytest.approx(0)
    assert rank_correlation(np.array([1.0, 2.0, 2.0, 9.0]), np.array([1, 3, 2, 4])) == pytest.approx(4.5 / 22.5**0.5)
