"""What the pictures of a test say: read from their axes before they are saved."""

from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from PIL import Image

from train.evaluation import pictures
from train.evaluation.pictures import plot_classes, plot_confusion


@pytest.fixture
def drawn(monkeypatch):
    """The axes of the last picture."""
    seen: list[Any] = []
    figure = pictures.figure

    @contextmanager
    def watched(*arguments, **options):
        with figure(*arguments, **options) as axes:
            yield axes
            seen[:] = axes[:, 0]

    monkeypatch.setattr(pictures, "figure", watched)
    return seen


def names_of(labels):
    return [label.get_text() for label in labels]


MATRIX = np.array([[1, 3, 0, 0], [0, 4, 0, 0], [0, 0, 0, 0], [1, 0, 0, 1]])
NAMES = ("up $x$", "down", "never", "a class whose name is too long to be written by the side")
SHORT = "a class whose name is…be written by the side"


def test_confusion_from_the_best_class_to_the_worst(tmp_path, drawn):
    path = tmp_path / "confusion.png"
    plot_confusion(path, MATRIX, NAMES)
    (axes,) = drawn
    expected = ["down", SHORT, "up $x$", "never"]
    assert names_of(axes.get_xticklabels()) == names_of(axes.get_yticklabels()) == expected
    shares = axes.images[0].get_array()
    assert shares.tolist() == [[100, 0, 0, 0], [0, 50, 50, 0], [75, 0, 25, 0], [0, 0, 0, 0]]
    counts = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axes.texts}
    assert {place: text for place, text in counts.items() if text} == {
        (0, 0): "4",
        (1, 1): "1",
        (1, 2): "1",
        (2, 0): "3",
        (2, 2): "1",
    }
    assert axes.get_xlabel().startswith("predicted class")
    assert axes.get_ylabel().startswith("true class")
    with Image.open(path) as picture:
        assert picture.format == "PNG"


def many(classes):
    """Class i has ten videos, of which i mod 11 are taken for the next one but one."""
    matrix = np.zeros((classes, classes), int)
    for label in range(classes):
        matrix[label, label] += 10 - label % 11
        matrix[label, (label + 2) % classes] += label % 11
    return matrix, [f"class {label}" for label in range(classes)]


def test_of_many_classes_the_pairs_most_confused_are_named(tmp_path, drawn):
    matrix, names = many(400)
    plot_confusion(tmp_path / "confusion.png", matrix, names)
    axes, pairs = drawn
    ordered = axes.images[0].get_array()
    assert np.array_equal(np.sort(ordered.diagonal())[::-1], ordered.diagonal())
    texts = names_of(pairs.texts)
    assert texts[:2] == ["class 10  →  class 12  (10)", "class 21  →  class 23  (10)"]
    assert len(texts) == 30
    assert [bar.get_width() for bar in pairs.patches] == [100.0] * 30
    plot_confusion(tmp_path / "right.png", np.diag(np.full(100, 3)), names[:100])
    assert drawn[1].get_title() == "nothing is confused"


def test_accuracy_by_class(tmp_path, drawn):
    top5 = np.array([1.0, 1.0, 0.0, 0.5])
    plot_classes(tmp_path / "per_class.png", MATRIX, top5, NAMES, missing=2)
    (axes,) = drawn
    assert names_of(axes.get_yticklabels()) == [
        "down (4)",
        f"{SHORT} (2)",
        "up $x$ (4)",
    ]
    assert [bar.get_width() for bar in axes.patches] == [100, 50, 25]
    assert axes.get_title() == "top-1 of 3 classes, mean 58.3 %; classes without a video: 1; videos without scores: 2"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("accuracy (%)", "class (videos)")
    assert not axes.lines  # of four classes all are among the first five


def test_of_many_classes_the_best_and_the_worst_are_named(tmp_path, drawn):
    matrix, names = many(66)
    top5 = np.linspace(0, 1, 66)
    plot_classes(tmp_path / "per_class.png", matrix, top5, names)
    curve, best, worst = drawn
    assert curve.get_title() == "top-1 of 66 classes, mean 50.0 %"
    for panel, shares in ((best, range(100, 50, -10)), (worst, range(40, -10, -10))):
        assert [bar.get_width() for bar in panel.patches] == [share for share in shares for _ in range(6)]
        labels = [int(text.split()[1]) for text in names_of(panel.get_yticklabels())]
        (ticks,) = panel.lines
        assert ticks.get_xdata().tolist() == pytest.approx((100 * top5[labels]).tolist())
    assert names_of(best.get_yticklabels())[:2] == ["class 0 (10)", "class 11 (10)"]
    assert names_of(worst.get_yticklabels())[-1] == "class 65 (10)"
    with Image.open(tmp_path / "per_class.png") as picture:
        assert max(picture.size) < 2000
