"""Kinetics' and Something-Something's own files, and folder trees."""

import json

import pytest

from train.data.entries import Entry
from train.data.sources import read_kinetics, read_something, read_split, read_tree
from train.errors import InputError

HEADER = "label,youtube_id,time_start,time_end,split"


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_kinetics_finds_every_layout(tmp_path):
    root = tmp_path / "videos"
    touch(
        root,
        "air drumming/-abc_DEF123_000010_000020.mp4",  # the usual download
        "shaking_hands/zzzzzzzzzzz.webm",  # underscores, no times
        "yyyyyyyyyyy_000000_000010.mkv",  # flat
        "xxxxxxxxxxx.avi",
        "air drumming/twice_000001_000011.webm",
        "air drumming/twice_000001_000011.mp4",
        "air drumming/partial_000001_000011.mp4.part",
    )
    rows = [
        "air drumming,-abc_DEF123,10,20,train",
        'shaking hands,"zzzzzzzzzzz",3,13,train',
        "",
        "air drumming,yyyyyyyyyyy,0,10,train",
        "shaking hands,xxxxxxxxxxx,7,17,train",
        "air drumming,twice,1,11,train",
        "air drumming,partial,1,11,train",
        "shaking hands,lost,120,130,train",
    ]
    path = write(tmp_path, "train.csv", "\ufeff" + "\r\n".join([HEADER, *rows]) + "\r\n")
    split = read_kinetics(path, root)
    assert (split.name, split.class_names) == ("train", ("air drumming", "shaking hands"))
    assert [(str(entry.path.relative_to(root)), entry.label) for entry in split.entries] == [
        ("air drumming/-abc_DEF123_000010_000020.mp4", 0),
        ("shaking_hands/zzzzzzzzzzz.webm", 1),
        ("yyyyyyyyyyy_000000_000010.mkv", 0),
        ("xxxxxxxxxxx.avi", 1),
        ("air drumming/twice_000001_000011.mp4", 0),
        ("air drumming/partial_000001_000011.mp4", 0),  # these two are not there, and are named all the same
        ("shaking hands/lost_000120_000130.mp4", 1),
    ]


def test_kinetics_columns_are_found_by_name(tmp_path):
    path = write(tmp_path, "val.csv", f"{HEADER},is_cc\nwaving hand,abc,1,11,val,0\n")
    names = ("clapping", "waving hand")
    assert read_kinetics(path, class_names=names).entries == (Entry(tmp_path / "waving hand/abc_000001_000011.mp4", 1),)
    turned = write(tmp_path, "turned.csv", "split,time_end,time_start,youtube_id,label\nval,11,1.0,abc,waving hand\n")
    assert read_kinetics(turned, class_names=names).entries == read_kinetics(path, class_names=names).entries


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1: expected the columns label, youtube_id, time_start, time_end; there is no label"),
        ("label,youtube_id,time_end\n", "there is no time_start"),
        (f"{HEADER}\n", "the list holds no videos"),
        (f"{HEADER}\na,x,1,11,val\na,y,1\n", "line 3: expected 5 fields, got 3"),
        (f"{HEADER}\na,x,one,11,val\n", "line 2: time_start must be a number of seconds from 0, got 'one'"),
        (f"{HEADER}\na,x,1,-2,val\n", "line 2: time_end must be a number of seconds from 0, got '-2'"),
        (f"{HEADER}\na,x,inf,3,val\n", "line 2: time_start must be a number of seconds from 0, got 'inf'"),
        (f"{HEADER}\na,x,1,11,val\n,y,1,11,val\n", "line 3: '' is none of the 1 classes"),
        (f"{HEADER}\na,x,1,11,val\n\na,x,1,11,val\n", "line 4: "),
    ],
)
def test_bad_kinetics_table(tmp_path, content, message):
    with pytest.raises(InputError) as caught:
        read_kinetics(write(tmp_path, "val.csv", content))
    assert message in str(caught.value)
    assert str(tmp_path / "val.csv") in str(caught.value)


def test_kinetics_classes_must_be_known(tmp_path):
    path = write(tmp_path, "val.csv", f"{HEADER}\nwalking,x,1,11,val\n")
    with pytest.raises(InputError, match="line 2: 'walking' is none of the 1 classes"):
        read_split("kinetics", path, classes=write(tmp_path, "classes.txt", "running\n"))
    with pytest.raises(InputError, match="nowhere: no such file"):
        read_kinetics(path, tmp_path / "nowhere")


