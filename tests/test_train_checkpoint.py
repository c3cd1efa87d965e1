import os

import pytest
import torch

from train.checkpoint import TrainedNetwork, load_checkpoint, save_checkpoint
from train.dataset import ClipFormat
from train.errors import InputError
from train.networks import NetworkConfig, build_network

NAMES = ("up", "down", "left")


@pytest.fixture(params=["TANet", "C2D"])
def trained(request):
    config = NetworkConfig(request.param, num_classes=3, num_segments=4)
    torch.manual_seed(7)
    network = build_network(config)
    network(torch.randn(2, 4, 3, 32, 32))  # moves the running statistics
    return TrainedNetwork(network.eval(), config, NAMES, ClipFormat(num_segments=4, short_side=40, crop=32))


def test_round_trip(tmp_path, trained):
    save_checkpoint(tmp_path / "net.pt", trained)
    loaded = load_checkpoint(tmp_path / "net.pt")
    assert (loaded.config, loaded.class_names, loaded.clip_format) == (trained.config, NAMES, trained.clip_format)
    clips = torch.randn(2, 4, 3, 32, 32)
    assert not loaded.network.training
    assert torch.equal(loaded.network(clips), trained.network(clips))
    assert [file.name for file in tmp_path.iterdir()] == ["net.pt"]


def test_failed_save_keeps_the_old_checkpoint(tmp_path, trained, monkeypatch):
    path = tmp_path / "net.pt"
    save_checkpoint(path, trained)
    before = path.read_bytes()

    def disk_full(content, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, trained)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["net.pt"]


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_truncated(tmp_path, trained, share):
    path = tmp_path / "net.pt"
    save_checkpoint(path, trained)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(InputError, match=r"net\.pt: is not a checkpoint, or a damaged one"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [{"state_dict": {}}, {"format": "another/1"}, [1, 2], torch.zeros(3)])
def test_written_by_something_else(tmp_path, content):
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(InputError, match=r"net\.pt: is not a checkpoint of this program"):
        load_checkpoint(tmp_path / "net.pt")


def test_not_a_checkpoint(tmp_path):
    (tmp_path / "video.mp4").write_bytes(b"\0\0\0\x20ftypisom" * 50)
    with pytest.raises(InputError, match="damaged one"):
        load_checkpoint(tmp_path / "video.mp4")
    with pytest.raises(InputError, match="no such file"):
        load_checkpoint(tmp_path / "absent.pt")
    with pytest.raises(InputError, match="is a directory"):
        load_checkpoint(tmp_path)


class Harmful:
    """Unpickled, it would make a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_nothing_in_it_is_executed(tmp_path):
    torch.save({"format": "tam_triton/train/1", "network": Harmful(str(tmp_path / "harm"))}, tmp_path / "net.pt")
    with pytest.raises(InputError, match="damaged one"):
        load_checkpoint(tmp_path / "net.pt")
    assert [file.name for file in tmp_path.iterdir()] == ["net.pt"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("network", {"kind": "TANet", "num_classes": 5, "num_segments": 4, "dropout": 0.0}, "does not fit"),
        ("network", {"kind": "TANet", "num_classes": 3, "num_segments": 8, "dropout": 0.0}, "does not fit"),
        ("network", {"kind": "I3D", "num_classes": 3, "num_segments": 4, "dropout": 0.0}, "does not fit"),
        ("network", {"depth": 50}, "does not fit"),
        ("clip_format", {"num_segments": 8, "short_side": 40, "crop": 32}, "contradicts itself"),
        ("clip_format", {"num_segments": 4, "short_side": 40, "crop": 41}, "a crop within the short side"),
        ("class_names", ["up", "down"], "contradicts itself"),
        ("state_dict", {}, "Missing key"),
    ],
)
def test_description_that_does_not_fit(tmp_path, trained, key, value, message):
    path = tmp_path / "net.pt"
    save_checkpoint(path, trained)
    content = torch.load(path, weights_only=True)
    torch.save({**content, key: value}, path)
    with pytest.raises(InputError, match=message) as caught:
        load_checkpoint(path)
    assert "net.pt" in str(caught.value)
    torch.save({name: part for name, part in content.items() if name != key}, path)
    with pytest.raises(InputError, match="does not fit"):
        load_checkpoint(path)


def test_both_networks_start_from_one_backbone():
    states = {}
    for kind in ("TANet", "C2D"):
        torch.manual_seed(0)
        states[kind] = build_network(NetworkConfig(kind, num_classes=6)).state_dict()
    assert sum(weight.numel() for name, weight in states["TANet"].items() if "tam" in name) > 20_000
    for name, weight in states["C2D"].items():
        assert torch.equal(weight, states["TANet"][name])
