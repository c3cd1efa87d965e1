"""Files of weights that a training starts from, that are tested, and that a video is looked at with."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import nn

from tam_triton.nets.small_resnet import SmallResNet
from tests.support.fit_runs import CLASSES, Videos, equal_bits, final_bits, log_of, run_one, tiny_config
from tests.support.video_files import encode, striped_frames
from train.__main__ import main
from train.checkpoint import TrainedNetwork, load_checkpoint, save_checkpoint
from train.errors import InputError
from train.evaluation.predict_config import PredictConfig
from train.evaluation.test import EvaluationConfig
from train.fit.config import FitConfig
from train.networks import build_network
from train.recipe import Model, Recipe
from train.recipes import RECIPES

SMALL = ("--loading.workers", "0", "--threads", "1", "--device", "cpu")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return Videos.make(tmp_path_factory.mktemp("data"))


def starting(out, weights, **changes) -> FitConfig:
    """A tiny run of one epoch that starts from a file."""
    config = tiny_config(out)
    model = replace(config.recipe.model, weights=str(weights), **changes)
    optimization = replace(config.recipe.optimization, epochs=1)
    return replace(config, recipe=replace(config.recipe, model=model, optimization=optimization))


def trained(classes=("up", "down", "left", "right"), frames=4, **changes) -> TrainedNetwork:
    demo = RECIPES["demo"]
    model = replace(demo.model, **changes)
    torch.manual_seed(11)
    network = build_network(model, len(classes), frames)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1)
    recipe = replace(demo, model=model, sampling=replace(demo.sampling, num_segments=frames))
    return TrainedNetwork(network, recipe, tuple(classes))


def first_step(config) -> dict[str, torch.Tensor]:
    """The first checkpoint's weights of a run with a learning rate that changes nothing but by rounding."""
    return load_checkpoint(config.out / "checkpoints" / "step-00000005.pt").network.state_dict()


def still(config) -> FitConfig:
    return replace(config, recipe=replace(config.recipe, optimization=replace(config.recipe.optimization, lr=1e-12)))


def test_from_a_run_of_other_classes(videos, tmp_path, capsys):
    source = trained()
    save_checkpoint(tmp_path / "order.pt", source)
    config = still(starting(tmp_path / "run", tmp_path / "order.pt"))
    assert run_one(config, videos) == 0
    out = capsys.readouterr().out
    assert f"weights of {tmp_path}/order.pt: " in out
    assert "drawn anew: fc; not used: fc.weight, fc.bias" in out
    (event,) = log_of(config, "weights")
    assert (event["untouched"], event["missing"]) == (["fc"], ["fc.weight", "fc.bias"])
    state, began = source.network.state_dict(), first_step(config)
    learned = [name for name, _ in source.network.named_parameters() if not name.startswith("fc.")]
    assert all(torch.allclose(began[name], state[name], atol=1e-6) for name in learned)
    assert began["fc.weight"].shape[0] == len(CLASSES)
    assert began["fc.weight"].abs().max() < 0.45  # as drawn


@pytest.mark.parametrize(
    ("classes", "untouched"), [(CLASSES, []), (("a", "b", "c"), ["fc"])], ids=["the same classes", "as many others"]
)
def test_a_head_is_taken_for_its_own_classes(classes, untouched, videos, tmp_path):
    save_checkpoint(tmp_path / "a.pt", trained(classes))
    assert run_one(config := starting(tmp_path / "run", tmp_path / "a.pt"), videos) == 0
    assert log_of(config, "weights")[0]["untouched"] == untouched


def test_from_2d_weights(videos, tmp_path):
    torch.manual_seed(2)
    state = SmallResNet(1000).state_dict()
    torch.save(state, tmp_path / "resnet.pth")
    config = still(starting(tmp_path / "run", tmp_path / "resnet.pth"))
    assert run_one(config, videos) == 0
    assert log_of(config, "weights")[0]["untouched"] == [f"layer{i}.0.tam" for i in (1, 2, 3, 4)] + ["fc"]
    assert torch.allclose(first_step(config)["layer2.0.conv1.weight"], state["layer2.0.conv1.weight"], atol=1e-6)


