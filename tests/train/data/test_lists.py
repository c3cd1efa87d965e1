import json

import pytest

from train.data.entries import Entry, Split
from train.data.sources import read_class_names, read_frames_list, read_list, read_split
from train.errors import InputError

NAMES = ("a", "b", "c")


def write(tmp_path, content, name="train.txt"):
    path = tmp_path / name
    path.write_bytes(content)
    return path


def test_paths_labels_and_order(tmp_path):
    path = write(tmp_path, b"b.mp4 1\r\n\r\n  \na file, with spaces.webm 0\r\nsub/x y.mp4\t2\nend.mp4  1")
    split = read_list(path, NAMES)
    assert split == Split(
        "train",
        (
            Entry(tmp_path / "b.mp4", 1),
            Entry(tmp_path / "a file, with spaces.webm", 0),
            Entry(tmp_path / "sub/x y.mp4", 2),
            Entry(tmp_path / "end.mp4", 1),
        ),
        NAMES,
    )
    elsewhere = read_list(path, NAMES, root=tmp_path / "other")
    assert elsewhere.entries[0].path == tmp_path / "other" / "b.mp4"


def test_frame_folders(tmp_path):
    path = write(tmp_path, "\ufeffsome folder, here 45 2\r\n\r\n78687\t31 0\r\n".encode(), "val.txt")
    assert read_frames_list(path, NAMES, pattern="{:05d}.jpg", first=0).entries == (
        Entry(tmp_path / "some folder, here", 2, "frames", 45, "{:05d}.jpg", 0),
        Entry(tmp_path / "78687", 0, "frames", 31, "{:05d}.jpg", 0),
    )


def test_absolute_path_needs_no_root(tmp_path):
    assert read_list(write(tmp_path, b"/videos/a.mp4 0\n"), NAMES).entries[0].path.as_posix() == "/videos/a.mp4"


def test_byte_order_mark_and_unicode_names(tmp_path):
    path = write(tmp_path, "\ufeffgrün.mp4 0\n".encode())
    assert read_list(path, NAMES).entries[0].path.name == "grün.mp4"


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        (b"a.mp4 0\n\nb.mp4 3\n", 3, "label 3 is out of range, there are 3 classes"),
        (b"a.mp4 -1\n", 1, "integer from 0, got '-1'"),
        (b"a.mp4 0\nb.mp4 one\n", 2, "integer from 0, got 'one'"),
        (b"a.mp4 1.0\n", 1, "integer from 0, got '1.0'"),
        ("a.mp4 ²\n".encode(), 1, "integer from 0, got '²'"),
        (b"a.mp4 0\nb.mp4\n", 2, "expected `path label`, got 'b.mp4'"),
        (b"7\n", 1, "expected `path label`, got '7'"),
        (b"a.mp4 0\nb.mp4 1\r\n\na.mp4 0\n", 4, "a.mp4 is there twice, first in line 1"),
        (b"a.mp4 0\na.mp4 2\n", 2, "a.mp4 is there twice, first in line 1"),
    ],
)
def test_bad_line_is_named(tmp_path, content, line, message):
    path = write(tmp_path, content)
    with pytest.raises(InputError) as caught:
        read_list(path, NAMES)
    assert str(path) in str(caught.value)
    assert f"line {line}: " in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        (b"a 40 0\nb 0 1\n", 2, "number of frames must be an integer from 1, got '0'"),
        (b"a -3 0\n", 1, "number of frames must be an integer from 1, got '-3'"),
        (b"a many 0\n", 1, "number of frames must be an integer from 1, got 'many'"),
        (b"a 40 3\n", 1, "label 3 is out of range"),
        (b"a 40\n", 1, "expected `folder num_frames label`, got 'a 40'"),
        (b"a 40 0\na 40 0\n", 2, "is there twice, first in line 1"),
    ],
)
def test_bad_line_of_frame_folders_is_named(tmp_path, content, line, message):
    path = write(tmp_path, content)
    with pytest.raises(InputError) as caught:
        read_frames_list(path, NAMES)
    assert f"{path}, line {line}: " in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n\r\n  \n"])
def test_empty_list(tmp_path, content):
    path = write(tmp_path, content)
    for read in (read_list, read_frames_list):
        with pytest.raises(InputError, match=r"train\.txt: the list holds no videos"):
            read(path, NAMES)
    with pytest.raises(InputError, match=r"train\.txt: the file holds no class names"):
        read_class_names(path)


def test_file_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="absent: no such file"):
        read_list(tmp_path / "absent", NAMES)
    with pytest.raises(InputError, match="is a directory"):
        read_list(tmp_path, NAMES)
    with pytest.raises(InputError, match="not a text file"):
        read_list(write(tmp_path, b"\xff\xfe\x00\x80\n"), NAMES)


def test_class_names(tmp_path):
    assert read_class_names(write(tmp_path, b"moving left\r\nmoving right\r\n")) == ("moving left", "moving right")
    with pytest.raises(InputError, match="'walk' is there twice"):
        read_class_names(write(tmp_path, b"walk\nrun\nwalk\n"))


