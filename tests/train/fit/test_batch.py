"""The number of clips a step where the machine is to choose it: once, when a run begins, for all processes."""

import json
from dataclasses import replace

import pytest
import torch

from tests.support.fit_runs import Videos, equal_bits, final_bits, finish, run_one, start, tiny_config
from train.__main__ import main
from train.data.batches import Batch
from train.errors import InputError
from train.fit import batch
from train.fit.batch import choose_batch, memory_of
from train.fit.config import Compute
from train.fit.learner import Learner
from train.networks import build_network
from train.recipe import Recipe
from train.recipes import RECIPES
from train.team import Team

GIB = 2**30
SMALL = """
    --model.backbone small --model.weights None --sampling.num-segments 4 --augmentation.crop-size 32
    --validation.short-side 36 --validation.crop-size 32 --optimization.epochs 1 --optimization.warmup-epochs 0
    --loading.workers 0 --device cpu --threads 1
"""
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return Videos.make(tmp_path_factory.mktemp("data"))


@pytest.fixture
def machine(monkeypatch):
    """Let the machine have so much memory and so many cores."""

    def change(memory=64 * GIB, cores=4):
        monkeypatch.setattr(batch, "_memory", lambda device: memory)
        monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(cores)))

    return change


def own_config(out, **changes):
    """The tiny run, but for its batch, which is the machine's to choose."""
    config = tiny_config(out, **changes)
    optimization = replace(config.recipe.optimization, batch_size=None, lr_batch_size=64, lr=0.08)
    return replace(config, recipe=replace(config.recipe, optimization=optimization))


def recorded(config):
    return Recipe.from_json((config.out / "recipe.json").read_text()).optimization


@pytest.mark.parametrize(
    ("device", "memory", "cores", "videos", "expected", "reason"),
    [
        (GPU, 80 * GIB, 4, 10_000, 64, "as many as the learning rate is meant for"),
        (GPU, 24 * GIB, 4, 10_000, 16, "19.2 GiB of memory for each process"),
        (GPU, 8 * GIB, 4, 10_000, 8, "6.4 GiB of memory for each process"),
        (GPU, 0, 4, 10_000, 1, "one for each of 1 processes and parts"),
        (GPU, 80 * GIB, 4, 100, 8, "8 steps an epoch of 100 videos"),
        (GPU, 80 * GIB, 4, 5, 1, "one for each of 1 processes and parts"),
        (CPU, 256 * GIB, 2, 10_000, 8, "2 cores, without a GPU"),
        (CPU, 256 * GIB, 48, 10_000, 32, "48 cores, without a GPU"),
        (CPU, 8 * GIB, 48, 10_000, 4, "4.0 GiB of memory for each process"),
    ],
)
def test_what_bounds_it(machine, device, memory, cores, videos, expected, reason):
    machine(memory, cores)
    assert choose_batch(RECIPES["own"], 10, videos, Compute(), Team(device)) == (expected, reason)


def test_half_precision_and_parts_hold_more(machine):
    machine(10 * GIB)
    counts = [
        choose_batch(RECIPES["own"], 10, 10_000, compute, Team(GPU)).clips
        for compute in (Compute(), Compute(precision="bf16"), Compute(accumulate=2), Compute(accumulate=3))
    ]
    assert counts == [8, 16, 16, 24]


def test_processes_agree_on_what_all_of_them_bear(machine):
    """One of three GPUs has less memory."""

    class Three(Team):
        def gather(self, value):
            gathered.append(value)
            return [*gathered[:2], value] if len(gathered) < 3 else list(gathered)

    gathered: list[object] = []
    for memory in (80, 8, 40):
        machine(memory * GIB)
        chosen = choose_batch(RECIPES["own"], 10, 10_000, Compute(), Three(GPU, size=3))
    assert chosen == (24, "6.4 GiB of memory for each process")  # 8 for each


