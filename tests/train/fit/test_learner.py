import io
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tam_triton import TAM
from tam_triton.clips import normalize
from tam_triton.kernels import launch, tuned
from tam_triton.kernels.launch import Block
from train.data.batches import Batch
from train.errors import InputError
from train.fit.config import Compute
from train.fit.learner import Learner, use_tuned
from train.fit.optimizer import build_schedule, build_sgd, parameter_groups
from train.networks import build_network, check_network
from train.precision import reproducible
from train.recipe import Model, Optimization
from train.recipes import RECIPES

PLAIN = Optimization(lr=0.05, weight_decay=0.01, groups=False)
SMALL = Model(backbone="small", weights=None, dropout=0.0)


class Linear(nn.Module):
    """The smallest network for clips."""

    def __init__(self, scale=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(2 * 3 * 4 * 4, 3)
        self.scale = scale

    def forward(self, clips):
        return self.fc(self.scale * clips.flatten(1))


def make_batch(seed, count=5, size=4, frames=2):
    generator = torch.Generator().manual_seed(seed)
    clips = torch.randint(0, 256, (count, frames, size, size, 3), generator=generator, dtype=torch.uint8)
    return Batch(clips, torch.randint(0, 3, (count,), generator=generator))


def small_learner(compute=None, optimization=None, schedule=lambda _: 1.0):
    torch.manual_seed(1)
    network = build_network(SMALL, 3, 4)
    return Learner(network, optimization or Optimization(lr=0.01), schedule, compute)


def state_of(learner):
    return {name: value.clone() for name, value in learner.network.state_dict().items()}


@pytest.mark.parametrize(("scale", "is_clipped"), [(1.0, False), (30.0, True)])
@pytest.mark.parametrize("groups", [False, True])
def test_step_is_clipped_sgd_with_momentum(scale, is_clipped, groups):
    network = Linear(scale)
    weights: list[torch.Tensor] = [p.detach().clone() for p in network.parameters()]
    velocity = [torch.zeros_like(w) for w in weights]
    factors, decays = ((5, 10), (0.01, 0)) if groups else ((1, 1), (0.01, 0.01))
    schedule = build_schedule(replace(PLAIN, schedule="cosine", epochs=2, milestones=()), steps_per_epoch=2)
    learner = Learner(network, replace(PLAIN, groups=groups), schedule)
    saw_clipping = False
    for step in range(4):
        batch = make_batch(step)
        leaves = [w.clone().requires_grad_() for w in weights]
        logits = scale * normalize(batch.clips).flatten(1) @ leaves[0].T + leaves[1]
        loss = cross_entropy(logits, batch.labels)
        grads = list(torch.autograd.grad(loss, leaves))
        norm = math.sqrt(sum(g.square().sum().item() for g in grads))
        saw_clipping |= norm > 20
        grads = [g * min(1, 20 / (norm + 1e-6)) for g in grads]
        lr = 0.05 * (1 + math.cos(math.pi * step / 4)) / 2
        velocity = [0.9 * v + g + d * w for v, g, d, w in zip(velocity, grads, decays, weights, strict=True)]
        weights = [w - lr * f * v for w, f, v in zip(weights, factors, velocity, strict=True)]
        result = learner.step([batch])
        assert learner.lr == pytest.approx(lr)  # the rate that the step was taken with
        assert result.loss.item() == pytest.approx(loss.item(), rel=1e-4)
        assert result.grad_norm.item() == pytest.approx(norm, rel=1e-4)
        for actual, expected in zip(network.parameters(), weights, strict=True):
            torch.testing.assert_close(actual.detach(), expected, rtol=1e-4, atol=1e-4)
    assert saw_clipping == is_clipped
    assert learner.steps == 4


@pytest.mark.parametrize("system", ["tanet", "c2d"])
@pytest.mark.parametrize("fast_kernels", [False, True])
def test_groups_of_the_papers_code(system, fast_kernels):
    network = build_network(Model(system=system, backbone="resnet18", weights=None), 7, 8)
    network.get_submodule("layer1.0.conv1").bias = nn.Parameter(torch.zeros(64))  # ResNets have none of their own
    optimization = Optimization(lr=0.01, weight_decay=1e-3, fast_kernels=fast_kernels)
    learner = Learner(network, optimization, lambda _: 1.0)
    by_name = {name: id(parameter) for name, parameter in network.named_parameters()}
    norms = {id(p) for m in network.modules() if "BatchNorm" in type(m).__name__ for p in m.parameters()}
    kernels = {id(p) for m in network.modules() if isinstance(m, TAM) for p in (m.G[0].weight, m.G[3].weight)}
    expected = {}
    for name, number in by_name.items():
        if name == "fc.weight":
            expected[number] = (0.05, 1e-3)
        elif name == "fc.bias":
            expected[number] = (0.1, 0)
        elif number in norms:
            expected[number] = (0.01, 0)
        elif name == "layer1.0.conv1.bias":
            expected[number] = (0.02, 0)
        else:
            expected[number] = (0.05 if fast_kernels and number in kernels else 0.01, 1e-3)
    groups = learner.optimizer.param_groups
    actual = [(id(p), (group["lr"], group["weight_decay"])) for group in groups for p in group["params"]]
    assert len(actual) == len(by_name)
    assert {number: pytest.approx(values) for number, values in actual} == expected
    assert len(kernels) == (16 if system == "tanet" else 0)


@pytest.mark.parametrize("system", ["slowfast_4x16", "slowfast_tam_4x16"])
def test_one_group_from_which_batchnorm_is_taken(system):
    """As SlowFast's authors have it: the last bias decays, too, and nothing learns faster."""
    recipe = RECIPES["k400-slowfast-4x16"]
    network = check_network(replace(recipe.model, system=system), 7, 32)
    groups = build_sgd(network, recipe.optimization, fused=False).param_groups
    by_number = {id(parameter): name for name, parameter in network.named_parameters()}
    found = {group["name"]: {by_number[id(parameter)] for parameter in group["params"]} for group in groups}
    assert {group["name"]: (group["lr"], group["weight_decay"]) for group in groups} == {
        "weights": (0.1, 1e-4),
        "norms": (0.1, 0),
    }
    assert all(group["nesterov"] and group["momentum"] == 0.9 for group in groups)
    norms = [name for name, module in network.named_modules() if "BatchNorm" in type(module).__name__]
    assert found["norms"] == {f"{name}.{kind}" for name in norms for kind in ("weight", "bias")}
    assert found["weights"] == set(by_number.values()) - found["norms"]
    assert "fc.bias" in found["weights"]


def test_frozen_parameters_are_in_no_group():
    network = build_network(SMALL, 3, 4)
    frozen = network.get_parameter("conv1.weight").requires_grad_(False)
    for groups in (True, False):
        found = [p for some in parameter_groups(network, Optimization(groups=groups)).values() for p in some]
        assert len(found) == len(list(network.parameters())) - 1
        assert all(p is not frozen for p in found)


def test_groups_need_a_last_layer():
    with pytest.raises(InputError, match="the last layer as `fc`"):
        Learner(nn.Sequential(nn.Flatten(), nn.Linear(3, 3)), Optimization(), lambda _: 1.0)


def test_step_schedule():
    schedule = build_schedule(RECIPES["k400-8f"].optimization, steps_per_epoch=10)
    assert [schedule(step) for step in (0, 499, 500, 749, 750, 899, 900, 999)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    )


def test_milestones_as_shares_of_the_epochs():
    """So any number of epochs has all of the schedule."""
    optimization = replace(RECIPES["k400-8f"].optimization, epochs=2)
    schedule = build_schedule(optimization, steps_per_epoch=10)
    assert [schedule(step) for step in (9, 10, 14, 15, 17, 18)] == pytest.approx([1, 0.1, 0.1, 0.01, 0.01, 0.001])
    in_epochs = replace(optimization, milestones=(1, 1.5, 1.8))
    assert optimization.milestone_epochs == in_epochs.milestones


def test_schedule_of_slowfast():
    """The authors' rule (slowfast/utils/lr_policy.py), written again: half a cosine over all epochs; before the 34th a
    line from 0.01 to where the cosine then is."""
    optimization = RECIPES["k400-slowfast-4x16"].optimization
    schedule = build_schedule(optimization, steps_per_epoch=10)

    def cosine(epoch):
        return 0.1 * (math.cos(math.pi * epoch / 196) + 1) * 0.5

    for step in range(1960):
        epoch = step / 10
        expected = 0.01 + (cosine(34) - 0.01) * epoch / 34 if epoch < 34 else cosine(epoch)
        assert optimization.lr * schedule(step) == pytest.approx(expected, rel=1e-12)
    doubled = replace(optimization, batch_size=128, scale_lr=True)
    assert doubled.scaled_lr * build_schedule(doubled, 10)(0) == pytest.approx(0.02)


def test_a_line_meets_the_steps_of_a_schedule():
    schedule = build_schedule(Optimization(epochs=4, milestones=(1,), warmup_epochs=2, warmup_start=0.5), 2)
    assert [schedule(step) for step in range(5)] == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1])


