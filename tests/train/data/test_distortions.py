"""RandAugment and color jitter: the operations as Pillow has them, one draw for all frames, none where they are off."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from train.data import distortions
from train.data.distortions import COLOR, GEOMETRIC, RandAugment, distort, jitter
from train.data.transforms import Augmentation, random_flip
from train.errors import InputError

WITHOUT_STRENGTH = ("identity", "autocontrast", "equalize")
POINTWISE = tuple(name for name in COLOR if name != "sharpness")


def make_clip(seed, frames=3, height=12, width=10, low=0, high=256):
    """Of few colors, so that each is there often."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(low, high, (frames, height, width, 3), dtype=np.uint8) // 32 * 32 + 5)


def close(actual, expected, tolerance=1):
    return (actual.int() - expected.int()).abs().max() <= tolerance


SHIFT = 150  # AutoAugment's, of a picture of 331


@pytest.mark.parametrize(
    ("operation", "strength", "expected"),
    [
        ("autocontrast", 0.5, ImageOps.autocontrast),
        ("equalize", 0.5, ImageOps.equalize),
        ("solarize", 0.4, lambda picture: ImageOps.solarize(picture, 153)),
        ("posterize", -0.5, lambda picture: ImageOps.posterize(picture, 6)),
        ("posterize", 1.0, lambda picture: ImageOps.posterize(picture, 4)),
        ("color", 0.9, lambda picture: ImageEnhance.Color(picture).enhance(1.81)),
        ("contrast", -0.9, lambda picture: ImageEnhance.Contrast(picture).enhance(0.19)),
        ("brightness", 0.3, lambda picture: ImageEnhance.Brightness(picture).enhance(1.27)),
        ("sharpness", 0.9, lambda picture: ImageEnhance.Sharpness(picture).enhance(1.81)),
    ],
)
def test_of_one_frame_as_pillow_has_it(operation, strength, expected):
    clip = make_clip(0, frames=1, low=40, high=200)
    picture = np.asarray(expected(Image.fromarray(clip[0].numpy())))
    result = distort(clip, operation, strength)
    assert result.dtype == torch.uint8
    inner = (slice(1, -1),) * 2 if operation == "sharpness" else ()  # edges are left to each
    assert close(result[0][inner], torch.from_numpy(picture.copy())[inner])


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("operation", ["translate_x", "translate_y"])
def test_translation_is_autoaugments(operation, sign):
    along = 2 if operation.endswith("x") else 1
    clip = make_clip(1, 2, *((4, 331) if along == 2 else (331, 4)))
    moved = distort(clip, operation, float(sign))
    kept = [clip.narrow(along, max(0, -sign * SHIFT), 331 - SHIFT), moved.narrow(along, max(0, sign * SHIFT), 181)]
    assert close(kept[1], kept[0])
    assert (moved.narrow(along, 0 if sign > 0 else 181, SHIFT) == 128).all()


def test_rotation_and_shear_are_about_the_middle():
    """By the slope of a strip through the middle."""
    clip = torch.zeros(2, 61, 61, 3, dtype=torch.uint8)
    clip[:, 30] = 255
    rows, columns = torch.arange(20, 41), torch.arange(15, 46)
    for operation, slope in (("rotate", np.tan(np.radians(30))), ("shear_y", 0.3)):
        slopes = []
        for sign in (1.0, -1.0):
            bright = distort(clip, operation, sign)[0, 20:41, 15:46, 0].float()
            places = (bright * rows[:, None]).sum(0) / bright.sum(0)
            fitted = np.polyfit(columns - 30, places - 30, 1)
            slopes.append(fitted[0])
            assert abs(fitted[1]) < 0.1
        assert sorted(slopes) == pytest.approx([-slope, slope], abs=0.01)
    sheared = distort(clip.transpose(1, 2), "shear_x", 1.0)
    assert close(sheared.transpose(1, 2), distort(clip, "shear_y", 1.0), 2)


@given(st.sampled_from(COLOR + GEOMETRIC), st.floats(-1, 1), st.integers(0, 1000), st.permutations(range(3)))
def test_the_order_of_frames_is_all_the_same(operation, strength, seed, order):
    clip = make_clip(seed)
    assert close(distort(clip[order], operation, strength), distort(clip, operation, strength)[order])


@given(st.sampled_from(POINTWISE), st.floats(-1, 1), st.integers(0, 1000))
def test_a_color_becomes_one_color_in_all_frames(operation, strength, seed):
    """Also where the frames differ in brightness, so that each by itself would be stretched otherwise."""
    clip = make_clip(seed)
    clip[1] //= 2
    clip[2, :6] = clip[0, :6]
    pairs = torch.cat([clip, distort(clip, operation, strength)], dim=-1).flatten(0, -2)
    assert len(pairs.unique(dim=0)) == len(clip.flatten(0, -2).unique(dim=0))


