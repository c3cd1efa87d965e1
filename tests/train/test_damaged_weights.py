"""Flipped bits in a file of weights are found by each of its readers; torch itself loads them without a word."""

import hashlib
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.models import ResNet18_Weights, resnet18

from tam_triton.nets import c2d18, load_published
from tam_triton.nets.archive import read_checkpoint
from tests.train.test_checkpoint import make_trained, run_of
from train.__main__ import main
from train.checkpoint import RunCheckpoints, load_checkpoint, save_checkpoint
from train.data.entries import Entry, Split
from train.data.index import Checked, IndexWriter
from train.errors import InputError
from train.networks import build_network
from train.recipe import Model
from train.recipes import RECIPES


def flip_exponents(path):
    """Flip an exponent's bit in 1000 numbers of the largest tensor; returns the name of its part of the archive."""
    with zipfile.ZipFile(path) as archive:
        part = max(archive.infolist(), key=lambda part: part.file_size)
        whole = archive.read(part)
    content = path.read_bytes()
    place = content.index(whole)
    numbers = np.frombuffer(whole, np.uint32).copy()
    numbers[:1000] ^= 1 << 26
    path.unlink()  # under its other name a file stays what it is
    path.write_bytes(content[:place] + numbers.tobytes() + content[place + len(whole) :])
    assert torch.load(path, weights_only=True)
    return part.filename


@pytest.fixture(scope="module")
def trained():
    return make_trained()


@pytest.fixture
def checkpoint(trained, tmp_path):
    save_checkpoint(tmp_path / "net.pt", trained)
    return tmp_path / "net.pt"


def test_readers_of_a_training_checkpoint(checkpoint, capsys):
    load_checkpoint(checkpoint)
    part = flip_exponents(checkpoint)
    message = f"{checkpoint}: is damaged: the checksum of its part {part} is not that of what it holds"
    with pytest.raises(InputError) as caught:
        load_checkpoint(checkpoint)
    assert str(caught.value) == message
    for command in (["predict", str(checkpoint), "video.mp4"], ["test", str(checkpoint), "--data", "val.jsonl"]):
        assert main(command) == 1
        assert capsys.readouterr().err == f"error: {message}\n"


def test_resuming(trained, tmp_path):
    checkpoints = RunCheckpoints(tmp_path, keep=2)
    for step in (1, 2):
        checkpoints.save(step, trained, run_of(step, {"step": 1}), is_best=step == 1)
    newest, _ = (flip_exponents(path) for path in (checkpoints.by_age()[1], checkpoints.best))
    warnings: list[str] = []
    content = checkpoints.newest(warnings.append)
    assert content is not None
    assert content["run"]["learner"]["steps"] == 1
    assert [f"the checksum of its part {newest} is not" in text for text in warnings] == [True]
    put_right = load_checkpoint(checkpoints.best).network.state_dict()
    assert torch.equal(put_right["fc.weight"], trained.network.state_dict()["fc.weight"])


def test_published_weights(trained, tmp_path, monkeypatch, capsys):
    path = tmp_path / "published.pth"
    state = {f"module.base_model.{name}": tensor for name, tensor in trained.network.state_dict().items()}
    torch.save({"state_dict": state}, path)
    load_published(trained.network, path)
    before = {name: tensor.clone() for name, tensor in trained.network.state_dict().items()}
    part = flip_exponents(path)
    with pytest.raises(ValueError, match=rf"^checkpoint: .*published\.pth: is damaged: .* part {part} is not"):
        load_published(trained.network, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.network.state_dict().items())
    monkeypatch.setitem(RECIPES, "ssv2-8f", replace(trained.recipe, name="ssv2-8f"))
    (tmp_path / "a.mp4").touch()
    split = Split("val", (Entry(tmp_path / "a.mp4", 0),), trained.class_names)
    with IndexWriter(tmp_path / "val.jsonl", split, tmp_path, {}) as writer:
        writer.write(Checked(0, split.entries[0]))
    options = ["--recipe", "ssv2-8f", "--data", str(tmp_path / "val.jsonl"), "--out", str(tmp_path / "out")]
    assert main(["test", "--weights", str(path), *options]) == 1
    assert f"published.pth: is damaged: the checksum of its part {part}" in capsys.readouterr().err


def test_weights_of_torchvision(tmp_path, monkeypatch):
    """Loaded out of torch's cache, where the name of a file tells its hash."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / "unnamed.pth"
    torch.save(resnet18().state_dict(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    path = path.rename(path.with_name(f"resnet18-{digest}.pth"))
    weights = replace(ResNet18_Weights.IMAGENET1K_V1.value, url=f"https://example.org/models/{path.name}")
    monkeypatch.setattr(ResNet18_Weights.IMAGENET1K_V1, "_value_", weights)
    published = torch.load(path, weights_only=True)
    loaded = c2d18(num_classes=None, weights="IMAGENET1K_V1").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in published.items())
    flip_exponents(path)
    message = rf"weights: .*{path.name} is damaged: its SHA-256 begins with \w{{8}}, its name says {digest}; delete"
    with pytest.raises(ValueError, match=message):
        c2d18(weights="IMAGENET1K_V1")
    with pytest.raises(InputError, match=f"model: {message}"):
        build_network(Model(system="c2d", backbone="resnet18"), 3, 4)


@pytest.mark.parametrize("zipped", [True, False])
def test_files_without_checksums_load_as_they_are(tmp_path, zipped):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.arange(9.0)}, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    finally:
        torch.serialization.set_crc32_options(before)
    assert torch.equal(read_checkpoint(tmp_path / "w.pt")["w"], torch.arange(9.0))


def test_a_bit_anywhere_is_found_or_changes_nothing(tmp_path):
    """Headers and the archive's directory too: whatever loads is what was saved."""
    path, weights = tmp_path / "w.pt", torch.arange(40.0)
    torch.save({"w": weights}, path)
    whole = path.read_bytes()
    refused: list[str] = []
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        try:
            content = read_checkpoint(path)
        except ValueError as error:
            refused.append(str(error))
        else:
            assert list(content) == ["w"]
            assert torch.equal(content["w"], weights)
    assert len(refused) > 160  # the weights alone are so many bytes
    assert all(message.startswith(f"{path}: is ") for message in refused)