def test_form_is_told_and_not_guessed(tmp_path):
    classes = write(tmp_path, b"a\nb\n", "classes.txt")
    path = write(tmp_path, b"clip 12 1\n")
    assert read_split("frames_list", path, classes=classes).entries == (Entry(tmp_path / "clip", 1, "frames", 12),)
    assert read_split("list", path, classes=classes).entries == (Entry(tmp_path / "clip 12", 1),)
    for source in ("list", "frames_list", "something"):
        with pytest.raises(InputError, match="classes: "):
            read_split(source, path)


def test_split_refuses_labels_without_a_name(tmp_path):
    for label in (-1, 2):
        with pytest.raises(InputError, match=rf"val: .*clip\.mp4 has label {label}, out of range: there are 2 classes"):
            Split("val", (Entry(tmp_path / "clip.mp4", label),), ("a", "b"))


UCF = b"1 ApplyEyeMakeup\n2 ApplyLipstick\r\n3 Archery\n"


def test_lists_of_ucf101(tmp_path):
    """Labels from 1 and names with their numbers; the lists of the test have no labels at all."""
    classes = write(tmp_path, UCF, "classInd.txt")
    names = ("ApplyEyeMakeup", "ApplyLipstick", "Archery")
    assert read_class_names(classes) == names
    train = write(tmp_path, b"Archery/v_Archery_g01_c01.avi 3\r\nApplyEyeMakeup/v_1.avi 1\n", "trainlist01.txt")
    test = write(tmp_path, b"Archery/v_Archery_g01_c02.avi\r\nApplyLipstick/v_2.avi\n", "testlist01.txt")
    assert [entry.label for entry in read_split("list", train, classes=classes).entries] == [2, 0]
    split = read_split("list", test, classes=classes)
    assert split.class_names == names
    assert split.entries[0] == Entry(tmp_path / "Archery/v_Archery_g01_c02.avi", 2)
    assert [entry.label for entry in split.entries] == [2, 1]
    folders = write(tmp_path, b"Archery/1 40 3\n", "frames.txt")
    assert read_split("frames_list", folders, classes=classes).entries[0].label == 2
    for wrong in (b"Archery/a.avi 0\n", b"Archery/a.avi 4\n"):
        with pytest.raises(InputError, match="out of range, there are 3 classes, counted from 1"):
            read_split("list", write(tmp_path, wrong), classes=classes)


def test_labels_from_1_are_never_taken_for_labels_from_0(tmp_path):
    with pytest.raises(InputError, match=r"line 2: label 3 is out of range.*let the file of classes say so: `1 name`"):
        read_list(write(tmp_path, b"x.mp4 1\ny.mp4 3\n"), NAMES)
    with pytest.raises(InputError, match="each label is that of its folder's class and 1 more"):
        read_list(write(tmp_path, b"a/x.mp4 1\nb/y.mp4 2\n"), NAMES)
    assert len(read_list(write(tmp_path, b"a/x.mp4 0\nb/y.mp4 2\n"), NAMES)) == 2


def test_a_list_without_labels_needs_folders_of_classes(tmp_path):
    with pytest.raises(InputError, match="a list without labels is read where folders are named as classes"):
        read_list(write(tmp_path, b"a/x.mp4\nother/y.mp4\n"), NAMES)


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"0 a\n1 b\n", ("a", "b")),
        (b"1 A\n", ("A",)),
        (b"1 a\n3 b\n", ("1 a", "3 b")),
        (b"2 cups\n3 cups\n", ("2 cups", "3 cups")),
        (b"1 a\nb\n", ("1 a", "b")),
    ],
)
def test_numbers_before_class_names(tmp_path, content, names):
    assert read_class_names(write(tmp_path, content)) == names


def test_class_names_in_two_forms_of_unicode(tmp_path, capsys):
    """`é` as one letter, as Linux and Windows write it, and as a letter with an accent, as macOS does."""
    one, two = "caf\u00e9", "cafe\u0301"
    with pytest.raises(InputError, match="'café' is there twice"):
        read_class_names(write(tmp_path, f"{one}\n{two}\n".encode()))
    for name in (one, two):
        (tmp_path / "tree" / name).mkdir(parents=True)
        (tmp_path / "tree" / name / f"{len(name)}.mp4").touch()
    split = read_split("tree", tmp_path / "tree")
    assert (split.class_names, [entry.label for entry in split.entries]) == ((one,), [0, 0])
    assert "note: " in (said := capsys.readouterr().err)
    assert "are one class: 'café'" in said
    classes = write(tmp_path, f"x\n{two}\n".encode(), "classes.txt")
    assert {entry.label for entry in read_split("tree", tmp_path / "tree", classes=classes).entries} == {1}
    header = "label,youtube_id,time_start,time_end,split"
    table = write(tmp_path, f"{header}\n{one},a,0,10,train\n{two},b,0,10,train\n".encode(), "table.csv")
    split = read_split("kinetics", table, root=tmp_path / "tree")
    assert (split.class_names, [entry.label for entry in split.entries]) == ((one,), [0, 0])
    assert split.entries[1].path.parent.name == one
    (tmp_path / "tree" / two / "b.mp4").touch()
    assert read_split("kinetics", table, root=tmp_path / "tree").entries[1].path.exists()
    (tmp_path / "labels.json").write_text(json.dumps({f"Holding {two}": "0"}))
    videos = write(tmp_path, json.dumps([{"id": "1", "template": f"Holding [{one}]"}]).encode(), "train.json")
    assert read_split("something", videos, classes=tmp_path / "labels.json").entries[0].label == 0
