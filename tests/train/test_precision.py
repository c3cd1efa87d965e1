import pytest
import torch
from torch import nn

from tam_triton.clips import normalize
from train.precision import computing, logits_of

CPU = torch.device("cpu")


class Recording(nn.Module):
    """A classifier of clips that keeps what it was given, and in which numbers it answered."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(2 * 3 * 4 * 5, 8)

    def forward(self, frames):
        self.frames, self.answered = frames, self.fc(frames.flatten(1))
        return self.answered


@pytest.fixture
def clips():
    return torch.randint(0, 256, (3, 2, 4, 5, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_logits_are_float32_of_the_numbers_asked_for(clips, precision, dtype):
    network = Recording()
    logits = logits_of(network, clips, CPU, precision)
    assert (network.answered.dtype, logits.dtype) == (dtype, torch.float32)
    assert torch.equal(logits, network.answered.float())
    assert torch.equal(network.frames, normalize(clips))


@pytest.mark.parametrize("channels_last", [True, False])
def test_frames_are_as_decoded_or_contiguous(clips, channels_last):
    network = Recording()
    logits = logits_of(network, clips, CPU, "fp32", channels_last)
    assert network.frames.is_contiguous() is not channels_last
    assert torch.equal(logits, network.fc(normalize(clips).flatten(1)))


@pytest.mark.parametrize(("deterministic", "holds"), [(None, True), (True, True), (False, False)])
def test_the_same_bits_by_default_on_the_cpu(deterministic, holds):
    threads = torch.get_num_threads()
    with computing(CPU, deterministic=deterministic):
        assert torch.are_deterministic_algorithms_enabled() is holds
    assert not torch.are_deterministic_algorithms_enabled()
    with computing(torch.device("cuda")):
        assert not torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == threads