@pytest.mark.parametrize("way", ["interpolate", "draw"])
def test_from_the_authors_file_of_another_length(way, videos, tmp_path, capsys):
    source = trained(frames=8)
    state = {f"module.base_model.{name}": tensor for name, tensor in source.network.state_dict().items()}
    averaged = {name: tensor + 1 for name, tensor in state.items()}
    torch.save({"state_dict": state, "epoch": 50, "state_dict_ema": averaged}, tmp_path / "a.pth")
    assert run_one(starting(tmp_path / "refused", tmp_path / "a.pth"), videos) == 1
    assert "it was trained with 8 segments, the model has 4" in capsys.readouterr().err
    changes = {"weights_segments": way, "weights_average": way == "draw"}
    config = still(starting(tmp_path / "run", tmp_path / "a.pth", **changes))
    assert run_one(config, videos) == 0
    (event,) = log_of(config, "weights")
    assert len(event["interpolated"]) == (24 if way == "interpolate" else 0)
    assert "layer1.0.tam.G" in event["untouched"] or way == "interpolate"
    assert ("average=True" in event["notes"][0]) == (way != "draw")
    expected = (averaged if way == "draw" else state)["module.base_model.layer1.0.tam.L.0.weight"]
    assert torch.allclose(first_step(config)["layer1.0.tam.L.0.weight"], expected, atol=1e-6)


def test_what_cannot_be_a_start_is_said_before_anything_is_written(videos, tmp_path, capsys):
    whole = tmp_path / "whole.pt"
    save_checkpoint(whole, trained(system="tanet"))
    (tmp_path / "cut.pt").write_bytes(whole.read_bytes()[:-100])
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    torch.save({"layer1.0.conv1.weight": torch.zeros(16, 16, 3, 3)}, tmp_path / "part.pt")
    for name, message, system in (
        ("none.pt", "weights: {path}: no such file", "tanet"),
        (".", "weights: {path}: is a directory", "tanet"),
        ("cut.pt", "weights: {path}: is not a checkpoint, or a damaged one", "tanet"),
        ("module.pt", "a whole torch.nn.modules.linear.Linear", "tanet"),
        ("whole.pt", "is of another system than this C2D, or of another depth: it has 'layer1.0.tam'", "c2d"),
        ("part.pt", "{path} has nothing for ", "tanet"),
    ):
        path = tmp_path / name
        assert run_one(starting(tmp_path / "run", f"{tmp_path}/{name}", system=system), videos) == 1
        assert message.format(path=path) in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


def test_a_resumed_run_needs_its_start_no_more(videos, tmp_path):
    save_checkpoint(tmp_path / "a.pt", trained())
    config = starting(tmp_path / "whole", tmp_path / "a.pt")
    assert run_one(config, videos) == 0
    resumed = replace(config, out=tmp_path / "resumed", resume=True)
    shutil.copytree(config.out, resumed.out)
    (tmp_path / "a.pt").unlink()
    for step in (4, 5):
        (resumed.out / "checkpoints" / f"step-{step:08d}.pt").unlink()
    assert run_one(resumed, videos) == 0
    assert equal_bits(final_bits(resumed.out), final_bits(config.out))
    assert len(log_of(resumed, "weights")) == 1
    recipe = Recipe.from_json((config.out / "recipe.json").read_text())
    assert recipe.model.weights == str(tmp_path / "a.pt")
    assert load_checkpoint(config.out / "checkpoints" / "best.pt").recipe == recipe


def test_names_and_files():
    assert Model(weights="IMAGENET1K_V2").pretrained == "IMAGENET1K_V2"
    for name in ("a.pth", "runs/best", "./IMAGENET1K_V1"):
        model = Model(backbone="small", weights=name)
        assert (model.starts_from_file, model.pretrained) == (True, None)