@given(st.sampled_from(("sharpness", *GEOMETRIC)), st.floats(-1, 1), st.integers(0, 1000))
def test_every_frame_moves_alike(operation, strength, seed):
    clip = make_clip(seed)
    moved = distort(clip, operation, strength)
    assert all(torch.equal(moved[t : t + 1], distort(clip[t : t + 1], operation, strength)) for t in range(3))


@pytest.mark.parametrize("operation", [name for name in COLOR + GEOMETRIC if name not in WITHOUT_STRENGTH])
def test_no_strength_changes_nothing_and_all_of_it_does(operation):
    clip = make_clip(3)
    clip[0, 0, 0] = 255
    assert close(distort(clip, operation, 0.0), clip)
    assert not close(distort(clip, operation, 1.0), clip, 8)


def test_unknown_operation():
    with pytest.raises(ValueError, match="operation: got 'invert', expected one of identity, "):
        distort(make_clip(0), "invert", 0.5)


NO_SUCH = ("", "2", "2,11", "0,9", "17,1", "2;9", "2,9,colour", "2, 9", "２,9", "-2,9", "2,nan")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2,9", RandAugment(2, 9)),
        ("16,10,color", RandAugment(16, 10, geometric=False)),
        ("1,0.5", RandAugment(1, 0.5)),
        *(
            (text, None)
            for text in ("", "2", "2,11", "0,9", "17,1", "2;9", "2,9,colour", "2, 9", "２,9", "-2,9", "2,nan")
        ),
    ],
)
def test_what_a_text_stands_for(text, expected):
    assert RandAugment.parse(text) == expected
    if expected is None:
        with pytest.raises(InputError, match=r"augmentation\.randaugment: got .*, expected N,M or N,M,color"):
            Augmentation(randaugment=text)
    else:
        assert Augmentation(randaugment=text).distortion == expected


@pytest.mark.parametrize("geometric", [True, False])
def test_operations_come_alike_and_with_either_sign(monkeypatch, geometric):
    drawn: Counter[tuple[str, float]] = Counter()
    monkeypatch.setattr(distortions, "distort", lambda clip, *drawing: drawn.update([drawing]) or clip)
    augment, rng = RandAugment(2, 9, geometric), np.random.default_rng(0)
    operations = COLOR + GEOMETRIC if geometric else COLOR
    for _ in range(50 * len(operations)):
        augment(make_clip(0), rng)
    assert drawn.keys() == {(name, sign * 0.9) for name in operations for sign in (1, -1)}
    assert all(25 < count < 80 for count in drawn.values())


@pytest.mark.parametrize(
    ("strengths", "bounds"), [((0.4, 0, 0), (60, 140)), ((0.4,), (60, 140)), ((1.0, 0, 0), (0, 200))]
)
def test_jitter_of_a_grey_clip_is_its_brightness(strengths, bounds):
    clip = torch.full((2, 4, 4, 3), 100, dtype=torch.uint8)
    values = set()
    for seed in range(60):
        result = jitter(clip, strengths, np.random.default_rng(seed))
        (value,) = result.unique().tolist()
        values.add(value)
    assert bounds[0] - 2 <= min(values) < bounds[0] + 20  # contrast rounds, too
    assert bounds[1] - 20 < max(values) <= bounds[1]


def test_hue_turns():
    red = torch.tensor([200, 0, 0], dtype=torch.uint8).expand(2, 4, 4, 3)
    hues = [jitter(red, (0, 0, 0, 0.5), np.random.default_rng(seed))[0, 0, 0].argmax().item() for seed in range(30)]
    assert set(hues) == {0, 1, 2}


@pytest.mark.parametrize("strengths", [(), (1, 2), (1.1,), (0.4, 0.4, 0.4, 0.6), (-0.1,), (1, 1, 1, 0.1, 0)])
def test_impossible_jitter(strengths):
    with pytest.raises(InputError, match=r"augmentation\.color_jitter: got .*, expected one number from 0 to 1"):
        Augmentation(color_jitter=strengths)


def test_off_draws_nothing_and_on_draws_last():
    frames, augmentation = make_clip(0, 2, 40, 50), Augmentation(crop_size=24)
    hand, rng = np.random.default_rng(5), np.random.default_rng(5)
    augmentation.draw_crop(40, 50, hand)
    random_flip(frames, 0, (0,), hand)
    plain, _ = augmentation(frames, 0, (0,), rng)
    assert rng.bit_generator.state == hand.bit_generator.state
    without_effect = Augmentation(crop_size=24, color_jitter=(0.0,))
    assert torch.equal(without_effect(frames, 0, (0,), np.random.default_rng(5))[0], plain)
    for options in ({"color_jitter": (0.9,)}, {"randaugment": "3,9"}):
        clips = [Augmentation(crop_size=24, **options)(frames, 0, (0,), np.random.default_rng(5))[0] for _ in range(2)]
        assert torch.equal(*clips)
        assert not torch.equal(clips[0], plain)
        assert clips[0].is_contiguous()
        assert (clips[0].shape, clips[0].dtype) == (plain.shape, torch.uint8)