@pytest.mark.parametrize("name", ["demo", "own"])
def test_what_is_counted_is_what_a_step_keeps(name):
    recipe = RECIPES[name]
    if name == "own":
        recipe = replace(
            recipe,
            model=replace(recipe.model, weights=None),
            sampling=replace(recipe.sampling, num_segments=2),
            augmentation=replace(recipe.augmentation, crop_size=64),
        )
    frames, side = recipe.sampling.num_segments, recipe.augmentation.crop_size
    network = build_network(recipe.model, 3, frames, pretrained=False)
    learner = Learner(network, recipe.optimization.__class__(), lambda _: 1.0, Compute(), Team(CPU))
    weights = {weight.data_ptr() for weight in network.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    clips = torch.randint(0, 256, (4, frames, side, side, 3), dtype=torch.uint8)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        learner.step([Batch(clips, torch.zeros(4, dtype=torch.int64))])
    measured = sum(storage.nbytes() for address, storage in kept.items() if address not in weights) / 4
    counted_weights, counted = memory_of(recipe, 3)
    assert counted == pytest.approx(measured, rel=0.1)
    assert counted_weights == sum(weight.nbytes for weight in network.parameters())


def test_counting_draws_no_random_number():
    before = torch.get_rng_state()
    memory_of(RECIPES["demo"], 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_it_is_said_recorded_and_kept(tmp_path, videos, machine, capfd):
    """On a machine that would choose another number the run goes on with its own, to the bit."""
    machine(cores=1)
    whole, broken = own_config(tmp_path / "whole"), own_config(tmp_path / "broken", resume=True)
    assert run_one(whole, videos) == 0
    assert "batch 2, by this machine: 8 steps an epoch of 22 videos" in capfd.readouterr().out
    assert (recorded(whole).batch_size, recorded(whole).lr, recorded(whole).scale_lr) == (2, 0.08 * 2 / 64, False)
    assert run_one(broken, videos) == 0
    for path in sorted((broken.out / "checkpoints").glob("step-*.pt"))[1:]:
        path.unlink()
    (broken.out / "recipe.json").unlink()
    machine(memory=0)  # would choose 1
    capfd.readouterr()
    assert run_one(broken, videos) == 0
    assert "batch 2, as the run began" in capfd.readouterr().out
    assert equal_bits(final_bits(broken.out), final_bits(whole.out))
    assert recorded(broken) == recorded(whole)
    longer = replace(broken.recipe, optimization=replace(broken.recipe.optimization, epochs=4))
    assert run_one(replace(broken, recipe=longer), videos) == 0
    assert "lengthened from 3 to 4 epochs" in capfd.readouterr().out


def test_a_number_that_is_asked_for_wins(tmp_path, videos, machine, capfd):
    machine()
    inputs = videos.written(tmp_path)
    small = SMALL.split()
    for batch_size, asked in ((2, []), (11, ["--optimization.batch-size", "11"])):
        out = tmp_path / f"run-{batch_size}"
        assert main(["fit", "own", *inputs, *small, *asked, "--out", str(out)]) == 0
        said = capfd.readouterr().out
        assert f"steps of {batch_size} clips" in said
        assert ("by this machine" in said) == (batch_size == 2)
        plain = json.loads((out / "recipe.json").read_text())["optimization"]
        assert (plain["batch_size"], plain["lr"]) == (batch_size, 0.01 * batch_size / 64)
    # What a run began with is not what another number asks for.
    resumed = ["fit", "own", *inputs, *small, "--out", str(tmp_path / "run-2"), "--resume"]
    assert main([*resumed, "--optimization.batch-size", "4"]) == 1
    assert "recipe.optimization.batch_size: was 2, is 4" in capfd.readouterr().err


def test_two_processes_choose_one_number(tmp_path, videos, machine):
    machine()
    config = own_config(tmp_path / "run")
    assert finish(start(config, videos, 2, tmp_path / "said.txt")) == [0, 0]
    assert recorded(config).batch_size == 2
    assert (tmp_path / "said.txt").read_text().count("batch 2, by this machine") == 1


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "8", "auto", [], 10**9])
def test_values_that_are_no_number_of_clips(value):
    plain = json.loads(RECIPES["own"].to_json())
    assert Recipe.from_json(json.dumps(plain)) == RECIPES["own"]
    plain["optimization"]["batch_size"] = value
    with pytest.raises(InputError, match=r"batch_size: got .*, expected"):
        Recipe.from_json(json.dumps(plain))


def test_a_comparison_needs_a_number(tmp_path, capsys):
    assert main(["compare", "own", "--systems", "tanet", "tsm", "--out", str(tmp_path / "out")]) == 1
    assert "optimization.batch_size: got None, expected a number" in capsys.readouterr().err


def test_memory_of_this_machine(tmp_path, monkeypatch):
    whole = batch._memory(CPU)
    assert GIB / 4 < whole < 2**50
    (tmp_path / "limit").write_text(f"{GIB // 8}\n")
    (tmp_path / "none").write_text("max\n")
    for names, expected in ((("none", "absent"), None), (("none", "limit"), GIB // 8)):
        monkeypatch.setattr(batch, "_LIMITS", tuple(str(tmp_path / name) for name in names))
        assert batch._memory(CPU) == expected or (expected is None and batch._memory(CPU) >= whole)
