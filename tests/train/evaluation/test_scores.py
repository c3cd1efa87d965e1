import csv
import json

import numpy as np
import pytest
from PIL import Image

from train.__main__ import main
from train.errors import InputError
from train.evaluation.ensemble import average_scores
from train.evaluation.report import confusion_matrix, describe, write_report
from train.evaluation.scores import Missing, VideoScores

CLASSES = ("a", "b, with a comma", "ç", "d", "$e$", "f", "g")


def make_scores(seed=0, count=30, kind="logits", missing=(), **changes):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(count, len(CLASSES)))
    if kind == "probabilities":
        scores = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    names = tuple(f"v{number:02d}.mp4" for number in range(count))
    labels = np.arange(count) % 5  # f and g have no videos
    values = {"videos": names, "labels": labels, "scores": scores.astype(np.float32), "class_names": CLASSES}
    return VideoScores(**(values | {"kind": kind, "missing": missing, "protocol": {"seed": seed}} | changes))


def top_by_hand(scores, k):
    """Right in the first k, by sorting each row."""
    right = 0
    for row, label in zip(scores.scores.tolist(), scores.labels.tolist(), strict=True):
        right += label in sorted(range(len(row)), key=lambda i: -row[i])[:k]  # sorted keeps the order of equals
    return right


def test_accuracy():
    gone = (Missing("x", 6, "torn"), Missing("y", 0, "torn"))
    scores = make_scores(missing=gone)
    scores.scores[3:9] = np.round(scores.scores[3:9])  # with equal scores in a row
    accuracy = scores.accuracy()
    top1, top5 = top_by_hand(scores, 1), top_by_hand(scores, 5)
    assert 0 < top1 < top5 < 30
    assert (accuracy.top1, accuracy.top5) == (top1 / 30, top5 / 30)
    assert (accuracy.top1_of_all, accuracy.top5_of_all) == (top1 / 32, top5 / 32)
    assert (scores.predicted == scores.labels).sum() == top1
    assert f"top-1 {top1 / 30:.2%}, top-5 {top5 / 30:.2%} of 30 videos\nmissing: 2 of 32" in describe(scores)


def test_a_network_that_cannot_tell_classes_apart_is_no_better_than_chance():
    accuracy = make_scores(scores=np.zeros((30, len(CLASSES)), np.float32)).accuracy()
    assert (accuracy.top1, accuracy.top5) == (6 / 30, 1.0)


def test_fewer_classes_than_five():
    scores = VideoScores(("a",), np.array([1]), np.array([[2, 1]], np.float32), ("x", "y"), "logits")
    assert (scores.accuracy().top1, scores.accuracy().top5) == (0, 1)


