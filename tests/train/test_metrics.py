import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tam_triton.clips import normalize
from train.data.batches import Batch, FailureTally
from train.data.dataset import Failure
from train.demo.side_by_side import train_side_by_side
from train.errors import InputError
from train.fit.learner import Learner
from train.metrics import Tally, evaluate
from train.recipe import Optimization


class Linear(nn.Module):
    """The smallest network for clips; counts how often it ran in each mode."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(2 * 3 * 4 * 4, 8)
        self.ran = {True: 0, False: 0}

    def forward(self, clips):
        self.ran[self.training] += 1
        return self.fc(clips.flatten(1))


def make_batch(seed, count=5, failures=(), missing=()):
    generator = torch.Generator().manual_seed(seed)
    clips = torch.randint(0, 256, (count, 2, 4, 4, 3), generator=generator, dtype=torch.uint8)
    return Batch(clips, torch.randint(0, 8, (count,), generator=generator), failures, missing)


def test_score_counts_every_clip_once():
    network = Linear().train()
    batches = [make_batch(0, 5), make_batch(1, 2), make_batch(2, 0)]
    score = evaluate(network, batches)
    logits = torch.cat([network(normalize(batch.clips)) for batch in batches[:2]])
    labels = torch.cat([batch.labels for batch in batches])
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    assert score.total == 7
    assert score.correct == int((ranks == 0).sum())
    assert score.correct_top5 == int((ranks < 5).sum())
    assert 0 < score.correct_top5 < 7
    assert score.loss == pytest.approx(cross_entropy(logits, labels).item(), rel=1e-5)
    assert (score.accuracy, score.accuracy_top5) == (score.correct / 7, score.correct_top5 / 7)
    assert network.training
    assert network.ran[False] == 2


def test_fewer_classes_than_five():
    tally = Tally()
    tally.add(torch.eye(3), torch.tensor([0, 1, 0]))
    assert (tally.score().correct, tally.score().correct_top5) == (2, 3)


def test_what_is_no_number_is_wrong():
    """As of a network whose half precision overflows in evaluation; the loss says so, too."""
    tally, nan = Tally(), float("nan")
    tally.add(torch.tensor([[nan, nan, nan], [0.0, nan, 0.0], [nan, 0.0, 1.0]]), torch.tensor([0, 1, 2]))
    correct, correct_top5, total, loss = tally.sums().tolist()
    assert (correct, correct_top5, total) == (0, 1, 3)
    assert math.isnan(loss)


def test_sums_of_parts_are_the_sums_of_the_whole():
    """To the bit: what the processes of a run add up, in any order, and what a checkpoint carries over."""
    generator = torch.Generator().manual_seed(0)
    logits, labels = 9 * torch.randn(900, 8, generator=generator), torch.randint(8, (900,), generator=generator)
    whole, first, second = Tally(), Tally(), Tally()
    whole.add(logits, labels)
    first.add(logits[:401], labels[:401])
    for start in reversed(range(401, 900)):
        second.add(logits[start : start + 1], labels[start : start + 1])
    assert torch.equal(first.sums() + second.sums() + Tally().sums(), whole.sums())
    going_on = Tally(first.sums())
    going_on.add(logits[401:], labels[401:])
    assert torch.equal(going_on.sums(), whole.sums())
    assert whole.score().loss == pytest.approx(cross_entropy(logits.double(), labels).item(), abs=1e-6)


def test_no_clip_to_score():
    with pytest.raises(InputError, match="none of the videos can be read"):
        evaluate(Linear(), [make_batch(0, 0)])


def train(names, batches):
    learners = {name: Learner(Linear(), Optimization(lr=0.01, groups=False), lambda _: 1.0) for name in names}
    results: list = []
    tally = FailureTally(100, max_bad_share=0.5)
    train_side_by_side(learners, batches, 2, len(batches) // 2, [make_batch(100)], results.append, tally, "test")
    return learners, results, tally


def test_networks_side_by_side_learn_as_if_alone():
    batches = [make_batch(0)] * 6
    together, results, _ = train(["a", "b"], batches)
    alone, _, _ = train(["b"], batches)
    for name in together:
        for first, second in zip(together[name].network.parameters(), alone["b"].network.parameters(), strict=True):
            assert torch.equal(first, second)
    assert [(result.epoch, result.network) for result in results] == [(e, n) for e in (1, 2, 3) for n in "ab"]
    assert all(result.train.total == 10 and result.val.total == 5 for result in results)
    assert results[-1].train.loss < results[0].train.loss


def test_failures_are_counted():
    first, second = Failure("a.mp4", "is empty"), Failure("b.mp4", "is a directory")
    batches = [make_batch(0, failures=(first,)), make_batch(1, failures=(second, first))]
    assert train(["a"], batches)[2].counts == {first: 2, second: 1}


def test_too_many_bad_videos_end_the_run():
    failure = Failure("a.mp4", "is empty")
    with pytest.raises(InputError, match=r"too many .* the last is a\.mp4: is empty"):
        train(["a"], [make_batch(0), make_batch(1, failures=(failure,), missing=(3,))])
