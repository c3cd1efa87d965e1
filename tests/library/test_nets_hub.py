"""Networks through torch.hub's entry points, and as folders."""

import sys
from pathlib import Path

import pytest
import torch
from torchvision.models import resnet18

from tam_triton.nets import create_model
from tam_triton.nets.hub import from_pretrained, save_pretrained

ROOT = Path(__file__).parents[2]


def test_hubconf() -> None:
    network = torch.hub.load(str(ROOT), "tanet", source="local", backbone="resnet18", num_classes=6, num_segments=2)
    torch.testing.assert_close(network.fc.bias, torch.zeros(6))


def test_a_folder_is_the_network(tmp_path: Path) -> None:
    network = create_model("tanet", "resnet18", 6, 2, alpha=3).eval()
    save_pretrained(network, tmp_path / "new")
    twin = from_pretrained(tmp_path / "new")
    states = network.state_dict(), twin.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not twin.training
    (tmp_path / "new" / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="without a system"):
        from_pretrained(tmp_path / "new")
    (tmp_path / "new" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"without \['model.safetensors'\]"):
        from_pretrained(tmp_path / "new")


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="not made of names"):
        save_pretrained(resnet18(), tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match="pip install huggingface_hub"):
        from_pretrained("owner/name")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match="pip install safetensors"):
        save_pretrained(resnet18(), tmp_path)