def test_file_of_scores(tmp_path):
    odd = "undecodable \udcff, ünïcode"
    scores = make_scores(missing=(Missing(odd, 6, "no\nsuch file"),))
    scores.save(tmp_path / "scores.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["scores.npz"]
    back = VideoScores.load(tmp_path / "scores.npz")
    for name in ("labels", "scores"):
        assert np.array_equal(getattr(back, name), getattr(scores, name))
        assert getattr(back, name).dtype == getattr(scores, name).dtype
    for name in ("videos", "class_names", "kind", "missing", "protocol"):
        assert getattr(back, name) == getattr(scores, name)
    with np.load(tmp_path / "scores.npz", allow_pickle=False) as file:
        assert all(file[name].dtype != object for name in file.files)


def test_damaged_files_of_scores(tmp_path):
    path = tmp_path / "scores.npz"
    with pytest.raises(InputError, match=r"scores.npz: no such file"):
        VideoScores.load(path)
    make_scores().save(path)
    whole = path.read_bytes()
    for part in (b"", whole[:100], whole[: len(whole) // 2], b"text"):
        path.write_bytes(part)
        with pytest.raises(InputError, match=r"scores.npz: is no file of scores"):
            VideoScores.load(path)
    with path.open("wb") as file:
        np.save(file, np.zeros((2, 3)))
    with pytest.raises(InputError, match=r"scores.npz: is no file of scores"):
        VideoScores.load(path)
    np.savez(path, scores=np.zeros((2, 3)))
    with pytest.raises(InputError, match=r"scores.npz: is no file of scores"):
        VideoScores.load(path)
    make_scores().save(path)
    with np.load(path) as arrays:
        content = dict(arrays)
    np.savez(path, **(content | {"scores": np.ones((30, 7), object)}))
    with pytest.raises(InputError, match=r"scores.npz: (is no file of scores|scores.npy: is of)"):
        VideoScores.load(path)
    np.savez(path, format=np.array("other/1"))
    with pytest.raises(InputError, match=r"scores.npz: holds scores of format 'other/1', expected 'tam_triton/scores"):
        VideoScores.load(path)


def test_a_bit_anywhere_in_a_file_of_scores_is_found_or_changes_nothing(tmp_path):
    path, scores = tmp_path / "scores.npz", make_scores(missing=(Missing("x", 6, "torn"),))
    scores.save(path)
    whole, refused = path.read_bytes(), 0
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        try:
            back = VideoScores.load(path)
        except InputError:
            refused += 1
        else:
            assert np.array_equal(back.scores, scores.scores)
            assert np.array_equal(back.labels, scores.labels)
            assert (back.videos, back.missing, back.kind) == (scores.videos, scores.missing, scores.kind)
    assert refused > len(whole) // 6


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("scores", np.ones((30, 7), np.complex64), "got dtype complex64, expected float32"),
        ("scores", np.ones((30, 7), "datetime64[s]"), r"got dtype datetime64\[s\], expected float32"),
        ("scores", np.ones((30, 7), "timedelta64[s]"), r"got dtype timedelta64\[s\], expected float32"),
        ("scores", np.full((30, 7), "0.5"), "got dtype <U3, expected float32"),
        ("scores", np.full((30, 7), b"0.5"), r"got dtype \|S3, expected float32"),
        ("scores", np.ones((30, 7), bool), "got dtype bool, expected float32"),
        ("scores", np.ones((30, 7), np.int64), "got dtype int64, expected float32"),
        ("scores", np.ones((30, 7)), "got dtype float64, expected float32"),
        ("scores", np.ones((30, 7), [("a", "f4")]), r"got dtype \[.*\], expected float32"),
        ("scores", np.ones(30, np.float32), r"got shape \(30,\), expected 2 dimensions"),
        ("scores", np.ones((30, 6), np.float32), r"got shape \(30, 6\), expected \(30, 7\)"),
        ("labels", np.ones(30), "got dtype float64, expected int64"),
        ("labels", np.ones(30, bool), "got dtype bool, expected int64"),
        ("labels", np.ones((30, 1), np.int64), r"got shape \(30, 1\), expected 1 dimensions"),
        ("videos", np.arange(30), "got dtype int64, expected texts"),
        ("videos", np.array(["v"] * 30), "'v' is there twice"),
        ("class_names", np.array([CLASSES]), r"got shape \(1, 7\), expected 1 dimensions"),
        ("class_names", np.array(["c"] * 7), "'c' is there twice"),
        ("kind", np.array(["logits"]), r"got shape \(1,\), expected 0 dimensions"),
        ("format", np.array(1), "got dtype int64, expected texts"),
        ("protocol", np.array("[]"), "got list, expected an object"),
        ("missing_labels", np.array([0.0]), "got dtype float64, expected int64"),
        ("missing_labels", np.array([0, 1]), r"got shape \(2,\), expected \(1,\), one for each of missing_videos"),
        ("missing_reasons", np.array([b"torn"]), r"got dtype \|S4, expected texts"),
        ("entries", np.array(31.0), "got dtype float64, expected int64"),
    ],
)
def test_arrays_of_another_type_or_shape(tmp_path, name, array, message):
    path = tmp_path / "scores.npz"
    make_scores(missing=(Missing("x", 6, "torn"),)).save(path)
    with np.load(path) as arrays:
        content = dict(arrays)
    np.savez(path, **(content | {name: array}))
    with pytest.raises(InputError, match=f"scores.npz: {name}: {message}"):
        VideoScores.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.arange(29)}, r"labels: got shape \(29,\), expected \(30,\)"),
        ({"class_names": CLASSES[:6]}, r"scores: got shape \(30, 7\), expected \(30, 6\), 30 videos × 6 classes"),
        ({"labels": np.arange(30)}, "labels: got 7, expected numbers from 0 to 6"),
        ({"missing": (Missing("x", -1, ""),)}, "labels: got -1"),
        ({"missing": (Missing("v03.mp4", 1, ""),)}, "videos: 'v03.mp4' is there twice"),
        ({"scores": np.zeros((30, 7), np.complex64)}, "scores: got dtype complex64, expected float32"),
        ({"scores": np.zeros((30, 7))}, "scores: got dtype float64, expected float32"),
        ({"scores": np.zeros((30, 7)).tolist()}, "scores: got list, expected an array of float32"),
        ({"labels": np.zeros(30)}, "labels: got dtype float64, expected int64"),
        ({"class_names": (*CLASSES[:6], "a")}, "class_names: 'a' is there twice"),
        (
            {"kind": "probabilities", "scores": np.full((30, 7), 0.5, np.float32)},
            "those of 30 videos are no probabilities, .*; the first is v00.mp4, from 0.5 on, sum 3.5",
        ),
        ({"kind": "odds"}, "kind: got 'odds', expected one of logits, probabilities"),
        ({"scores": np.full((30, 7), np.nan, np.float32)}, "those of 30 videos are no finite numbers; the first is v0"),
    ],
)
def test_parts_that_do_not_fit(changes, message):
    with pytest.raises(InputError, match=message):
        make_scores(**changes)


