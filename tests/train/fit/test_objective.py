"""What a step minimizes: mixing keeps shares and sums, and without options nothing is drawn and nothing changes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from tam_triton.clips import normalize
from train.data.batches import Batch
from train.data.transforms import Augmentation
from train.errors import InputError
from train.fit.config import Compute
from train.fit.learner import Learner
from train.fit.objective import Mixed, Objective, draw_box
from train.recipe import Optimization
from train.recipes import RECIPES

CLASSES = 4
sizes = st.tuples(st.integers(2, 5), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))
alphas = st.floats(0.05, 5)
places = st.tuples(st.integers(0, 10**6), st.integers(0, 64), st.integers(1, 8))


def make_clips(size, seed=0):
    rng = np.random.default_rng(seed)
    clips = torch.from_numpy(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    return clips, torch.from_numpy(rng.integers(0, CLASSES, size[0]))


def numbered_clips(size):
    """Each clip of one value, its number."""
    return torch.arange(size[0], dtype=torch.uint8)[:, None, None, None, None].expand(*size, 3), torch.arange(size[0])


def check_targets(mixed, labels):
    assert mixed.others is not None
    assert 0 <= mixed.share <= 1
    targets = mixed.targets(CLASSES + 1)
    torch.testing.assert_close(targets.sum(1), torch.ones(len(labels)))
    assert (targets >= 0).all()
    for row, own, other in zip(targets, labels.tolist(), labels.roll(1).tolist(), strict=True):
        assert row[own].item() == pytest.approx(1 if own == other else mixed.share, abs=1e-6)
        assert row[other].item() == pytest.approx(1 if own == other else 1 - mixed.share, abs=1e-6)
    assert torch.equal(mixed.main_labels, labels if mixed.share >= 0.5 else labels.roll(1))


@given(sizes, alphas, places)
def test_mixup_lies_between_two_clips(size, alpha, place):
    clips, labels = make_clips(size)
    before = clips.clone()
    mixed = Objective(mixup=alpha, seed=3).mix(clips, labels, place)
    expected = mixed.share * clips.double() + (1 - mixed.share) * clips.roll(1, 0).double()
    torch.testing.assert_close(mixed.clips.double(), expected, rtol=1e-5, atol=1e-3)
    assert mixed.clips.min() >= 0
    assert mixed.clips.max() <= 255
    assert torch.equal(clips, before)
    check_targets(mixed, labels)


@given(sizes, alphas, places)
def test_cutmix_lays_one_box_over_all_frames(size, alpha, place):
    clips, labels = numbered_clips(size)
    mixed = Objective(cutmix=alpha, seed=3).mix(clips, labels, place)
    is_other = mixed.clips != clips
    assert torch.equal(mixed.clips[is_other], clips.roll(1, 0)[is_other])
    assert (is_other == is_other[:1, :1, :, :, :1]).all()  # alike in every clip, frame and color
    box = is_other[0, 0, :, :, 0]
    assert box.sum() == box.any(1).sum() * box.any(0).sum()  # a rectangle
    assert 1 - mixed.share == pytest.approx(box.double().mean().item())
    check_targets(replace_labels(mixed, labels % CLASSES), labels % CLASSES)


def replace_labels(mixed, labels):
    return mixed._replace(labels=labels, others=labels.roll(1))


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 1000))
def test_box_is_in_the_picture_and_no_larger_than_its_share(height, width, share, seed):
    top, bottom, left, right = draw_box(height, width, share, np.random.default_rng(seed))
    assert 0 <= top <= bottom <= height
    assert 0 <= left <= right <= width
    assert (bottom - top) * (right - left) <= (1 - share) * height * width + 1e-6


def test_boxes_are_anywhere_and_as_large_as_their_share():
    boxes = [draw_box(100, 80, 0.75, np.random.default_rng(seed)) for seed in range(400)]
    assert max(bottom - top for top, bottom, _, _ in boxes) == 50
    assert {0} < {top for top, *_ in boxes}
    assert max(right for *_, right in boxes) == 80
    whole = [box for box in boxes if box[1] - box[0] == 50 and box[3] - box[2] == 40]
    assert len(whole) == pytest.approx(400 / 4, abs=30)  # where the middle is in the inner half of both sides


def test_with_both_either_comes_half_the_time():
    clips, labels = numbered_clips((3, 1, 8, 8))
    both = Objective(mixup=0.8, cutmix=1.0, seed=1)
    kinds = [both.mix(clips, labels, (step, 0, 1)).clips.is_floating_point() for step in range(300)]
    assert 120 < sum(kinds) < 180
    assert all(Objective(mixup=1.0).mix(clips, labels, (s, 0, 1)).clips.is_floating_point() for s in range(9))


def test_draws_are_of_seed_step_process_and_part():
    clips, labels = make_clips((4, 1, 5, 5))

    def share(seed, *place):
        return Objective(mixup=1.0, seed=seed).mix(clips, labels, place).share

    assert share(0, 7, 1, 1) == share(0, 7, 1, 1)
    assert len({share(0, 7, 1, 1), share(1, 7, 1, 1), share(0, 8, 1, 1), share(0, 7, 2, 1), share(0, 7, 1, 2)}) == 5
    shares = [share(0, step, 0, 1) for step in range(1000)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.03)  # Beta(1, 1) is uniform
    assert np.var(shares) == pytest.approx(1 / 12, rel=0.1)


def test_off_nothing_is_drawn_or_computed():
    clips, labels = make_clips((4, 1, 5, 5))
    states = torch.get_rng_state(), str(np.random.get_state())
    mixed = Objective().mix(clips, labels, (0, 0, 1))
    assert mixed.clips is clips
    assert mixed.main_labels is mixed.targets(CLASSES) is labels
    logits = torch.randn(4, CLASSES, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Objective().loss(logits, mixed), cross_entropy(logits, labels, reduction="sum"))
    Objective(mixup=0.2, cutmix=1.0).mix(clips, labels, (0, 0, 1))  # by numbers of its own
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == str(np.random.get_state())


@given(st.floats(0, 0.9), st.floats(0, 1), st.booleans(), st.booleans())
def test_loss_is_the_formula(smoothing, share, is_weighted, is_mixed):
    _, labels = make_clips((5, 1, 1, 1))
    logits = torch.randn(5, CLASSES, generator=torch.Generator().manual_seed(1), dtype=torch.float64).float()
    weights = torch.tensor([0.5, 2.0, 0.0, 1.5]) if is_weighted else None
    mixed = Mixed(torch.empty(0), labels, labels.roll(1), share) if is_mixed else Mixed(torch.empty(0), labels)
    logs, expected = logits.double().log_softmax(1), 0.0
    for row, (own, other) in enumerate(zip(labels.tolist(), labels.roll(1).tolist(), strict=True)):
        for label in range(CLASSES):
            target = (share * (label == own) + (1 - share) * (label == other)) if is_mixed else float(label == own)
            target = (1 - smoothing) * target + smoothing / CLASSES
            expected -= (1 if weights is None else weights[label].item()) * target * logs[row, label].item()
    loss = Objective(smoothing, weights).loss(logits, mixed)
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


class Flat(nn.Module):
    """The smallest network for clips."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(2 * 3 * 4 * 4, CLASSES)

    def forward(self, clips):
        return self.fc(clips.flatten(1))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_learner_minimizes_it(precision):
    clips, labels = make_clips((6, 2, 4, 4))
    objective = Objective(0.1, torch.tensor([1.0, 2.0, 0.5, 1.0]), mixup=0.4, cutmix=1.0, seed=2)
    learner = Learner(
        Flat(),
        Optimization(lr=0.01),
        lambda _: 1.0,
        Compute(accumulate=2, precision=precision, ema=0.9),
        None,
        objective,
    )
    for step in range(4):
        network = Flat()
        network.load_state_dict(learner.network.state_dict())
        expected, right = torch.zeros(()), 0
        for part, rows in enumerate((slice(3), slice(3, 6)), start=1):
            mixed = objective.mix(clips[rows], labels[rows], (step, 0, part))
            logits = network(normalize(mixed.clips.clone()))
            expected += objective.loss(logits, mixed).detach() / 6
            right += (logits.argmax(1) == mixed.main_labels).sum().item()
        parts = [Batch(clips[:3], labels[:3]), Batch(clips[3:], labels[3:])]
        result = learner.step(parts)
        assert result.loss.item() == pytest.approx(expected.item(), rel=0.05 if precision == "bf16" else 1e-5)
        if precision == "fp32":
            assert learner.take_score().correct == right
    assert all(parameter.isfinite().all() for parameter in learner.network.parameters())


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (Augmentation, {"mixup": 0}, r"augmentation\.mixup: got 0, expected a number above 0, at most 100, or None"),
        (Augmentation, {"cutmix": -1.0}, r"augmentation\.cutmix: got -1\.0"),
        (Augmentation, {"mixup": "0.2"}, r"augmentation\.mixup: got '0\.2', expected a finite number or None"),
        (Optimization, {"label_smoothing": 1.0}, r"label_smoothing: got 1\.0, expected at least 0 and below 1"),
        (Optimization, {"class_weights": ""}, r"class_weights: got '', expected balanced, a file, or None"),
    ],
)
def test_impossible_options(make, options, message):
    with pytest.raises(InputError, match=message):
        make(**options)


def test_of_a_recipe():
    assert all(Objective.of(recipe, None) == Objective(seed=recipe.seed) for recipe in RECIPES.values())
    recipe = RECIPES["k400-8f"]
    recipe = replace(recipe, augmentation=replace(recipe.augmentation, mixup=0.2, cutmix=1.0), seed=4)
    recipe = replace(recipe, optimization=replace(recipe.optimization, label_smoothing=0.1))
    assert Objective.of(recipe, None) == Objective(0.1, None, 0.2, 1.0, 4)


def test_a_compiled_network_is_compiled_once(monkeypatch):
    """Mixed clips, of bytes or not, look to it like others."""
    graphs = []
    compile_ = torch.compile

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", lambda module: compile_(module, backend=backend))
    clips, labels = make_clips((6, 2, 4, 4))
    compute, objective = Compute(compile=True), Objective(mixup=1.0, cutmix=1.0)
    learner = Learner(Flat(), Optimization(lr=0.01), lambda _: 1.0, compute, objective=objective)
    kinds = {objective.mix(clips, labels, (step, 0, 1)).clips.dtype for step in range(6)}
    for _ in range(6):
        learner.step([Batch(clips, labels)])
    assert kinds == {torch.uint8, torch.float32}
    assert len(graphs) == 1