def test_warmup_rises_in_a_line():
    optimization = Optimization(epochs=10, milestones=(5,), warmup_epochs=0.5)
    schedule = build_schedule(optimization, steps_per_epoch=6)
    assert [schedule(step) for step in (0, 1, 2, 3, 29, 30)] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 0.1])


@pytest.mark.parametrize("sizes", [(6,), (3, 3), (1, 5), (2, 2, 2)])
def test_parts_of_a_step_add_up(sizes):
    whole = make_batch(0, 6)
    learner = Learner(Linear(), PLAIN, lambda _: 1.0, Compute(accumulate=len(sizes)))
    parts = [Batch(c, y) for c, y in zip(whole.clips.split(sizes), whole.labels.split(sizes), strict=True)]
    expected = Learner(Linear(), PLAIN, lambda _: 1.0)
    for _ in range(3):
        first, second = learner.step(parts), expected.step([whole])
        torch.testing.assert_close(first, second)
    torch.testing.assert_close(state_of(learner), state_of(expected))
    torch.testing.assert_close(learner.tally.sums(), expected.tally.sums())
    assert learner.take_score().total == 18
    assert learner.tally.sums()[2] == 0


@pytest.mark.parametrize("recompute", [False, True])
def test_moving_average(recompute):
    """It is the last weights after the first step, and forgets more slowly from step to step, down to its decay."""
    learner = small_learner(Compute(ema=0.5, recompute=recompute))
    assert learner.average is not None
    average = state_of(learner)
    for step, decay in enumerate((0.0, 1 - 2 ** (-2 / 3), 0.5)):
        learner.step([make_batch(step, 4, 32, 4)])
        for name, value in learner.network.state_dict().items():
            average[name] = decay * average[name] + (1 - decay) * value if value.is_floating_point() else value
    for name, value in learner.average.network.state_dict().items():
        torch.testing.assert_close(value, average[name])
    assert learner.evaluated is learner.average.network
    assert not torch.equal(average["fc.weight"], learner.network.get_parameter("fc.weight"))
    plain = build_network(SMALL, 3, 4).eval()
    plain.load_state_dict(average)
    clips = normalize(make_batch(9, 2, 32, 4).clips)
    with torch.inference_mode():
        torch.testing.assert_close(learner.evaluated(clips), plain(clips))