def test_tables_and_picture(tmp_path):
    scores = make_scores(missing=(Missing("x", 6, "torn"), Missing("y", 0, "torn, too")))
    matrix = np.zeros((7, 7), int)
    for label, row in zip(scores.labels, scores.scores, strict=True):
        matrix[label, row.argmax()] += 1
    assert np.array_equal(confusion_matrix(scores), matrix)
    write_report(tmp_path, scores)
    header, *rows = read_csv(tmp_path / "confusion.csv")
    assert header[1:] == [row[0] for row in rows] == list(CLASSES)
    assert [[int(cell) for cell in row[1:]] for row in rows] == matrix.tolist()
    _, *rows = read_csv(tmp_path / "classes.csv")
    assert [row[:4] for row in rows] == [
        [str(label), name, str(6 * (label < 5)), str(int(label in (0, 6)))] for label, name in enumerate(CLASSES)
    ]
    for label, row in enumerate(rows):
        own = [i for i in range(30) if scores.labels[i] == label]
        some = make_scores(count=len(own), labels=scores.labels[own], scores=scores.scores[own])
        shares = [f"{top_by_hand(some, k) / len(own):.4f}" if own else "" for k in (1, 5)]
        assert row[4:6] == shares
        errors = [0 if other == label else matrix[label, other] for other in range(7)]
        most = int(np.argmax(errors))
        assert row[6:] == [CLASSES[most] if own else "", str(errors[most])]
    assert read_csv(tmp_path / "missing.csv")[1:] == [["x", "g", "torn"], ["y", "a", "torn, too"]]
    with Image.open(tmp_path / "confusion.png") as picture:
        assert picture.format == "PNG"
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > len(np.unique(matrix))


def test_picture_of_many_classes(tmp_path):
    names = tuple(f"class {number}" for number in range(400))
    labels = np.arange(400)
    write_report(tmp_path, VideoScores(names, labels, np.eye(400, dtype=np.float32), names, "logits"))
    with Image.open(tmp_path / "confusion.png") as picture:
        colors = picture.convert("L")
        assert max(colors.size) < 2000
        assert sum(colors.histogram()[:40]) > 1000  # the diagonal, dark


def read_csv(path):
    return list(csv.reader(path.read_text(encoding="utf-8").splitlines()))


def softmax(scores):
    return np.exp(scores) / np.exp(scores).sum(1, keepdims=True)


