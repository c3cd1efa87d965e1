"""Networks on streams: what each new frame gives is what the window gives, and costs what is said."""

import copy
import re
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet18

import tam_triton
from tam_triton.nets import create_model
from tam_triton.streaming import NetworkStream
from tests.library.test_classifier import NAMES, trained
from tests.support.pages import run_page
from tests.support.video_files import striped_frames
from train.recipes import RECIPES

T, STREAMS = 4, 2


def network(system, backbone="resnet18", **options):
    torch.manual_seed(0)
    options = {"num_classes": 5, "num_segments": T, "weights": None, **options}
    model = create_model(system, backbone=backbone, **options).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    assert isinstance(model.fc, nn.Linear)
    nn.init.normal_(model.fc.weight)
    return model


def video(frames, streams=STREAMS):
    return torch.randn(frames, streams, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def of_window(model, frames, end):
    return model(frames[end - T + 1 : end + 1].transpose(0, 1))


# A temporal module in front of a layer, behind a BatchNorm (which no graph has apart), as its own convolution, over all
# pixels; no temporal module; blocks without one below.
@pytest.mark.parametrize("system", ["tanet", "tsm", "tanet_d", "i3d", "nl_c2d", "c2d"])
def test_all_frames_computed_again_give_what_the_window_gives(system):
    model, frames = network(system), video(T + 2)
    stream = NetworkStream(model)
    assert all(stream(frame) is None for frame in frames[: T - 1])
    for end in range(T - 1, len(frames)):
        torch.testing.assert_close(stream(frames[end]), of_window(model, frames, end), rtol=1e-4, atol=1e-4)
    stream.reset()
    other = video(T, 1)[..., :30]
    *_, logits = [stream(frame) for frame in other]
    torch.testing.assert_close(logits, of_window(model, other, T - 1), rtol=1e-4, atol=1e-4)


def test_without_temporal_modules_and_behind_them_a_frame_costs_a_frame():
    frames = video(T + 1, 1)
    for system, recompute, share in (
        ("c2d", None, 1 / T),
        ("tanet", 1, 1 / T),
        ("tanet", 2, 2 / T),
        ("tanet", None, 1),
    ):
        model = network(system)
        stream = NetworkStream(model, recompute)
        for frame in frames[:T]:
            stream(frame)
        with FlopCounterMode(display=False) as counted:
            stream(frames[T])
        with FlopCounterMode(display=False) as whole, torch.no_grad():
            model(frames[1:].transpose(0, 1))
        # The stem is not computed again, one frame beside is aggregated, and the small branches see the window.
        assert share * 0.8 < counted.get_total_flops() / whole.get_total_flops() < share * 1.1
        assert stream.frames_computed["conv1"] == 1
        assert (
            stream.frames_computed["layer4.1.conv2"] == stream.recompute == (recompute or (1 if system == "c2d" else T))
        )
    assert "layers by frames at each new one: 6 of 1, 55 of 4" in str(stream)


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_of_fewer_frames_what_is_said(kernel_size):
    """By hand, for one TAM: the last r outputs are exact where its input is; older ones are as they were."""
    model, frames, r = network("tanet", stages=("res5",), kernel_size=kernel_size), video(T + 3), 2
    model.layer4[1] = nn.Identity()
    model.layer4[0].conv2.weight.data.mul_(10)
    stream = NetworkStream(model, r)
    kept = None
    for end, frame in enumerate(frames):
        logits = stream(frame)
        if end < T - 1:
            continue
        window = frames[end - T + 1 : end + 1].transpose(0, 1)
        with torch.no_grad():
            exact = model.frame_logits(window.flatten(0, 1)).unflatten(0, (-1, T))
        kept = exact if kept is None else torch.cat([kept[:, 1 : T - r + 1], exact[:, T - r :]], 1)
        torch.testing.assert_close(logits, kept.mean(1), rtol=1e-4, atol=1e-4)
    assert (kept - exact).abs().max() > 1e-3 * exact.abs().max()  # and so it is seen that it is no other rule


class Mixes(nn.Module):
    def forward(self, x):
        return x + x.mean(0, keepdim=True)


@pytest.mark.parametrize(("place", "recompute"), [("layer1", None), ("layer1", 1), ("layer4", 1)])
def test_a_layer_that_mixes_frames_is_noticed(place, recompute):
    model = network("tanet", stages=("res4",))
    setattr(model, place, nn.Sequential(getattr(model, place), Mixes()))
    stream, frames = NetworkStream(model, recompute), video(T)
    for frame in frames[:-1]:
        stream(frame)
    with pytest.raises(ValueError, match="does more than look at each frame for itself"):
        stream(frames[-1])
    assert stream.num_seen == T - 1


def test_a_tam_with_a_forward_of_its_own_is_called():
    model, frames = network("tanet"), video(T + 1)
    model.layer1[0].tam.register_forward_hook(lambda module, inputs, output: 2 * output)
    stream = NetworkStream(model, T)
    for frame in frames[:-1]:
        stream(frame)
    torch.testing.assert_close(stream(frames[-1]), of_window(model, frames, T), rtol=1e-4, atol=1e-4)
    few = NetworkStream(model, 1)
    assert [few(frame) for frame in frames][-1] is not None


def test_a_frame_that_failed_may_be_given_again():
    """In any part of the network, in the first window and behind it; and all frames may have one memory."""
    model, frames = network("tanet"), video(T + 4)
    stream, other = NetworkStream(model, 2), NetworkStream(model, 2)
    memory = torch.empty_like(frames[0])

    def fail(*_):
        raise MemoryError

    for number, frame in enumerate(frames):
        layer = (model.conv1, model.layer2[0].conv2, model.layer4[1].conv2, model.fc)[number % 4]
        if number >= T - 1 or layer is model.conv1:
            hook = layer.register_forward_pre_hook(fail)
            with pytest.raises(MemoryError):
                stream(frame)
            hook.remove()
        logits, expected = stream(memory.copy_(frame)), other(frame)
        assert stream.num_seen == number + 1
        torch.testing.assert_close(logits, expected, rtol=0, atol=0)


def test_another_network_than_before_is_noticed():
    model, frames = network("tanet"), video(2 * T)
    stream = NetworkStream(model)
    for frame in frames[:T]:
        stream(frame)
    copied = copy.deepcopy(stream)
    with torch.no_grad():
        model.layer1[0].conv1.weight.mul_(2)
    for _ in range(2):
        with pytest.raises(ValueError, match=re.escape("its weights are others than at the frame before")):
            stream(frames[T])
    assert copied(frames[T]) is not None
    stream.reset()
    *_, logits = [stream(frame) for frame in frames[:T]]
    torch.testing.assert_close(logits, of_window(model, frames, T - 1), rtol=1e-4, atol=1e-4)
    model.reset_classifier(7)
    stream.reset()
    with pytest.raises(ValueError, match="layers of it were replaced since the stream was made"):
        stream(frames[0])


def test_refuses():
    model = network("tanet")
    with pytest.raises(TypeError, match="network: got ResNet, expected a VideoNetwork"):
        NetworkStream(resnet18())
    for recompute, message in ((0, "recompute: got 0"), (T + 1, "recompute: got 5, expected at most the window's 4")):
        with pytest.raises(ValueError, match=re.escape(message)):
            NetworkStream(model, recompute)
    stream = NetworkStream(model)
    with pytest.raises(ValueError, match=re.escape("frame: got shape (3, 32, 32), expected (N, 3, H, W)")):
        stream(video(1)[0, 0])
    stream(video(1)[0])
    with pytest.raises(ValueError, match=re.escape("as before; reset() begins a new stream")):
        stream(video(1, 1)[0])
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(ValueError, match=re.escape("autocast: got torch.bfloat16, expected None as before")),
    ):
        stream(video(1)[0])
    with pytest.raises(ValueError, match="got it in training"):
        NetworkStream(model.train())(video(1)[0])
    hooked = network("c2d")
    hooked.register_forward_hook(lambda *_: None)
    with pytest.raises(TypeError, match="with hooks or a forward of its own"):
        NetworkStream(hooked)