def run_steps(learner, count=3):
    for step in range(count):
        learner.step([make_batch(step, 4, 32, 4)])
    return state_of(learner)


def test_recomputing_changes_no_bits_and_keeps_less():
    kept = {}
    with reproducible(1):
        expected = run_steps(small_learner())
        learner = small_learner(Compute(recompute=True))
        assert state_of(learner).keys() == expected.keys()
        actual = run_steps(learner)
        for name, which in (("plain", small_learner()), ("recompute", learner)):
            saved: list[int] = []
            pack = partial(lambda saved, tensor: saved.append(tensor.numel()) or tensor, saved)
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                which.network(normalize(make_batch(0, 4, 32, 4).clips)).sum()
            kept[name] = sum(saved)
    assert all(torch.equal(value, expected[name]) for name, value in actual.items())
    assert kept["recompute"] < 0.6 * kept["plain"]


def test_recomputing_needs_stages():
    with pytest.raises(InputError, match="recompute: got Linear, expected a network"):
        Learner(Linear(), PLAIN, lambda _: 1.0, Compute(recompute=True))


@pytest.mark.parametrize("channels_last", [True, False])
def test_layout(channels_last):
    learner = small_learner(Compute(channels_last=channels_last))
    seen = []
    learner.network.layer2.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    learner.step([make_batch(0, 2, 32, 4)])
    assert seen[0].is_contiguous(memory_format=torch.channels_last) == channels_last
    assert seen[0].is_contiguous() != channels_last
    assert learner.network.layer2[0].conv1.weight.is_contiguous(memory_format=torch.channels_last) == channels_last


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_computes_low_and_keeps_float32_weights(precision):
    dtypes = []
    learner, exact = small_learner(Compute(precision=precision)), small_learner()
    if precision == "fp16":  # the scale that training settles at; the first one overflows here
        learner.scaler.load_state_dict(learner.scaler.state_dict() | {"scale": 2.0**8})
    learner.network.layer2.register_forward_pre_hook(lambda _, args: dtypes.append(args[0].dtype))
    batch = make_batch(0, 4, 32, 4)
    before = state_of(learner)
    low, high = learner.step([batch]), exact.step([batch])
    assert dtypes == [{"bf16": torch.bfloat16, "fp16": torch.float16}[precision]]
    assert all(p.dtype == torch.float32 for p in learner.network.parameters())
    assert low.loss.item() == pytest.approx(high.loss.item(), rel=0.02)
    assert low.grad_norm.item() == pytest.approx(high.grad_norm.item(), rel=0.1)  # and not scaled
    moved = learner.network.fc.weight.detach() - before["fc.weight"]
    expected = exact.network.fc.weight.detach() - before["fc.weight"]
    torch.testing.assert_close(moved, expected, rtol=0.1, atol=0.05 * expected.abs().max().item())


