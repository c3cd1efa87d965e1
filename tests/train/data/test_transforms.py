from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from tam_triton.clips import normalize, resize, resize_short_side, slide_crops
from train.data.transforms import Augmentation, random_flip
from train.errors import InputError


def coordinates(T, H, W):
    """Frames (T, H, W, 3) whose pixels hold their own t, y and x."""
    t, y, x = torch.meshgrid(torch.arange(T), torch.arange(H), torch.arange(W), indexing="ij")
    return torch.stack([t, y, x], dim=-1).to(torch.uint8)


def smooth(T, H, W):
    """Frames (T, H, W, 3) of slow waves, the same picture at every size."""
    t, y, x = np.meshgrid(np.arange(T), (np.arange(H) + 0.5) / H, (np.arange(W) + 0.5) / W, indexing="ij")
    waves = [np.sin(7 * x + 3 * y + t), np.cos(9 * y - x), np.sin(5 * x * y)]
    return torch.from_numpy((127 + 120 * np.stack(waves, axis=-1)).astype(np.uint8))


@pytest.mark.parametrize(("probability", "share"), [(0.0, 0.0), (0.25, 0.25), (0.5, 0.5), (1.0, 1.0)])
def test_flip_swaps_the_label_with_the_picture(probability, share):
    frames, mirrored = coordinates(4, 6, 8), (1, 0, None, 3)
    rng = np.random.default_rng(0)
    outcomes: dict[int, list[bool]] = {label: [] for label in range(4)}
    for label in outcomes:
        for _ in range(200):
            flipped, new_label = random_flip(frames, label, mirrored, rng, probability)
            is_flipped = not torch.equal(flipped, frames)
            assert torch.equal(flipped, frames.flip(2) if is_flipped else frames)
            assert new_label == (mirrored[label] if is_flipped else label)
            outcomes[label].append(is_flipped)
    assert not any(outcomes[2])
    for label in (0, 1, 3):
        assert sum(outcomes[label]) == pytest.approx(200 * share, abs=30 if 0 < share < 1 else 0)


def published_crops(height, width):
    """Every (top, left, height, width) of TSN's multi-scale crop with 13 places, as often as it can be drawn."""
    crops: Counter[tuple[int, int, int, int]] = Counter()
    sides = [int(min(height, width) * scale) for scale in (1, 0.875, 0.75, 0.66)]
    for i, crop_height in enumerate(sides):
        for j, crop_width in enumerate(sides):
            if abs(i - j) > 1:
                continue
            h, w = (height - crop_height) // 4, (width - crop_width) // 4
            corners = [(0, 0), (0, 4 * w), (4 * h, 0), (4 * h, 4 * w)]
            sides_and_centre = [(2 * h, 2 * w), (2 * h, 0), (2 * h, 4 * w), (4 * h, 2 * w), (0, 2 * w)]
            quarters = [(h, w), (h, 3 * w), (3 * h, w), (3 * h, 3 * w)]
            for top, left in corners + sides_and_centre + quarters:
                crops[top, left, crop_height, crop_width] += 1
    return crops


@pytest.mark.parametrize("size", [(256, 340), (427, 240), (256, 256), (33, 47)])
def test_multi_scale_crop_draws_the_published_crops_alike(size):
    expected = published_crops(*size)
    rng = np.random.default_rng(0)
    drawn = Counter(Augmentation().draw_crop(size[0], size[1], rng) for _ in range(130 * 60))
    assert drawn.keys() == expected.keys()
    for crop, ways in expected.items():
        assert abs(drawn[crop] - 60 * ways) < 5 * (60 * ways) ** 0.5


def test_one_crop_for_the_whole_clip():
    frames = coordinates(5, 24, 30)
    rng = np.random.default_rng(0)
    corners = set()
    for _ in range(300):
        clip, label = Augmentation(crop_size=16, scales=(2 / 3,), flip=0.0)(frames, 7, tuple(range(9)), rng)
        assert clip.shape == (5, 16, 16, 3)
        assert label == 7
        top, left = clip[0, 0, 0, 1:].tolist()
        assert torch.equal(clip, frames[:, top : top + 16, left : left + 16])
        corners.add((top, left))
    assert len(corners) == 13
    assert {top for top, _ in corners} == {0, 2, 4, 6, 8}
    assert {left for _, left in corners} == {0, 3, 6, 9, 12}


def test_crop_anywhere():
    rng = np.random.default_rng(0)
    augmentation = Augmentation(crop_size=16, scales=(1.0,), positions="any")
    crops = {augmentation.draw_crop(16, 26, rng) for _ in range(300)}
    assert crops == {(0, left, 16, 16) for left in range(11)}


