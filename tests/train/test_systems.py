"""Every system of the paper is trained, tested and asked by the one code, by the name that its recipe has."""

import json
from dataclasses import replace

import pytest
import timm
import torch

from tam_triton.nets.slowfast_config import CONFIGS
from tam_triton.nets.systems import SYSTEMS
from tests.support.fit_runs import tiny_config
from train.checkpoint import load_checkpoint, read_checkpoint
from train.data.index import Checked, IndexWriter
from train.data.loader import Loading
from train.data.sources import read_class_names, read_list
from train.demo.synthetic import DatasetSpec, prepare_dataset
from train.errors import InputError
from train.evaluation.predict import predict
from train.evaluation.test import EvaluationConfig, run_test
from train.fit.fit import run_fit
from train.fit.optimizer import parameter_groups
from train.networks import build_network, check_network
from train.recipe import Data, Model, Optimization
from train.recipes import RECIPES

CLASSES = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The demo's videos of order, 12 and 6 of them, with their indices."""
    root = prepare_dataset(tmp_path_factory.mktemp("data"), DatasetSpec("order", train=12, val=6, seed=0), processes=1)
    names = read_class_names(root / "classes.txt")
    paths = {}
    for name in ("train", "val"):
        split = read_list(root / f"{name}.txt", names)
        paths[name] = root / f"{name}.jsonl"
        with IndexWriter(paths[name], split, root, {}) as writer:
            for number, entry in enumerate(split.entries):
                writer.write(Checked(number, entry, None))
    return Data(paths["train"], paths["val"], num_classes=CLASSES)


def config_for(system, out, data):
    config = tiny_config(out, loading=Loading(workers=0), checkpoint_every=100, keep=1)
    tiny = config.recipe
    if system in CONFIGS:  # by a recipe of their own, on frames as small
        recipe = RECIPES["k400-slowfast-8x8" if "8x8" in system else "k400-slowfast-4x16"]
        augmentation = replace(recipe.augmentation, crop_size=32, short_sides=(36, 40))
        optimization = replace(recipe.optimization, batch_size=6, epochs=2, warmup_epochs=1, lr=0.01)
        recipe = replace(recipe, augmentation=augmentation, optimization=optimization)
        model = replace(recipe.model, system=system)
    else:
        model = replace(tiny.model, system=system)
        recipe = replace(tiny, optimization=replace(tiny.optimization, batch_size=6, epochs=2))
    changes = {"data": data, "model": model, "validation": tiny.validation, "test": tiny.validation}
    return replace(config, recipe=replace(recipe, **changes))


def fit_then_test_then_predict(config, tmp_path):
    data, system = config.recipe.data, config.recipe.model.system
    outcome = run_fit(config)
    assert outcome.steps == 4
    last = tmp_path / "run/checkpoints/step-00000004.pt"
    assert read_checkpoint(last)["recipe"]["model"]["system"] == system
    trained = load_checkpoint(last)
    accuracy = run_test(
        EvaluationConfig(last, out=tmp_path / "test", device="cpu", threads=1, loading=Loading(workers=0))
    )
    assert (accuracy.videos, accuracy.missing) == (6, 0)
    epochs = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [line["val"]["top1"] for line in epochs if line["event"] == "epoch"][-1] == accuracy.top1
    ranking = predict(trained, next(data.val.parent.glob("val/*.mp4")), top=CLASSES)
    assert sum(answer.probability for answer in ranking) == pytest.approx(1)


@pytest.mark.parametrize("system", [*SYSTEMS, "slowfast_4x16", "slowfast_8x8", "slowfast_tam_4x16"])
def test_fit_then_test_then_predict(system, data, tmp_path):
    fit_then_test_then_predict(config_for(system, tmp_path / "run", data), tmp_path)


@pytest.mark.parametrize("backbone", ["timm/test_resnet", "timm/test_convnext", "timm/test_efficientnet"])
def test_on_backbones_of_timm(backbone, data, tmp_path):
    config = config_for("tanet", tmp_path / "run", data)
    model = replace(config.recipe.model, backbone=backbone)
    fit_then_test_then_predict(replace(config, recipe=replace(config.recipe, model=model)), tmp_path)


@pytest.mark.parametrize("weights", ["DEFAULT", "r160_in1k"])
def test_weights_of_timm(weights, monkeypatch):
    """What timm would download is what the network starts with, but for its head; a checkpoint asks for no download."""
    torch.manual_seed(1)
    published = {
        name: torch.rand_like(value.float()) for name, value in timm.create_model("test_resnet").state_dict().items()
    }
    asked = []

    def download(name, *arguments, **options):
        asked.append(name)
        return dict(published)

    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", download)
    model = Model("tanet", "timm/test_resnet", weights=weights)
    state = build_network(model, CLASSES, 4).state_dict()
    assert asked == ["timm/test_resnet.r160_in1k"]
    assert published.keys() < state.keys()
    for name, value in published.items():
        if not name.startswith("fc."):
            assert torch.equal(state[name].float(), value.to(state[name].dtype).float())
    check_network(model, CLASSES, 4)
    build_network(model, CLASSES, 4, pretrained=False)
    assert len(asked) == 1


def test_what_does_not_go_together_is_refused_before_anything_is_written(data, tmp_path):
    config = config_for("i3d", tmp_path / "run", data)
    model = Model("i3d", "mobilenet_v2", weights=None)
    with pytest.raises(InputError, match=r"model: .*expected a ResNet"):
        run_fit(replace(config, recipe=replace(config.recipe, model=model)))
    assert not (tmp_path / "run").exists()


def test_other_backbones_have_their_head_in_a_group_of_its_own():
    network = build_network(Model("tanet", "mobilenet_v2", weights=None), CLASSES, 4)
    groups = parameter_groups(network, Optimization())
    assert groups["fc weight"] == [network.get_parameter("classifier.1.weight")]
    assert groups["fc bias"] == [network.get_parameter("classifier.1.bias")]


def test_checking_a_network_draws_nothing():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for system in ("tanet", "tsm", "nl_c2d", "slowfast_tam_8x8"):
        assert next(check_network(Model(system, weights=None), CLASSES, 32).parameters()).is_meta
    assert next(check_network(Model("tanet", "regnet_y_400mf", weights=None), CLASSES, 8).parameters()).is_meta
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_of_before_systems_had_names_goes_on(data, tmp_path):
    config = config_for("c2d", tmp_path / "run", data)
    run_fit(config)
    last = tmp_path / "run/checkpoints/step-00000004.pt"
    content = read_checkpoint(last)
    for recipe in (content["recipe"], content["run"]["identity"]["recipe"]):
        del recipe["model"]["system"]
        recipe["model"]["kind"] = "C2D"
    torch.save(content, last)
    assert load_checkpoint(last).recipe == config.recipe.resolve()
    assert run_fit(replace(config, resume=True)).steps == 4
    tanet = replace(config.recipe, model=replace(config.recipe.model, system="tanet"))
    with pytest.raises(InputError, match=r"recipe\.model\.system: was 'c2d', is 'tanet'"):
        run_fit(replace(config, recipe=tanet, resume=True))