def test_scaler_leaves_out_a_step_that_overflows():
    learner = small_learner(Compute(precision="fp16"))
    learner.scaler.load_state_dict(learner.scaler.state_dict() | {"scale": 2.0**40})
    before = [p.detach().clone() for p in learner.network.parameters()]
    result = learner.step([make_batch(0, 4, 32, 4)])
    assert not math.isfinite(result.grad_norm.item())
    assert all(torch.equal(p, q) for p, q in zip(learner.network.parameters(), before, strict=True))
    assert learner.scaler.get_scale() == 2.0**39


def test_compiled_step(monkeypatch):
    """By a backend that is quick to compile: what is tested is that the step goes through torch.compile at all."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: compile_(module, backend=backend))
    learner, expected = (Learner(Linear(), PLAIN, lambda _: 1.0, compute) for compute in (Compute(compile=True), None))
    for step in range(2):
        torch.testing.assert_close(learner.step([make_batch(step)]), expected.step([make_batch(step)]))
    torch.testing.assert_close(state_of(learner), state_of(expected))
    assert graphs


@pytest.mark.parametrize("compute", [Compute(), Compute(precision="fp16", ema=0.9)])
def test_state_continues_to_the_bit(compute):
    schedule = build_schedule(replace(PLAIN, schedule="cosine", epochs=2, milestones=()), steps_per_epoch=4)
    with reproducible(1):
        whole = small_learner(compute, schedule=schedule)
        for step in range(6):
            if step == 3:
                state = whole.state_dict()
                other = small_learner(compute, schedule=schedule)
                run_steps(other, 1)
                other.load_state_dict(torch.load(_saved(state), weights_only=True))
            whole.step([make_batch(step, 4, 32, 4)])
        for step in (3, 4, 5):
            other.step([make_batch(step, 4, 32, 4)])
    assert other.lr == whole.lr
    assert other.scaler.state_dict() == whole.scaler.state_dict()
    for first, second in ((other.network, whole.network), (other.evaluated, whole.evaluated)):
        for name, value in first.state_dict().items():
            assert torch.equal(value, second.state_dict()[name]), name


def _saved(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"accumulate": 0}, "compute.accumulate: got 0"),
        ({"accumulate": "2"}, "compute.accumulate: got '2', expected a whole number"),
        ({"precision": "half"}, "compute.precision: got 'half', expected one of 'fp32', 'bf16', 'fp16'"),
        ({"ema": 1.0}, r"compute.ema: got 1\.0"),
        ({"compile": True, "recompute": True}, "exclude each other"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(InputError, match=message):
        Compute(**settings)


def test_tuned_launches_are_those_of_the_device(tmp_path):
    file = tmp_path / "tuned.json"
    with pytest.raises(InputError, match=r"compute.tuned: got .*tuned.json, but nothing is launched"):
        small_learner(Compute(tuned=file))
    with pytest.raises(InputError, match=r"compute.tuned: .*No such file"):
        use_tuned(file, on_gpu=True)
    key = ("temporal_block", 8, 16, False, 4)
    tuned.write(file, tuned.Where("cuda:90", 132, 32), {key: Block(64, 2, 1)}, {})
    try:
        use_tuned(file, on_gpu=True)
        assert {key: Block(64, 2, 1)} == launch.CHOSEN
    finally:
        tuned.use(None)


def test_sync_batchnorm_needs_gpus():
    with pytest.raises(InputError, match="for GPUs only"):
        small_learner(Compute(sync_batchnorm=True))