def test_tested_and_looked_at_by_a_recipe(videos, tmp_path, capsys):
    """By the recipe.json of a run, which may be of any system."""
    source = trained(CLASSES, system="tsm")
    views = replace(source.recipe.test, short_side=36, crop_size=32)
    recipe = replace(source.recipe, test=views, validation=views)
    (tmp_path / "recipe.json").write_text(recipe.to_json())
    torch.save({"model": {f"model.{k}": v for k, v in source.network.state_dict().items()}}, tmp_path / "tsm.pth")
    data = ["--data", videos.written(tmp_path)[-1]]
    foreign = ["--weights", str(tmp_path / "tsm.pth"), "--recipe", str(tmp_path / "recipe.json")]
    assert main(["test", *foreign, *data, *SMALL, "--out", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "result.json").read_text())["videos"] == 7
    save_checkpoint(tmp_path / "own.pt", replace(source, recipe=recipe))
    video = encode(tmp_path / "video.mp4", striped_frames(20))
    said = []
    for command in (["predict", str(tmp_path / "own.pt"), str(video)], ["predict", str(video), *foreign, *data]):
        capsys.readouterr()
        assert main(command) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    for command, message in (
        (["predict", str(video), *foreign], "data: got none, expected an index"),
        (["predict", str(video), *foreign[:3], str(tmp_path / "none.json"), *data], "none.json: no such file"),
        (["predict", str(video), *foreign[:3], str(tmp_path / "tsm.pth"), *data], "expected one of k400-8f"),
        (["predict", str(video), *foreign[:3], "k400-8f"], "another backbone"),
    ):
        assert main(command) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (PredictConfig, {"files": ("v",)}, "files: got v, expected CHECKPOINT VIDEO"),
        (PredictConfig, {"files": (), "weights": Path("w"), "recipe": "demo"}, "files: got none, expected VIDEO …, as"),
        (PredictConfig, {"files": ("v",), "weights": Path("w")}, "expected both of them or neither"),
        (PredictConfig, {"files": ("c", "v"), "top": 0}, "top: got 0, expected at least 1"),
        (EvaluationConfig, {"weights": Path("w"), "recipe": "none.json"}, "recipe: none.json: no such file"),
        (EvaluationConfig, {"checkpoint": Path("c"), "average": True}, "average: got True, expected False without"),
        (
            EvaluationConfig,
            {"checkpoint": Path("c"), "segments": "draw"},
            "segments: got 'draw', expected None without",
        ),
        (Model, {"weights_average": True}, "weights_average: got True, expected False where weights is no file"),
        (Model, {"weights_segments": "draw"}, "weights_segments: got 'draw', expected None where weights is no file"),
    ],
)
def test_options_that_cannot_be(kind, options, message):
    with pytest.raises(InputError, match=message):
        kind(**options)


def test_converted(tmp_path, capsys):
    source = trained(system="c2d")
    save_checkpoint(tmp_path / "a.pt", source)
    for form, key in (("authors", "module.base_model.fc.weight"), ("mmaction2", "cls_head.fc_cls.weight")):
        command = ["convert", str(tmp_path / "a.pt"), str(tmp_path / f"{form}.pth"), "--to", form]
        assert main(command) == 0
        state = torch.load(tmp_path / f"{form}.pth", weights_only=True)["state_dict"]
        assert torch.equal(state[key], source.network.state_dict()["fc.weight"])
        assert main(command) == 1
        assert "is there already" in capsys.readouterr().err
        assert main([*command, "--overwrite"]) == 0
    save_checkpoint(tmp_path / "tanet.pt", trained())
    assert main(["convert", str(tmp_path / "tanet.pt"), str(tmp_path / "none.pth")]) == 1
    assert "expected bottlenecks for mmaction2" in capsys.readouterr().err
    assert not (tmp_path / "none.pth").exists()


def test_weights_that_cannot_be_downloaded(tmp_path, monkeypatch):
    """Where there is no network: which file, where it may be put, and how to do without."""

    def no_network(*args, **options):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(InputError, match=r"IMAGENET1K_V1 of resnet18 cannot be downloaded \(no route") as error:
        build_network(Model(backbone="resnet18"), 3, 4)
    for text in (str(tmp_path / "checkpoints"), "--model.weights FILE", "--model.weights None"):
        assert text in str(error.value)