@pytest.mark.parametrize(("kind", "every"), [("dense", None), ("segments", 3)])
def test_a_trained_network_predicts_from_a_stream_as_from_the_windows_frames(tmp_path, kind, every):
    demo = RECIPES["demo"]
    recipe = replace(demo, sampling=replace(demo.sampling, kind=kind, reach=16))
    model = tam_triton.load(trained(tmp_path / "best.pt", recipe))
    stream, span = model.stream(every=every), 8 * (every or 2)
    frames = torch.from_numpy(striped_frames(30))
    found = [stream(frame, top=3) for frame in frames]
    seen = {end: predictions for end, predictions in enumerate(found) if predictions is not None}
    first = 7 * stream.every + stream._first
    assert list(seen) == list(range(first, 30, stream.every))
    for end, predictions in seen.items():
        start = end - first
        if start + span <= 30:
            expected = model.predict(frames[start : start + span], top=3)
            assert [pair.class_name for pair in predictions] == [pair.class_name for pair in expected]
            assert [p.probability for p in predictions] == pytest.approx([p.probability for p in expected], rel=1e-4)
    assert set(NAMES) == {pair.class_name for pair in seen[first]}


def test_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/own/checkpoints").mkdir(parents=True)
    trained(tmp_path / "runs/own/checkpoints/best.pt", RECIPES["demo"])
    run_page("docs/streaming.md", {"frames": torch.from_numpy(striped_frames(32))})
    *classes, computed = capsys.readouterr().out.split("\n")[:-1]
    assert len(classes) == 1
    assert classes[0] in NAMES
    assert computed == "2"


def test_a_stream_of_a_trained_network_refuses(tmp_path):
    model = tam_triton.load(trained(tmp_path / "best.pt", RECIPES["demo"]))
    stream = model.stream(every=2)
    narrow = torch.zeros(8, 8, 3, dtype=torch.uint8)
    stream(narrow)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream.stream, "_once", None)
        with pytest.raises(TypeError):
            stream(narrow)
    assert stream.stream.num_seen == 0
    stream(narrow)  # the same once more, which is taken
    assert stream.stream.num_seen == 1
    with pytest.raises(ValueError, match="every: got None, expected a number of frames: this network saw whole videos"):
        model.stream()
    stream = model.stream(every=1)
    with pytest.raises(
        ValueError, match=re.escape("frame: got torch.float32 (8, 8, 3), expected torch.uint8 (H, W, 3)")
    ):
        stream(torch.zeros(8, 8, 3))
