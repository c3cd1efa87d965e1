"""Networks of training runs, used in programs of their own: with `tam_triton` alone, and as `train` would use them."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import tam_triton
from tam_triton.clips import IMAGENET_MEAN, IMAGENET_STD, middle_frames, normalize
from tam_triton.command import main
from tam_triton.inspect import find_tams
from tests.support.pages import run_page
from tests.support.video_files import VP9, encode, striped_frames, with_display_matrix
from train.checkpoint import TrainedNetwork, load_checkpoint, save_checkpoint
from train.evaluation.predict import predict
from train.networks import build_network
from train.recipes import RECIPES

NAMES = ("runs", "walks", "stands still")


def trained(path, recipe, seed=0):
    torch.manual_seed(seed)
    network = build_network(recipe.model, len(NAMES), recipe.sampling.num_segments, pretrained=False)
    save_checkpoint(path, TrainedNetwork(network, recipe, NAMES))
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("run") / "best.pt", RECIPES["demo"])


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    plain = encode(folder / "a b: ü.mp4", striped_frames(40))
    return [
        plain,
        encode(folder / "short.webm", striped_frames(5), VP9),
        with_display_matrix(folder / "turned.mp4", plain, 0, 1, -1, 0),
    ]


@pytest.mark.parametrize("kind", ["segments", "dense"])
@pytest.mark.parametrize("system", ["tanet", "tsm"])
def test_predicts_as_train_does(tmp_path, videos, kind, system):
    demo = RECIPES["demo"]
    recipe = replace(
        demo, sampling=replace(demo.sampling, kind=kind, reach=16), model=replace(demo.model, system=system)
    )
    path = trained(tmp_path / "best.pt", recipe)
    model = tam_triton.load(path)
    assert model.class_names == NAMES
    assert not model.training
    for video in videos:
        expected = predict(load_checkpoint(path), video, top=3)
        found = model.predict(video, top=3)
        assert [pair.class_name for pair in found] == [pair.class_name for pair in expected]
        assert [pair.probability for pair in found] == pytest.approx([pair.probability for pair in expected], rel=1e-5)


def test_stages_of_a_recipe(tmp_path):
    """TAMs stand in those alone, and both ways of loading find them."""
    demo = RECIPES["demo"]
    path = trained(tmp_path / "best.pt", replace(demo, model=replace(demo.model, stages=("res5",))))
    networks = tam_triton.load(path).network, load_checkpoint(path).network
    assert [list(find_tams(network)) for network in networks] == [["layer4.0.tam"]] * 2
    states = [network.state_dict() for network in networks]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_frames_features_and_calls(checkpoint, videos):
    model = tam_triton.load(checkpoint)
    frames = torch.from_numpy(striped_frames(40))
    clip = model.clip(frames)
    assert clip.shape == (8, 64, 64, 3)
    logits = model(clip[None])
    assert model.predict(frames, top=1)[0].probability == pytest.approx(logits.softmax(1).max().item(), rel=1e-5)
    features = model.features(frames)
    assert features.shape == (128,)
    # The logits are averaged over the frames, so the last layer of averaged features gives them.
    torch.testing.assert_close(model.network.get_submodule("fc")(features), logits[0])
    assert "3 classes, 8 frames, short side 64, crop 64" in str(model)
    program = torch.export.export(model, (clip[None],)).module()
    torch.testing.assert_close(program(clip[None]), logits)


def test_features_of_segments_and_maps(checkpoint, videos):
    """The last layer's answer to the features is the frames' logits, and the last stage's mean over space is them."""
    model = tam_triton.load(checkpoint)
    segments = model.features(videos[0], per_segment=True)
    assert segments.shape == (8, 128)
    torch.testing.assert_close(segments.mean(0), model.features(videos[0]))
    logits = model(model.clip(videos[0])[None])
    torch.testing.assert_close(model.network.get_submodule("fc")(segments).mean(0), logits[0])
    maps = model.feature_maps(videos[0], ["layer4", "layer3.0"])
    torch.testing.assert_close(maps["layer4"].mean((2, 3)), segments)
    assert maps["layer3.0"].shape == (8, 64, 4, 4)
    # A ReLU that works in place comes next: what the layer gave is what is asked for.
    frames = normalize(model.clip(videos[0])[None])[0]
    conv, norm = (model.network.get_submodule(name) for name in ("conv1", "bn1"))
    with torch.no_grad():
        expected = norm(conv(frames))
    assert expected.min() < 0
    torch.testing.assert_close(model.feature_maps(videos[0], ["bn1"])["bn1"], expected)
    for number, message in (
        (2, "got 2, expected one for each of the network's 3"),
        (4, "got 4, expected one for each"),
    ):
        other = tam_triton.VideoClassifier(model.network, "abcd"[:number], num_segments=8, short_side=64, crop_size=64)
        with pytest.raises(ValueError, match=message):
            other.predict(videos[0])
    for name, message in (("layer9", "got 'layer9', expected modules of the network: conv1, bn1"), ("fc", "gives")):
        with pytest.raises(ValueError, match=message):
            model.feature_maps(videos[0], [name])


