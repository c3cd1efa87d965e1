"""Epochs in which every class has as many clips."""

from collections import Counter

import pytest

from train.data.batches import TrainingBatches

LABELS = [0] * 70 + [1] * 20 + [3] * 10  # of class 2 there is nothing


def test_balanced_epochs():
    batches = TrainingBatches(100, batch_size=20, epochs=30, seed=4, balance=LABELS)
    assert len(batches) == 150
    frequent: set[int] = set()
    more: Counter[int] = Counter()
    for epoch in range(30):
        keys = [key for i in range(5) for key in batches[5 * epoch + i]]
        counts = Counter(LABELS[key.index] for key in keys)
        assert sorted(counts.values()) == [33, 33, 34]
        assert counts.keys() == {0, 1, 3}
        more[max(counts, key=lambda label: counts[label])] += 1
        assert len(set(keys)) == 100  # no clip is there twice
        times = Counter(key.index for key in keys)
        assert {index for index in times if LABELS[index]} == set(range(70, 100))
        for label, per_video in ((0, {1}), (1, {1, 2}), (3, {3, 4})):
            assert {times[index] for index in times if LABELS[index] == label} == per_video
        for index, count in times.items():
            assert sorted(key.turn for key in keys if key.index == index) == list(range(count))
        frequent |= {index for index in times if LABELS[index] == 0}
    assert frequent == set(range(70))
    assert len(more) == 3
    assert batches[7] == TrainingBatches(100, 20, 30, seed=4, balance=LABELS)[7]
    halves = [TrainingBatches(100, 20, 30, 4, rank, 2, balance=LABELS)[7] for rank in range(2)]
    assert halves[0] + halves[1] == batches[7]
    with pytest.raises(ValueError, match="got 3 labels, expected one for each of 100"):
        TrainingBatches(100, 20, 30, 4, balance=[0, 1, 2])


def test_balance_of_more_classes_than_clips():
    batches = TrainingBatches(5, batch_size=5, epochs=2, seed=4, balance=[0, 1, 2, 3, 4])
    assert sorted(key.index for key in batches[0]) == [0, 1, 2, 3, 4]
