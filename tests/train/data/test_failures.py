"""How many files that cannot be read a run stands, and who has to know of them."""

import pytest
import torch

from train.data.batches import Batch, FailureTally
from train.data.dataset import Failure
from train.errors import InputError


def batch_with(count, failures=(), missing=()):
    return Batch(torch.zeros(count, 1), torch.zeros(count, dtype=torch.int64), failures, missing)


def test_tally_ends_a_run_early_on_mostly_bad_data():
    tally = FailureTally(num_entries=100_000, max_bad_share=0.02)
    for i in range(40):  # 20 bad files among 440 samples: more than 2 %, but 440 are few
        tally.add(batch_with(10, (Failure(f"{i % 20}.mp4", "empty"),)))
    with pytest.raises(InputError, match=r"21 of 451, where max_bad_share allows 0\.02; the last is 20\.mp4: empty"):
        tally.add(batch_with(10, (Failure("20.mp4", "empty"),)))
    tally = FailureTally(num_entries=100_000, max_bad_share=0.02)
    tally.add(batch_with(1999))
    for i in range(40):
        tally.add(batch_with(0, (Failure(f"{i}.mp4", "empty"),)))
    with pytest.raises(InputError, match=r"41 of 2040"):
        tally.add(batch_with(0, (Failure("40.mp4", "empty"),)))


def test_tally_counts_every_file_once_and_lets_the_allowed_share_pass():
    tally = FailureTally(num_entries=8, max_bad_share=0.25)
    for _ in range(50):
        tally.add(batch_with(3, (Failure("a.mp4", "empty"), Failure("b.mp4", "is absent"))))
    assert tally.counts == {Failure("a.mp4", "empty"): 50, Failure("b.mp4", "is absent"): 50}
    with pytest.raises(InputError, match=r"3 of 8, where max_bad_share allows 0\.25; the last is c\.mp4: cut"):
        tally.add(batch_with(3, (Failure("c.mp4", "cut"),)))


def test_sample_without_a_substitute_ends_the_run():
    with pytest.raises(InputError, match=r"too many training videos cannot be read: 1 of 3"):
        FailureTally(1000, 0.5).add(batch_with(2, (Failure("a.mp4", "empty"),), missing=(4,)))