@pytest.mark.parametrize("before", ["exported", "another default"])
def test_normalization_is_the_same_whatever_was_called_before(checkpoint, monkeypatch, before):
    """Mean and deviation are kept from the first call: not in its default dtype, not without numbers as programs do."""
    monkeypatch.setattr("tam_triton.clips._KEPT", {})
    pixels = torch.randint(256, (1, 8, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model = tam_triton.load(checkpoint)
    if before == "exported":
        program = torch.export.export(model, (pixels,)).module()
        torch.testing.assert_close(program(pixels), model(pixels))
    else:
        torch.set_default_dtype(torch.float16)
        try:
            normalize(pixels)
        finally:
            torch.set_default_dtype(torch.float32)
    mean, deviation = (np.array(values) * 255 for values in (IMAGENET_MEAN, IMAGENET_STD))
    expected = np.moveaxis((pixels.numpy() - mean) / deviation, -1, 2)
    np.testing.assert_allclose(normalize(pixels).numpy(), expected, rtol=1e-6, atol=1e-6)


def test_features_of_slowfast():
    """It averages over time by itself; its pathways' maps have frames of their own."""
    torch.manual_seed(0)
    network = tam_triton.nets.create_model("slowfast_4x16", num_classes=3).eval()
    model = tam_triton.VideoClassifier(network, NAMES, num_segments=32, short_side=32, crop_size=32)
    frames = torch.from_numpy(striped_frames(40))
    assert model.features(frames).shape == (2304,)
    with pytest.raises(ValueError, match="averages over time before its last layer"):
        model.features(frames, per_segment=True)
    maps = model.feature_maps(frames, ["slow_path.layer1", "fast_path.layer1"])
    assert [len(each) for each in maps.values()] == [4, 32]


def test_fine_tuning_on_other_classes(checkpoint):
    model = tam_triton.load(checkpoint).train()
    model.network.register_module("fc", nn.Linear(128, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    clips = torch.randint(0, 256, (4, 8, 64, 64, 3), dtype=torch.uint8)
    before = model.network.get_parameter("layer1.0.conv1.weight").clone()
    nn.functional.cross_entropy(model(clips), torch.tensor([0, 1, 0, 1])).backward()
    optimizer.step()
    assert not torch.equal(model.network.get_parameter("layer1.0.conv1.weight"), before)


def test_without_train(checkpoint, videos):
    """As where the library alone is installed."""
    code = f"""
import sys
sys.modules.update(dict.fromkeys(["train", "bench", "reference", "tyro", "matplotlib", "decord"]))
import tam_triton
model = tam_triton.load({str(checkpoint)!r})
print(len(model.predict({str(videos[0])!r}, top=2)))
"""
    root = Path(tam_triton.__file__).parents[1]
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, timeout=120)
    assert (result.stdout, result.returncode) == ("2\n", 0), result.stderr


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: p / "absent.pt", OSError, "absent.pt"),
        (lambda p: _saved(p, {"state_dict": {}}), ValueError, r"is none of a training run .*load_published"),
        (
            lambda p: _saved(p, {"format": "tam_triton/train/2"}),
            ValueError,
            "does not fit the network",
        ),
        (lambda p: _written(p, b"no checkpoint"), ValueError, "is not a checkpoint, or a damaged one"),
    ],
)
def test_no_checkpoint(tmp_path, make, error, message):
    with pytest.raises(error, match=message):
        tam_triton.load(make(tmp_path))


def _saved(folder, content):
    torch.save(content, folder / "x.pt")
    return folder / "x.pt"


def _written(folder, content):
    (folder / "x.pt").write_bytes(content)
    return folder / "x.pt"


def test_no_video(checkpoint, tmp_path):
    model = tam_triton.load(checkpoint)
    with pytest.raises(ValueError, match=r"expected frames torch\.uint8 \(F, H, W, 3\)"):
        model.predict(torch.zeros(8, 3, 64, 64))
    with pytest.raises(TypeError, match="video: got int, expected a path"):
        model.predict(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="is not a video file, or is damaged"):
        model.predict(_written(tmp_path, b"no video" * 100))
    with pytest.raises(FileNotFoundError):
        model.predict(tmp_path / "absent.mp4")
    with pytest.raises(ValueError, match="top: got 0"):
        model.predict(tmp_path / "absent.mp4", top=0)
    with pytest.raises(ValueError, match="expected 1 or more, reach ≥ T"):
        middle_frames(10, 8, reach=4)


def test_the_command(checkpoint, videos, tmp_path, capsys):
    broken = _written(tmp_path, b"no video" * 100)
    assert main([str(checkpoint), str(videos[0]), "--top", "2"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert (said[0], len(said)) == (str(videos[0]), 3)
    assert main([str(checkpoint), str(broken), str(videos[1])]) == 1
    said = capsys.readouterr()
    assert f"error: {broken}: is not a video file" in said.err
    assert str(videos[1]) in said.out  # the others are looked at
    for arguments in ([str(broken), str(videos[0])], [str(checkpoint), str(videos[0]), "--device", "nowhere"]):
        assert main(arguments) == 1
        assert capsys.readouterr().err.startswith("error: ")
    with pytest.raises(SystemExit):
        main([str(checkpoint), str(videos[0]), "--top", "0"])


def test_the_page(tmp_path, videos, monkeypatch, capsys):
    """Its blocks, one after the other; what the network exports gives what it gives itself."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/own/checkpoints").mkdir(parents=True)
    trained(tmp_path / "runs/own/checkpoints/best.pt", RECIPES["demo"])
    (tmp_path / "videos/val/waving").mkdir(parents=True)
    shutil.copy(videos[0], tmp_path / "videos/val/waving/one.mp4")
    names = run_page("docs/using-a-network.md")
    assert capsys.readouterr().out.count("%  ") == 3
    assert names["features"].shape == (128,)
    torch.testing.assert_close(names["of_segments"].mean(0), names["features"])
    assert {name: maps.shape for name, maps in names["maps"].items()} == {
        "layer3": (8, 64, 4, 4),
        "layer4": (8, 128, 2, 2),
    }
    clips, expected = names["clips"], names["model"](names["clips"])
    session = onnxruntime.InferenceSession("network.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: clips.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-5)
    assert torch.export.load("network.pt2").module()(clips).shape == (1, 2)
