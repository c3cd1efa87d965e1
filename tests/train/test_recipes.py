import json
import sys
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import pytest
import tyro

from train.data.dataset import Views
from train.data.entries import Entry, Split
from train.data.sampling import Sampling
from train.data.transforms import Augmentation
from train.errors import InputError
from train.recipe import Data, Model, Optimization, Recipe
from train.recipes import RECIPES, SUMMARIES, recipe_subcommands

every_recipe = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)


@dataclass(frozen=True)
class Run:
    """A run."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    out: Path = Path("runs")
    """Where to."""


def parse(*arguments):
    return tyro.cli(recipe_subcommands(Run), args=arguments)


# Recipe: T, kind, clips, lr, epochs, milestones, decay, dropout, flip, test clips, test crops, size of test crops.
PUBLISHED = {
    "k400-8f": (8, "dense", 64, 0.01, 100, (50, 75, 90), 1e-4, 0.5, 0.5, 10, 3, 256),
    "k400-16f": (16, "dense", 64, 0.01, 100, (50, 75, 90), 1e-4, 0.5, 0.5, 4, 3, 256),
    "ssv1-8f": (8, "segments", 64, 0.01, 50, (30, 40, 45), 1e-3, 0.6, 0.0, 1, 1, 224),
    "ssv1-16f": (16, "segments", 64, 0.01, 50, (30, 40, 45), 1e-3, 0.6, 0.0, 1, 1, 224),
    "ssv2-8f": (8, "segments", 128, 0.02, 50, (30, 40, 45), 5e-4, 0.5, 0.5, 2, 3, 256),
    "ssv2-16f": (16, "segments", 128, 0.02, 50, (30, 40, 45), 5e-4, 0.5, 0.5, 2, 3, 256),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_values(name):
    recipe = RECIPES[name]
    sampling, optimization, test = recipe.sampling, recipe.optimization, recipe.test
    assert (
        *(sampling.num_segments, sampling.kind, optimization.batch_size, optimization.lr, optimization.epochs),
        *(optimization.milestone_epochs, optimization.weight_decay, recipe.model.dropout, recipe.augmentation.flip),
        *(test.clips, test.crops, test.crop_size),
    ) == PUBLISHED[name]
    assert recipe.model.backbone == "resnet50"
    assert recipe.model.weights == "IMAGENET1K_V1"
    assert (optimization.momentum, optimization.max_grad_norm, optimization.lr_divisor) == (0.9, 20, 10)
    assert (optimization.groups, optimization.fast_kernels, optimization.warmup_epochs) == (True, False, 0)
    assert recipe.augmentation.scales == (1, 0.875, 0.75, 0.66)
    assert recipe.test.short_side == 256
    assert recipe.validation == Views("middle", 1, 1, 256, 224)
    assert recipe.data.num_classes == (400 if name.startswith("k400") else 174)
    assert optimization.scaled_lr == optimization.lr == replace(optimization, scale_lr=True).scaled_lr


@pytest.mark.parametrize(("name", "system"), [("4x16", "slowfast_4x16"), ("8x8", "slowfast_8x8")])
def test_published_values_of_slowfast(name, system):
    """As configs/Kinetics/SLOWFAST_*_R50.yaml of facebookresearch/SlowFast, and its defaults, have them."""
    recipe = RECIPES[f"k400-slowfast-{name}"]
    assert recipe.model == Model(system=system, weights=None, dropout=0.5)
    assert recipe.sampling == Sampling("dense", num_segments=32, reach=64)
    assert recipe.augmentation == Augmentation(224, short_sides=(256, 320), positions="any", flip=0.5)
    assert recipe.optimization == Optimization(
        batch_size=64, lr=0.1, epochs=196, schedule="cosine", milestones=(), warmup_epochs=34, warmup_start=0.1,
        momentum=0.9, nesterov=True, weight_decay=1e-4, max_grad_norm=None, groups=False, norm_decay=False,
    )  # fmt: skip
    assert recipe.test == Views("spread", 10, 3, 256, 256, "probabilities")
    assert recipe.data == Data(num_classes=400)
    tam = replace(recipe, model=replace(recipe.model, system=system.replace("_", "_tam_")))
    assert Recipe.from_json(tam.to_json()) == tam


@every_recipe
def test_json_round_trip(recipe):
    recipe = replace(recipe, seed=7, data=replace(recipe.data, train=Path("some/train.jsonl"), num_classes=5))
    assert Recipe.from_json(recipe.to_json()) == recipe
    plain = json.loads(recipe.to_json())
    assert plain["data"]["train"] == "some/train.jsonl"
    assert plain["sampling"]["num_segments"] == recipe.sampling.num_segments
    assert isinstance(plain["optimization"]["milestones"], list)


@pytest.mark.parametrize("batch_size", [16, 64, 1024])
def test_learning_rate_scales_on_request(batch_size):
    recipe = RECIPES["k400-8f"]
    plain = replace(recipe.optimization, batch_size=batch_size)
    assert plain.scaled_lr == 0.01
    scaled = replace(recipe, optimization=replace(plain, scale_lr=True))
    assert scaled.optimization.scaled_lr == pytest.approx(0.01 * batch_size / 64)
    resolved = scaled.resolve()
    assert resolved.optimization.lr == resolved.optimization.scaled_lr == scaled.optimization.scaled_lr
    assert resolved.resolve() == resolved


def test_resolved_paths_do_not_depend_on_where_one_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = replace(RECIPES["demo"], data=Data(train=Path("lists/train.jsonl")))
    resolved = recipe.resolve()
    assert resolved.data.train == tmp_path / "lists/train.jsonl"
    assert resolved.data.val is None
    monkeypatch.chdir("/")
    assert resolved.resolve() == resolved


def leaves(value, path=()):
    """(path, value) of all fields that are not dataclasses themselves."""
    for field in fields(value):
        inner = getattr(value, field.name)
        if is_dataclass(inner):
            yield from leaves(inner, (*path, field.name))
        else:
            yield (*path, field.name), inner


def with_leaf(value, path, new):
    inner = new if len(path) == 1 else with_leaf(getattr(value, path[0]), path[1:], new)
    return replace(value, **{path[0]: inner})


OVERRIDES = {
    "data.train": ("/data/train.jsonl", Path("/data/train.jsonl")),
    "data.val": ("/data/val.jsonl", Path("/data/val.jsonl")),
    "data.num_classes": ("None", None),
    "data.max_bad_share": ("0.5", 0.5),
    "data.decoder": ("torchcodec", "torchcodec"),
    "model.system": ("tsm", "tsm"),
    "model.backbone": ("resnet152", "resnet152"),
    "model.weights": ("None", None),
    "model.dropout": ("0.25", 0.25),
    "model.kernel_size": ("5", 5),
    "model.alpha": ("4", 4),
    "model.beta": ("8", 8),
    "data.train_root": ("videos", Path("videos")),
    "data.val_root": ("videos", Path("videos")),
    "model.local_kernel_size": ("5", 5),
    "model.stages": ("res4 res5", ("res4", "res5")),
    "sampling.kind": ("segments", "segments"),
    "sampling.num_segments": ("16", 16),
    "sampling.reach": ("32", 32),
    "augmentation.crop_size": ("112", 112),
    "augmentation.scales": ("1 0.5", (1.0, 0.5)),
    "augmentation.short_sides": ("256 320", (256, 320)),
    "augmentation.max_distortion": ("0", 0),
    "augmentation.positions": ("any", "any"),
    "augmentation.flip": ("0", 0.0),
    "augmentation.mirrored": ("pairs.txt", Path("pairs.txt")),
    "augmentation.color_jitter": ("0.4", (0.4,)),
    "augmentation.randaugment": ("2,9,color", "2,9,color"),
    "augmentation.mixup": ("0.2", 0.2),
    "augmentation.cutmix": ("1", 1.0),
    "optimization.label_smoothing": ("0.1", 0.1),
    "optimization.class_weights": ("balanced", "balanced"),
    "optimization.batch_size": ("256", 256),
    "optimization.lr": ("0.04", 0.04),
    "optimization.lr_batch_size": ("32", 32),
    "optimization.epochs": ("150", 150),
    "optimization.schedule": ("cosine", "cosine"),
    "optimization.milestones": ("10 20", (10, 20)),
    "optimization.lr_divisor": ("5", 5.0),
    "optimization.warmup_epochs": ("2.5", 2.5),
    "optimization.warmup_start": ("0.1", 0.1),
    "optimization.momentum": ("0.8", 0.8),
    "optimization.weight_decay": ("0", 0.0),
    "optimization.max_grad_norm": ("None", None),
    "validation.placement": ("spread", "spread"),
    "validation.crops": ("3", 3),
    "validation.short_side": ("240", 240),
    "validation.crop_size": ("192", 192),
    "validation.average": ("probabilities", "probabilities"),
    "test.clips": ("4", 4),
    "seed": ("3", 3),
}
FLAGS = {
    "data.balanced": ("--data.balanced", True),
    "optimization.scale_lr": ("--optimization.scale-lr", True),
    "optimization.groups": ("--optimization.no-groups", False),
    "optimization.nesterov": ("--optimization.nesterov", True),
    "optimization.norm_decay": ("--optimization.no-norm-decay", False),
    "optimization.fast_kernels": ("--optimization.fast-kernels", True),
}


def test_every_field_can_be_overridden_from_the_command_line(tmp_path):
    recipe = RECIPES["k400-8f"]
    of_views = {("test", name) for name in ("placement", "crops", "short_side", "crop_size", "average")}
    untried = {path for path, _ in leaves(recipe)} - {("name",), ("validation", "clips")} - of_views
    of_a_file = {"model.weights_segments", "model.weights_average"}
    assert {".".join(path) for path in untried} == OVERRIDES.keys() | FLAGS.keys() | of_a_file
    started = parse(
        "k400-8f", "--model.weights", "a.pth", "--model.weights-segments", "draw", "--model.weights-average"
    )
    assert started.recipe.model == replace(recipe.model, weights="a.pth", weights_segments="draw", weights_average=True)
    for name, (text, value) in OVERRIDES.items():
        run = parse("k400-8f", f"--{name.replace('_', '-')}", *text.split(" "))
        assert run.recipe == with_leaf(recipe, name.split("."), value)
        assert run.recipe != recipe
    for name, (flag, value) in FLAGS.items():
        assert parse("k400-8f", flag).recipe == with_leaf(recipe, name.split("."), value)


def test_command_line_of_every_recipe(capsys):
    for name, recipe in RECIPES.items():
        assert parse(name, "--out", "there") == Run(recipe, Path("there"))
    with pytest.raises(SystemExit):
        parse("k400-8f", "--help")
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert SUMMARIES["k400-8f"] in shown
    for text in (
        "--optimization.lr FLOAT",
        "ImageNet's in paper and script",
        "(default: 0.5 0.75 0.9)",
        "{dense,segments}",
    ):
        assert text in shown
    assert "--name" not in shown


def test_completion_knows_recipes_and_fields(capsys):
    with pytest.raises(SystemExit):
        parse("--tyro-print-completion", "bash")
    script = capsys.readouterr().out
    for word in ("ssv2-16f", "--optimization.weight-decay", "tanet_d"):
        assert word in script


def test_wrong_value_on_the_command_line_is_named(capsys):
    with pytest.raises(SystemExit):
        parse("k400-8f", "--optimization.lr", "-1")
    printed = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "optimization.lr: got -1.0, expected a number above 0" in printed


CHANGED = partial(replace, RECIPES["demo"])
SLOWFAST = Model(system="slowfast_4x16", weights=None)


@pytest.mark.parametrize(
    ("make", "fields", "message"),
    [
        (Optimization, {"lr": 0}, r"optimization\.lr: got 0, expected a number above 0"),
        (Optimization, {"lr": float("inf")}, r"optimization\.lr: got inf, expected a finite number"),
        (Optimization, {"lr": "0.1"}, r"optimization\.lr: got '0\.1', expected a finite number"),
        (Optimization, {"batch_size": 0}, r"optimization\.batch_size: got 0, expected at least 1"),
        (Optimization, {"batch_size": True}, r"optimization\.batch_size: got True, expected a whole number"),
        (Optimization, {"epochs": 60, "milestones": (50, 75)}, r"milestones: got \(50, 75\), expected .* below 60, or"),
        (Optimization, {"milestones": (20, 10)}, r"milestones: got \(20, 10\), expected numbers that rise"),
        (Optimization, {"milestones": [50]}, r"milestones: got \[50\], expected a tuple, each of it a finite number"),
        (Optimization, {"lr_divisor": 0.5}, r"lr_divisor: got 0\.5, expected at least 1"),
        (Optimization, {"warmup_epochs": -1}, r"warmup_epochs: got -1, expected from 0 to epochs \(100\)"),
        (Optimization, {"warmup_start": 1.1}, r"warmup_start: got 1\.1, expected a share of lr from 0 to 1, or None"),
        (Optimization, {"nesterov": True, "momentum": 0}, r"nesterov: got True, expected False where momentum is 0"),
        (Optimization, {"momentum": 1.0}, r"momentum: got 1\.0, expected at least 0 and below 1"),
        (Optimization, {"weight_decay": -1e-4}, r"weight_decay: got -0\.0001, expected at least 0"),
        (Optimization, {"max_grad_norm": 0}, r"max_grad_norm: got 0, expected a number above 0"),
        (Optimization, {"schedule": "exp"}, r"schedule: got 'exp', expected one of 'step', 'cosine'"),
        (
            Model,
            {"backbone": "vgg"},
            r"model\.backbone: got 'vgg', expected one of 'convnext_base', .*'resnet50', .*'small'",
        ),
        (Model, {"backbone": 50}, r"model\.backbone: got 50, expected a text"),
        (Model, {"backbone": "timm/nothing"}, r"model\.backbone: got 'timm/nothing', which timm does not have"),
        (
            Model,
            {"backbone": "timm/test_resnet"},
            r"model\.weights: got 'IMAGENET1K_V1', expected one of \('DEFAULT', 'r160_in1k'\) or None",
        ),
        (
            Model,
            {"backbone": "timm/test_resnet.r160_in1k"},
            r"got 'timm/test_resnet\.r160_in1k', expected 'timm/test_resnet', and the tag 'r160_in1k' for its weights",
        ),
        (
            Model,
            {"backbone": "small"},
            r"model\.weights: got 'IMAGENET1K_V1', expected None, or a file, for the small backbone",
        ),
        (Model, {"weights": "V9"}, r"model\.weights: got 'V9', expected one of \('IMAGENET1K_V1', "),
        (Model, {"system": "i4d"}, r"model\.system: got 'i4d', expected one of 'c2d', .*'tanet', .*'tsm'"),
        (Model, {"system": "tsm", "alpha": 3}, r"model\.alpha: got 3, expected 2, as tsm has no such option"),
        (Model, {"system": "local", "kernel_size": 5}, r"model\.kernel_size: got 5, expected 3, as local has no"),
        (Model, {"system": "slowfast_4x16"}, r"model\.weights: got 'IMAGENET1K_V1', expected None for slowfast_4x16"),
        (
            Model,
            {"system": "slowfast_8x8", "backbone": "resnet18"},
            r"model\.backbone: got 'resnet18', expected resnet50",
        ),
        (
            CHANGED,
            {"model": SLOWFAST},
            r"sampling\.num_segments: got 8, expected 32 for slowfast_4x16, its fast pathway",
        ),
        (Model, {"stages": ("res6",)}, r"model\.stages: got \('res6',\), expected a tuple, each of it one of 'res2', "),
        (Model, {"stages": ()}, r"model\.stages: got \(\), expected one or more different stages, or None"),
        (Model, {"stages": ("res5", "res5")}, r"model\.stages: got \('res5', 'res5'\), expected one or more different"),
        (
            Model,
            {"system": "tsm", "stages": ("res5",)},
            r"stages: got \('res5',\), expected None, as the places of tsm",
        ),
        (Model, {"dropout": 1.0}, r"model\.dropout: got 1\.0, expected at least 0 and below 1"),
        (Model, {"kernel_size": 4}, r"model\.kernel_size: got 4, expected an odd number above 0"),
        (Model, {"alpha": 0}, r"model\.alpha: got 0, expected at least 1"),
        (Data, {"train": "list.txt"}, r"data\.train: got 'list\.txt', expected a path or None"),
        (Data, {"num_classes": 1}, r"data\.num_classes: got 1, expected at least 2"),
        (Data, {"max_bad_share": 2}, r"data\.max_bad_share: got 2, expected a share from 0 to 1"),
        (CHANGED, {"seed": -1}, r"recipe\.seed: got -1, expected at least 0"),
        (CHANGED, {"test": Sampling()}, r"recipe\.test: got Sampling\(.*\), expected a Views"),
    ],
)
def test_impossible_values(make, fields, message):
    with pytest.raises(InputError, match=message):
        make(**fields)


def test_backbones_of_timm(monkeypatch):
    for weights in (None, "DEFAULT", "in12k_ft_in1k"):
        options = ["--model.backbone", "timm/convnext_tiny", "--model.weights", str(weights)]
        assert parse("k400-8f", *options).recipe.model == Model(backbone="timm/convnext_tiny", weights=weights)
    monkeypatch.setitem(sys.modules, "timm", None)  # as if it were not installed
    with pytest.raises(InputError, match=r"model\.backbone: got 'timm/convnext_tiny', but .* need timm: pip install"):
        Model(backbone="timm/convnext_tiny", weights=None)


def test_split_that_does_not_suit_the_recipe():
    split = Split("val", (Entry(Path("a.mp4"), 0),), ("a", "b"))
    Data().check_split(split)
    Data(num_classes=2).check_split(split)
    with pytest.raises(InputError, match=r"data\.num_classes: got 400, but val has 2 classes"):
        RECIPES["k400-8f"].data.check_split(split)
    with pytest.raises(InputError, match="val: the split holds no videos"):
        Data().check_split(Split("val", (), ("a", "b")))
