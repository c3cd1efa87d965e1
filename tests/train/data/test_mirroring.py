from dataclasses import replace

import pytest

from tests.support.fit_runs import Videos, run_one, tiny_config
from train.data.dataset import ClipKey, TrainingClips
from train.data.mirroring import describe_flips, mirrored_labels, read_mirrored
from train.demo.render import CLASS_NAMES
from train.errors import InputError


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
        (("pulling it right out", "putting it right_back", "right-hand turn"), (0, 1, None)),
        (("moving right on", "moving left on"), (1, 0)),  # with a partner it is one
        (("pulling it right out to the left",), (None,)),
        (("spin clockwise", "spin anti-clockwise", "swing counter-clockwise"), (1, 0, None)),
        (("A", "B", "a", "up", "UP"), (0, 1, 2, 3, 4)),  # signs for letters: none becomes another by its capitals
        (("Swipe left", "swipe left", "swipe right", "turn left", "turn right"), (None, None, None, 4, 3)),
        (("SwipeLeft", "Stop", "SwipeRight", "TurnClockwise", "TurnAnticlockwise"), (2, 1, 0, 4, 3)),
        (CLASS_NAMES["order"], (0, 1, 2, 3, 4, 5)),
        (CLASS_NAMES["motion"], (1, 0, 2, 3, 5, 4, 6, 7)),
    ],
)
def test_mirrored_labels(names, expected):
    assert mirrored_labels(names) == expected


def test_mirrored_labels_of_something_something():
    """The classes that a flip exchanges, by their numbers among the 174 in alphabetical order."""
    names = [f"class {i}" for i in range(174)]
    names[86:88] = "Pulling something from left to right", "Pulling something from right to left"
    names[93:95] = "Pushing something from left to right", "Pushing something from right to left"
    names[166:168] = (
        "Turning the camera left while filming something",
        "Turning the camera right while filming something",
    )
    swapped = {i: j for i, j in enumerate(mirrored_labels(names)) if i != j}
    assert swapped == {86: 87, 87: 86, 93: 94, 94: 93, 166: 167, 167: 166}


NAMES = ("von links nach rechts", "von rechts nach links", "nach oben", "L2R")


def test_pairs_in_other_words(tmp_path):
    path = tmp_path / "pairs.txt"
    path.write_text("von links nach rechts\tvon rechts nach links\nL2R\n")
    assert mirrored_labels(NAMES) == (0, 1, 2, 3)
    assert mirrored_labels(NAMES, read_mirrored(path, NAMES)) == (1, 0, 2, None)
    ours = ("turn left", "turn right", "U-turn")
    for pairs, expected in (({0: None}, (None, None, 2)), ({0: 2, 2: 0}, (2, None, 0)), ({0: 0}, (0, None, 2))):
        assert mirrored_labels(ours, pairs) == expected  # no clip of `turn right` comes to where none comes back from
    assert "they exchange no classes" in describe_flips(NAMES, (0, 1, 2, 3))
    assert "they exchange 'von links nach rechts' and 'von rechts nach links'." in describe_flips(
        NAMES, (1, 0, 2, None)
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("L2R\tR2L\n", "line 1: 'R2L' is none of the 4 classes"),
        ("L2R\n\nL2R\tnach oben\n", "line 3: 'L2R' is there twice"),
        ("L2R\tnach oben\tL2R\n", "line 1: expected one or two names with a tab between them"),
    ],
)
def test_no_pairs(tmp_path, text, message):
    path = tmp_path / "pairs.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_mirrored(path, NAMES)


def test_a_run_says_what_flips_mean_and_takes_pairs(tmp_path, capsys):
    videos = Videos.make(tmp_path)
    config = tiny_config(tmp_path / "own")
    data = replace(config.recipe.data, num_classes=None)
    config = replace(config, recipe=replace(config.recipe, data=data))
    assert run_one(config, videos) == 0
    said = "clips are flipped from left to right at random; by their names they exchange no classes."
    assert capsys.readouterr().out.count(said) == 1
    path = tmp_path / "pairs.txt"
    path.write_text("falls\trises\n")
    recipe = replace(config.recipe, augmentation=replace(config.recipe.augmentation, mirrored=path, flip=1.0))
    assert run_one(replace(config, recipe=recipe, out=tmp_path / "named"), videos) == 0
    assert said not in capsys.readouterr().out
    clips = TrainingClips(videos.train, recipe.sampling, recipe.augmentation, 0)
    assert [clips[ClipKey(0, index)].label for index in range(3)] == [1, 0, 2]
    path.write_text("falls\n")  # other pairs make another run
    assert run_one(replace(config, recipe=recipe, out=tmp_path / "named", resume=True), videos) == 1
    assert "data.mirrored: was '[(0, 1), (1, 0)]', is '[(0, None)]'" in capsys.readouterr().err