LABELS = {"Holding something": "1", "Approaching something with your camera": "0"}


def test_something_v2(tmp_path):
    labels = write(tmp_path, "labels.json", json.dumps(LABELS))
    videos = [
        {"id": "78687", "label": "holding a potato", "template": "Holding [something]", "placeholders": ["a potato"]},
        {"id": 42, "template": "Approaching [something] with your camera"},
    ]
    path = write(tmp_path, "validation.json", json.dumps(videos))
    touch(tmp_path / "videos", "78687.webm")
    split = read_something(path, labels, tmp_path / "videos")
    assert split.class_names == ("Approaching something with your camera", "Holding something")
    assert split.entries == (Entry(tmp_path / "videos/78687.webm", 1), Entry(tmp_path / "videos/42.webm", 0))
    folders = read_something(path, labels, tmp_path / "videos", frames=True)
    assert folders.entries[0] == Entry(tmp_path / "videos/78687", 1, "frames")
    touch(tmp_path / "transcoded", "42.mp4")
    assert read_something(path, labels, tmp_path / "transcoded").entries[1].path.name == "42.mp4"


def test_something_v1(tmp_path):
    labels = write(tmp_path, "labels.csv", b"Holding something\r\nApproaching something with your camera\r\n")
    path = write(tmp_path, "train.csv", "100218;Approaching something with your camera\r\n\r\n7;Holding something\r\n")
    split = read_split("something", path, tmp_path, labels)
    assert split.entries == (Entry(tmp_path / "100218", 1, "frames"), Entry(tmp_path / "7", 0, "frames"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.json", "{", "line 1: is not JSON"),
        ("train.json", "{}", "expected a list of videos, got dict"),
        ("train.json", "[]", "the list holds no videos"),
        ("train.json", '[{"template": "Holding [something]"}]', "video 1: expected an id and a template"),
        ("test.json", '[{"id": "1"}]', "video 1: has no template; the labels of the test set are not public"),
        ("train.json", '[{"id": "1", "template": "Eating [something]"}]', "'Eating [something]' is none of the 2"),
        ("train.csv", "1;Eating something\n", "line 1: 'Eating something' is none of the 2 templates"),
        ("train.csv", "1;Holding something\n2\n", "line 2: expected `id;template`, got '2'"),
        ("train.csv", "1;Holding something\n1;Holding something\n", "is there twice, first in line 1"),
    ],
)
def test_bad_something_list(tmp_path, name, content, message):
    labels = write(tmp_path, "labels.json", json.dumps(LABELS))
    with pytest.raises(InputError) as caught:
        read_something(write(tmp_path, name, content), labels)
    assert message in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize(
    "content", ['{"a": "0", "b": "0"}', '{"a": "1", "b": "2"}', '{"a": "x"}', "[]", "{}", '{"a": "-1"}']
)
def test_bad_something_labels(tmp_path, content):
    path = write(tmp_path, "train.csv", "1;a\n")
    with pytest.raises(InputError, match=r"labels\.json: (expected labels|the labels of)"):
        read_something(path, write(tmp_path, "labels.json", content))


def test_tree(tmp_path):
    touch(tmp_path, "walk/b.mp4", "walk/a, too.webm", "run/c.avi", "run/folder/00001.jpg", ".git/x", "walk/.hidden.mp4")
    split = read_tree(tmp_path)
    assert split.class_names == ("run", "walk")
    assert split.entries == (
        Entry(tmp_path / "run/c.avi", 0),
        Entry(tmp_path / "run/folder", 0, "frames"),
        Entry(tmp_path / "walk/a, too.webm", 1),
        Entry(tmp_path / "walk/b.mp4", 1),
    )
    assert [entry.label for entry in read_tree(tmp_path, ("walk", "run")).entries] == [1, 1, 0, 0]
    with pytest.raises(InputError, match="walk: is none of the 1 classes"):
        read_tree(tmp_path, ("run",))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="expected videos as class"):
        read_tree(tmp_path / "empty")
    with pytest.raises(InputError, match="absent: no such file"):
        read_tree(tmp_path / "absent")