def test_multi_scale_crop_is_one_resize_of_the_decoded_pixels():
    frames = smooth(3, 90, 120)
    for seed in range(10):
        clip, _ = Augmentation(crop_size=56, flip=0.0)(frames, 0, (0,), np.random.default_rng(seed))
        top, left, height, width = Augmentation().draw_crop(90, 120, np.random.default_rng(seed))
        for frame, result in zip(frames.numpy(), clip.numpy(), strict=True):
            crop = Image.fromarray(frame[top : top + height, left : left + width])
            expected = np.asarray(crop.resize((56, 56), Image.Resampling.BILINEAR), dtype=int)
            assert np.abs(result.astype(int) - expected).max() <= 1
        assert clip.is_contiguous()


def test_crop_before_resize_shows_what_the_published_order_shows():
    """Resize to a short side of 256, then cut 224 out of it: with a scale of 7/8 the same part of the picture."""
    frames = smooth(2, 480, 854)
    published = resize_short_side(frames, 256)
    augmentation = Augmentation(scales=(0.875,), flip=0.0)
    for seed in range(6):
        top, left, height, width = augmentation.draw_crop(256, published.shape[2], np.random.default_rng(seed))
        assert (height, width) == (224, 224)
        expected = published[:, top : top + 224, left : left + 224].int()
        clip, _ = augmentation(frames, 0, (0,), np.random.default_rng(seed))
        assert (clip.int() - expected).abs().float().mean() < 1
        assert (clip.int() - expected).abs().max() <= 6  # the crops lie within a pixel or two of one another


@pytest.mark.parametrize("size", [(480, 854), (854, 480), (256, 340)])
def test_short_side_jitter_shows_what_the_published_order_shows(size):
    """Resize to a short side drawn from 256 to 320, then cut a random square of 224 out of it."""
    frames, rng = smooth(2, *size), np.random.default_rng(0)
    for resized in (256, 289, 320):
        augmentation = Augmentation(short_sides=(resized, resized), positions="any", flip=0.0)
        published = resize_short_side(frames, resized)
        state = rng.bit_generator.state
        top, left, height, width = augmentation.draw_crop(size[0], size[1], rng)
        scale = resized / min(size)
        assert height == width
        assert abs(height * scale - 224) <= 0.5 * scale
        at = [
            min(round(start * scale), side - 224) for start, side in zip((top, left), published.shape[1:3], strict=True)
        ]
        expected = published[:, at[0] : at[0] + 224, at[1] : at[1] + 224].int()
        rng.bit_generator.state = state
        clip, _ = augmentation(frames, 0, (0,), rng)
        assert (clip.int() - expected).abs().float().mean() < 1.5
        assert (clip.int() - expected).abs().max() <= 8  # within a pixel or two of one another


def test_short_sides_are_drawn_evenly_and_crops_lie_anywhere():
    rng, augmentation = np.random.default_rng(0), Augmentation(short_sides=(256, 320), positions="any")
    crops = np.array([augmentation.draw_crop(1000, 1400, rng) for _ in range(4000)])
    side = crops[:, 2]
    assert (crops[:, 3] == side).all()
    assert (side.min(), side.max()) == (700, 875)  # 224 of 320 and of 256 pixels
    counts, _ = np.histogram(224_000 / side, bins=8, range=(256, 320.5))
    assert counts.min() > 400  # 500 expected
    for start, spare in ((crops[:, 0], 1000 - side), (crops[:, 1], 1400 - side)):
        share, _ = np.histogram(start / spare, bins=5, range=(0, 1))
        assert share.min() > 650  # 800 expected


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 400)])
def test_tiny_frames(size):
    frames = torch.full((2, *size, 3), 77, dtype=torch.uint8)
    clip, _ = Augmentation(crop_size=32)(frames, 0, (0,), np.random.default_rng(0))
    assert (clip == 77).all()
    assert (slide_crops(resize_short_side(frames, 32), 32, 3)[2] == 77).all()


def test_one_crop_lies_in_the_centre():
    (crop,) = slide_crops(coordinates(2, 20, 31), 16, 1)
    assert crop[1, 0, 0].tolist() == [1, 2, 7]


