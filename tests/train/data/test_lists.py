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
    elsewhere = read_list(path, NAMES, root=tmp_path / "other", name="val")
    assert elsewhere.name == "val"
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
