"""Recipes as JSON: those of before, and damaged ones."""

import json
from dataclasses import replace

import pytest

from train.errors import InputError
from train.recipe import Recipe
from train.recipes import RECIPES


def without_lr(plain):
    del plain["optimization"]["lr"]


def with_unknown(plain):
    plain["model"]["depth"] = 50


def with_text(plain):
    plain["sampling"]["num_segments"] = "eight"


def with_list(plain):
    plain["test"] = [10, 3]


@pytest.mark.parametrize("name", [name for name in RECIPES if "slowfast" not in name])  # younger than the fields
def test_a_recipe_of_before_fields_were_added(name):
    plain = json.loads(RECIPES[name].to_json())
    added = {
        "data": ("balanced",),
        "augmentation": ("short_sides", "color_jitter", "randaugment", "mixup", "cutmix"),
        "model": ("stages",),
        "optimization": ("warmup_start", "nesterov", "norm_decay", "label_smoothing", "class_weights"),
    }
    for group, field in ((group, field) for group, names in added.items() for field in names):
        del plain[group][field]
    assert Recipe.from_json(json.dumps(plain)) == RECIPES[name]


def test_a_recipe_of_before_a_field_was_renamed():
    plain = json.loads(RECIPES["ssv2-8f"].to_json())
    plain["optimisation"] = plain.pop("optimization")
    assert Recipe.from_json(json.dumps(plain)) == RECIPES["ssv2-8f"]


@pytest.mark.parametrize(("kind", "system"), [("TANet", "tanet"), ("C2D", "c2d")])
def test_a_recipe_of_before_systems_had_names(kind, system):
    recipe = replace(RECIPES["demo"], model=replace(RECIPES["demo"].model, system=system))
    plain = json.loads(recipe.to_json())
    del plain["model"]["system"]
    assert Recipe.from_json(json.dumps(plain | {"model": plain["model"] | {"kind": kind}})) == recipe
    with pytest.raises(InputError, match=r"recipe\.model: got unknown fields \['kind'\]"):
        Recipe.from_json(json.dumps(plain | {"model": plain["model"] | {"kind": kind, "system": system}}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_lr, r"recipe\.optimization: fields \['lr'\] are missing"),
        (with_unknown, r"recipe\.model: got unknown fields \['depth'\], expected \['alpha', "),
        (with_text, r"sampling\.num_segments: got 'eight', expected a whole number"),
        (with_list, r"recipe\.test: got \[10, 3\], expected an object"),
    ],
)
def test_damaged_json(damage, message):
    plain = json.loads(RECIPES["k400-8f"].to_json())
    damage(plain)
    with pytest.raises(InputError, match=message):
        Recipe.from_json(json.dumps(plain))
    with pytest.raises(InputError, match="recipe: line 1: is not JSON"):
        Recipe.from_json(json.dumps(plain)[:-5])