def test_ensemble_of_two(tmp_path, capsys):
    first, second = make_scores(1), make_scores(2)
    order = np.random.default_rng(0).permutation(30)
    shuffled = VideoScores(
        tuple(second.videos[i] for i in order), second.labels[order], second.scores[order], CLASSES, "logits"
    )
    first.save(tmp_path / "8f.npz")
    shuffled.save(tmp_path / "16f.npz")
    files = [str(tmp_path / "8f.npz"), str(tmp_path / "16f.npz")]
    assert main(["ensemble", *files, "--out", str(tmp_path / "plain")]) == 0
    joined = VideoScores.load(tmp_path / "plain" / "scores.npz")
    assert (joined.videos, joined.kind) == (first.videos, "logits")
    np.testing.assert_allclose(joined.scores, (first.scores + second.scores) / 2, rtol=1e-5, atol=1e-6)
    result = json.loads((tmp_path / "plain" / "result.json").read_text())
    assert result["top1"] == top_by_hand(joined, 1) / 30
    assert f"top-1 {result['top1']:.2%}" in capsys.readouterr().out
    options = ["--weights", "3", "1", "--average", "probabilities", "--out", str(tmp_path / "weighted")]
    assert main(["ensemble", *files, *options]) == 0
    joined = VideoScores.load(tmp_path / "weighted" / "scores.npz")
    expected = 0.75 * softmax(first.scores) + 0.25 * softmax(second.scores)
    np.testing.assert_allclose(joined.scores, expected, rtol=1e-5)
    assert joined.protocol["weights"] == [3, 1]
    assert main(["ensemble", *options[:3], *files, *options[3:-1], str(tmp_path / "in any order")]) == 0
    reordered = VideoScores.load(tmp_path / "in any order" / "scores.npz")
    np.testing.assert_array_equal(reordered.scores, joined.scores)
    capsys.readouterr()
    assert main(["ensemble", *files, *options]) == 1
    assert "weighted holds scores already; take another folder, or --overwrite" in capsys.readouterr().err
    for again in (files[0], str(tmp_path / "weighted" / ".." / "8f.npz")):
        assert main(["ensemble", files[0], again, "--out", str(tmp_path / "no")]) == 1
        assert "expected each once" in capsys.readouterr().err


def test_ensemble_of_files_that_miss_videos():
    whole = make_scores(1)
    kept = [i for i in range(30) if i not in (4, 7)]
    part = make_scores(
        2,
        28,
        videos=tuple(whole.videos[i] for i in kept),
        labels=whole.labels[kept],
        missing=(Missing("v04.mp4", 4, "torn"),),
    )
    members = {"8f.npz": whole, "16f.npz": part}
    with pytest.raises(
        InputError,
        match=r"16f.npz: has scores for other videos than 8f.npz, 28 of 29 against 30 of 30: "
        r"2 lacking \(v04.mp4, v07.mp4\); --common scores",
    ):
        average_scores(members)
    joined = average_scores(members, common=True)
    np.testing.assert_allclose(joined.scores, (whole.scores[kept] + part.scores) / 2, rtol=1e-5, atol=1e-6)
    assert joined.missing == (
        Missing("v04.mp4", 4, "torn"),
        Missing("v07.mp4", 2, "is not in 16f.npz", "not in 16f.npz"),
    )
    assert joined.accuracy().top1_of_all == top_by_hand(joined, 1) / 30
    both = {
        "a": make_scores(1, missing=(Missing("x", 0, "torn"),)),
        "b": make_scores(2, missing=(Missing("x", 0, "?"),)),
    }
    assert len(average_scores(both)) == 30  # what neither has is no difference


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        (
            {"class_names": (*CLASSES[:5], "g", "f")},
            {},
            "B: the classes are others, or in another order, than those of A",
        ),
        ({"labels": np.arange(30) % 4}, {}, "B: v04.mp4 has label 0, in a file before it 4"),
        ({"kind": "probabilities"}, {}, "average: got None, but A holds logits, B holds probabilities"),
        ({"kind": "probabilities"}, {"average": "logits"}, "average: got logits, but A holds logits, B holds prob"),
        ({}, {"weights": (1.0,)}, r"weights: got \(1.0,\), expected 2 numbers above 0"),
        ({}, {"weights": (1.0, 0.0)}, "weights: got"),
        ({}, {"weights": (1.0, float("nan"))}, "weights: got"),
    ],
)
def test_files_that_do_not_belong_together(changes, options, message):
    with pytest.raises(InputError, match=message):
        average_scores({"A": make_scores(1), "B": make_scores(2, **changes)}, **options)


def test_logits_and_probabilities_have_probabilities_in_common():
    first, second = make_scores(1), make_scores(2, kind="probabilities")
    joined = average_scores({"A": first, "B": second}, average="probabilities")
    np.testing.assert_allclose(joined.scores, (softmax(first.scores) + second.scores) / 2, rtol=1e-5)
    with pytest.raises(InputError, match="files: got 1, expected at least 2"):
        average_scores({"A": first})
