import pytest

from train.errors import InputError
from train.lists import read_class_names, read_list


def write(tmp_path, content, name="train.txt"):
    path = tmp_path / name
    path.write_bytes(content)
    return path


def test_paths_labels_and_order(tmp_path):
    path = write(tmp_path, b"b.mp4 1\r\n\r\n  \na file, with spaces.webm 0\r\nsub/x y.mp4\t2\nend.mp4  1")
    entries = read_list(path, num_classes=3)
    assert entries == [
        (tmp_path / "b.mp4", 1),
        (tmp_path / "a file, with spaces.webm", 0),
        (tmp_path / "sub/x y.mp4", 2),
        (tmp_path / "end.mp4", 1),
    ]
    assert read_list(path, 3, root=tmp_path / "other")[0].path == tmp_path / "other" / "b.mp4"


def test_absolute_path_needs_no_root(tmp_path):
    assert read_list(write(tmp_path, b"/videos/a.mp4 0\n"), 1)[0].path.as_posix() == "/videos/a.mp4"


def test_byte_order_mark_and_unicode_names(tmp_path):
    path = write(tmp_path, "\ufeffgrün.mp4 0\n".encode())
    assert read_list(path, 1)[0].path.name == "grün.mp4"


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
    ],
)
def test_bad_line_is_named(tmp_path, content, line, message):
    path = write(tmp_path, content)
    with pytest.raises(InputError) as caught:
        read_list(path, num_classes=3)
    assert str(path) in str(caught.value)
    assert f"line {line}: " in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n\r\n  \n"])
def test_empty_list(tmp_path, content):
    path = write(tmp_path, content)
    with pytest.raises(InputError, match=r"train\.txt: the list holds no videos"):
        read_list(path, 3)
    with pytest.raises(InputError, match=r"train\.txt: the file holds no class names"):
        read_class_names(path)


def test_file_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="absent: no such file"):
        read_list(tmp_path / "absent", 3)
    with pytest.raises(InputError, match="is a directory"):
        read_list(tmp_path, 3)
    with pytest.raises(InputError, match="not a text file"):
        read_list(write(tmp_path, b"\xff\xfe\x00\x80\n"), 3)


def test_class_names(tmp_path):
    assert read_class_names(write(tmp_path, b"moving left\r\nmoving right\r\n")) == ("moving left", "moving right")
    with pytest.raises(InputError, match="'walk' is there twice"):
        read_class_names(write(tmp_path, b"walk\nrun\nwalk\n"))
