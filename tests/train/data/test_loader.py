import pytest
import torch

from train.data.loader import Loading
from train.errors import InputError


@pytest.mark.parametrize(
    ("asked", "device", "pins"),
    [
        (None, "cuda", True),
        (False, "cuda", False),
        (True, "cuda", True),
        (None, "cpu", False),
        (False, "cpu", False),
        (True, "cpu", True),
    ],
)
def test_page_locked_memory_is_as_asked_or_by_device(asked, device, pins, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert Loading(pin_memory=asked).for_device(torch.device(device)).pins is pins


def test_page_locked_memory_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"loading\.pin_memory: got True, but torch finds no GPU"):
        Loading(pin_memory=True).for_device(torch.device("cpu"))
