import numpy as np
import pytest
import torch

from train.render import CLASS_NAMES
from train.transforms import center_crop, mirrored_labels, normalise, random_crop, random_flip, resize_short_side


def coordinates(T, H, W):
    """Frames (T, H, W, 3) whose pixels hold their own t, y and x."""
    t, y, x = torch.meshgrid(torch.arange(T), torch.arange(H), torch.arange(W), indexing="ij")
    return torch.stack([t, y, x], dim=-1).to(torch.uint8)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("Pushing something from left to right", "Pushing something from right to left"), (1, 0)),
        (("turn LEFT", "stand", "Turn right"), (2, 1, 0)),
        (("move_left", "move_right", "moving leftwards", "moving rightwards"), (1, 0, 3, 2)),
        (("turning the camera left", "turning the camera up"), (None, 1)),
        (("left to right", "from right"), (None, None)),
        (("putting something upright", "copyright", "leftover"), (0, 1, 2)),
        (("spin clockwise", "spin counterclockwise"), (1, 0)),
        (("spin clockwise", "spin anti-clockwise", "swing counter-clockwise"), (1, 0, None)),
        (CLASS_NAMES["order"], (0, 1, 2, 3, 4, 5)),
        (CLASS_NAMES["motion"], (1, 0, 2, 3, 5, 4, 6, 7)),
    ],
)
def test_mirrored_labels(names, expected):
    assert mirrored_labels(names) == expected


def test_flip_swaps_the_label_with_the_picture():
    frames, mirrored = coordinates(4, 6, 8), (1, 0, None, 3)
    rng = np.random.default_rng(0)
    outcomes: dict[int, list[int]] = {label: [] for label in range(4)}
    for label in outcomes:
        for _ in range(200):
            flipped, new_label = random_flip(frames, label, mirrored, rng)
            is_flipped = not torch.equal(flipped, frames)
            assert torch.equal(flipped, frames.flip(2) if is_flipped else frames)
            assert new_label == (mirrored[label] if is_flipped else label)
            outcomes[label].append(is_flipped)
    assert not any(outcomes[2])
    for label in (0, 1, 3):
        assert 70 < sum(outcomes[label]) < 130


def test_one_crop_for_the_whole_clip():
    frames = coordinates(5, 20, 30)
    rng = np.random.default_rng(0)
    corners = set()
    for _ in range(300):
        clip = random_crop(frames, 16, rng)
        assert clip.shape == (5, 16, 16, 3)
        top, left = clip[0, 0, 0, 1:].tolist()
        assert torch.equal(clip, frames[:, top : top + 16, left : left + 16])
        corners.add((top, left))
    assert {top for top, _ in corners} == set(range(5))
    assert {left for _, left in corners} == set(range(15))


def test_center_crop():
    assert center_crop(coordinates(2, 20, 31), 16)[1, 0, 0].tolist() == [1, 2, 7]


@pytest.mark.parametrize(("size", "expected"), [((48, 64), (24, 32)), ((64, 48), (32, 24)), ((24, 99), (24, 99))])
def test_resize_keeps_proportions(size, expected):
    ramp = torch.linspace(0, 255, size[1]).to(torch.uint8)[None, None, :, None].expand(2, size[0], size[1], 3)
    resized = resize_short_side(ramp, 24)
    assert resized.dtype == torch.uint8
    assert resized.shape == (2, *expected, 3)
    exact = (torch.arange(expected[1]) + 0.5) * size[1] / expected[1] - 0.5
    np.testing.assert_allclose(resized[1, 7, :, 2], exact * 255 / (size[1] - 1), atol=3)


def test_normalise():
    clips = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5, 3), dtype=np.uint8))
    result = normalise(clips)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = np.moveaxis((clips.numpy() / 255 - mean) / std, -1, 2)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
    assert result.dtype == torch.float32
    assert result.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