@pytest.mark.parametrize(
    ("size", "count", "corners"),
    [
        ((32, 60), 3, [(0, 0), (0, 14), (0, 28)]),
        ((60, 32), 3, [(0, 0), (14, 0), (28, 0)]),
        ((34, 41), 3, [(1, 0), (1, 4), (1, 9)]),
        ((32, 32), 3, [(0, 0), (0, 0), (0, 0)]),
        ((34, 60), 1, [(1, 14)]),
        ((32, 62), 4, [(0, 0), (0, 10), (0, 20), (0, 30)]),
    ],
)
def test_crops_slide_along_the_long_side(size, count, corners):
    frames = coordinates(2, *size)
    crops = slide_crops(frames, 32, count)
    assert [tuple(crop[0, 0, 0, 1:].tolist()) for crop in crops] == corners
    for crop, (top, left) in zip(crops, corners, strict=True):
        assert torch.equal(crop, frames[:, top : top + 32, left : left + 32])


def test_frames_too_small_for_a_crop():
    with pytest.raises(ValueError, match="size: got 33, expected at most the short side of frames of 32 × 60 pixels"):
        slide_crops(coordinates(1, 32, 60), 33, 3)


@pytest.mark.parametrize(("size", "expected"), [((48, 64), (24, 32)), ((64, 48), (32, 24)), ((24, 99), (24, 99))])
def test_resize_keeps_proportions(size, expected):
    ramp = torch.linspace(0, 255, size[1]).to(torch.uint8)[None, None, :, None].expand(2, size[0], size[1], 3)
    resized = resize_short_side(ramp, 24)
    assert resized.dtype == torch.uint8
    assert resized.shape == (2, *expected, 3)
    exact = (torch.arange(expected[1]) + 0.5) * size[1] / expected[1] - 0.5
    np.testing.assert_allclose(resized[1, 7, :, 2], exact * 255 / (size[1] - 1), atol=3)


def test_resize_of_noise_is_that_of_pillow():
    """Antialiased: every pixel counts, not only the nearest four."""
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 90, 70, 3), dtype=np.uint8))
    for height, width in ((32, 40), (120, 100)):
        resized = resize(frames, (height, width)).numpy().astype(int)
        for frame, result in zip(frames.numpy(), resized, strict=True):
            expected = Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR)
            assert np.abs(result - np.asarray(expected, dtype=int)).max() <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_normalise(dtype):
    clips = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5, 3), dtype=np.uint8))
    before = clips.clone()
    result = normalize(clips, dtype)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = np.moveaxis((clips.numpy() / 255 - mean) / std, -1, 2)
    step = torch.finfo(dtype).eps
    np.testing.assert_allclose(result.double(), expected, rtol=max(step, 1e-5), atol=1e-6)
    assert result.dtype == dtype
    assert result.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(clips, before)


def test_normalise_first_called_in_inference_is_good_for_training():
    with torch.inference_mode():
        normalize(torch.zeros(1, 1, 2, 2, 3, dtype=torch.uint8))
    weight = torch.ones((), requires_grad=True)
    (weight * normalize(torch.zeros(1, 1, 2, 2, 3, dtype=torch.uint8))).sum().backward()
    assert weight.grad is not None
    assert weight.grad.item() == pytest.approx(-4 * (0.485 / 0.229 + 0.456 / 0.224 + 0.406 / 0.225), rel=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop_size": 0}, r"augmentation\.crop_size: got 0, expected at least 1"),
        ({"scales": ()}, r"augmentation\.scales: got \(\), expected falling shares"),
        ({"scales": (0.5, 1.0)}, r"augmentation\.scales: got \(0\.5, 1\.0\), expected falling shares"),
        ({"scales": (1.5,)}, r"augmentation\.scales: got \(1\.5,\), expected falling shares"),
        ({"scales": ("all",)}, r"augmentation\.scales: got \('all',\), expected a tuple, each of it a finite number"),
        ({"short_sides": (320, 256)}, r"augmentation\.short_sides: got \(320, 256\), expected two rising numbers"),
        (
            {"short_sides": (200, 320)},
            r"short_sides: got \(200, 320\), expected two rising numbers from crop_size \(224\)",
        ),
        ({"short_sides": (256,)}, r"augmentation\.short_sides: got \(256,\), expected two rising numbers"),
        ({"flip": 1.5}, r"augmentation\.flip: got 1\.5, expected a probability"),
        ({"flip": float("nan")}, r"augmentation\.flip: got nan, expected a finite number"),
        ({"max_distortion": -1}, r"augmentation\.max_distortion: got -1, expected at least 0"),
        ({"positions": "corner"}, r"augmentation\.positions: got 'corner', expected one of 'fixed', 'any'"),
    ],
)
def test_impossible_augmentation(fields, message):
    with pytest.raises(InputError, match=message):
        Augmentation(**fields)
