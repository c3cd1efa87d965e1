import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from train.dataset import Batch, Failure
from train.errors import InputError
from train.loop import Learner, Optimisation, evaluate, fit
from train.transforms import normalise


class Linear(nn.Module):
    """The smallest network for clips; counts how often it ran in each mode."""

    def __init__(self, scale=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(2 * 3 * 4 * 4, 3)
        self.scale = scale
        self.ran = {True: 0, False: 0}

    def forward(self, clips):
        self.ran[self.training] += 1
        return self.layer(self.scale * clips.flatten(1))


def make_batch(seed, count=5, failures=(), missing=0):
    generator = torch.Generator().manual_seed(seed)
    clips = torch.randint(0, 256, (count, 2, 4, 4, 3), generator=generator, dtype=torch.uint8)
    return Batch(clips, torch.randint(0, 3, (count,), generator=generator), failures, missing)


@pytest.mark.parametrize(("scale", "is_clipped"), [(1.0, False), (30.0, True)])
def test_step_is_clipped_sgd_with_momentum_and_cosine(scale, is_clipped):
    optimisation, num_steps = Optimisation(lr=0.05, momentum=0.9, weight_decay=0.01, max_grad_norm=20.0), 4
    network = Linear(scale)
    weights: list[torch.Tensor] = [p.detach().clone() for p in network.parameters()]
    velocity = [torch.zeros_like(w) for w in weights]
    learner = Learner(network, optimisation, num_steps)
    saw_clipping = False
    for step in range(num_steps):
        batch = make_batch(step)
        clips = normalise(batch.clips)
        leaves = [w.clone().requires_grad_() for w in weights]
        loss = cross_entropy(scale * clips.flatten(1) @ leaves[0].T + leaves[1], batch.labels)
        grads = list(torch.autograd.grad(loss, leaves))
        norm = math.sqrt(sum(g.square().sum().item() for g in grads))
        saw_clipping |= norm > 20
        grads = [g * min(1, 20 / (norm + 1e-6)) for g in grads]
        lr = 0.05 * (1 + math.cos(math.pi * step / num_steps)) / 2
        assert learner.lr == pytest.approx(lr)
        velocity = [0.9 * v + g + 0.01 * w for v, g, w in zip(velocity, grads, weights, strict=True)]
        weights = [w - lr * v for w, v in zip(weights, velocity, strict=True)]
        learner.step(clips, batch.labels)
        for actual, expected in zip(network.parameters(), weights, strict=True):
            torch.testing.assert_close(actual.detach(), expected, rtol=1e-4, atol=1e-5)
    assert saw_clipping == is_clipped
    assert learner.lr == pytest.approx(0)


def test_score_counts_every_clip_once():
    network = Linear().train()
    batches = [make_batch(0, 5), make_batch(1, 2), make_batch(2, 0)]
    score = evaluate(network, batches)
    logits = torch.cat([network(normalise(batch.clips)) for batch in batches[:2]])
    labels = torch.cat([batch.labels for batch in batches])
    assert score.total == 7
    assert score.correct == int((logits.argmax(1) == labels).sum())
    assert score.loss == pytest.approx(cross_entropy(logits, labels).item(), rel=1e-5)
    assert score.accuracy == score.correct / 7
    assert network.training
    assert network.ran[False] == 2


def test_no_clip_to_score():
    with pytest.raises(InputError, match="none of the videos can be read"):
        evaluate(Linear(), [make_batch(0, 0)])


def run_fit(names, batches):
    learners = {name: Learner(Linear(), Optimisation(lr=0.01), len(batches)) for name in names}
    results: list = []
    failures = fit(learners, batches, 2, len(batches) // 2, [make_batch(100)], results.append, "test")
    return learners, results, failures


def test_networks_side_by_side_learn_as_if_alone():
    batches = [make_batch(0)] * 6
    together, results, _ = run_fit(["a", "b"], batches)
    alone, _, _ = run_fit(["b"], batches)
    for name in together:
        for first, second in zip(together[name].network.parameters(), alone["b"].network.parameters(), strict=True):
            assert torch.equal(first, second)
    assert [(result.epoch, result.network) for result in results] == [(e, n) for e in (1, 2, 3) for n in "ab"]
    assert all(result.train.total == 10 and result.val.total == 5 for result in results)
    assert results[-1].train.loss < results[0].train.loss


def test_failures_are_handed_on():
    first, second = Failure("a.mp4", "is empty"), Failure("b.mp4", "is a directory")
    batches = [make_batch(0, failures=(first,)), make_batch(1, failures=(second, first))]
    assert run_fit(["a"], batches)[2] == [first, second, first]


def test_too_many_bad_videos_end_the_run():
    failure = Failure("a.mp4", "is empty")
    with pytest.raises(InputError, match=r"too many videos cannot be read, 1 so far; one is a\.mp4: is empty"):
        run_fit(["a"], [make_batch(0), make_batch(1, failures=(failure,), missing=1)])
