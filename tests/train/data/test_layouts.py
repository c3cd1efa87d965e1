"""Data sets that grow, move or hold their splits as folders: what an index keeps of what it knows."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.video_files import VP9, encode, striped_frames
from tests.train.data.test_prepare import some_split, write_index
from train.data.entries import Entry, Split
from train.data.index import Checked, IndexWriter, read_index
from train.data.prepare import PrepareConfig, prepare, run_prepare
from train.errors import InputError


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return encode(tmp_path_factory.mktemp("data") / "b.webm", striped_frames(30), VP9)


def test_what_is_known_of_entries_is_kept_where_others_come_and_go(tmp_path):
    path, split = tmp_path / "index.jsonl", some_split()
    write_index(path, split, range(5))
    new = Entry(Path("/data/a new one.mp4"), 0)
    for changed in (
        replace(split, entries=(new, *split.entries)),
        replace(split, entries=split.entries[3:]),
        replace(
            split, class_names=("0", "a", "b"), entries=tuple(replace(e, label=e.label + 1) for e in split.entries)
        ),
        replace(split, entries=split.entries[::-1]),
    ):
        path.unlink()
        write_index(path, split, range(5))
        writer = IndexWriter(path, changed, Path("/data"), {"min_frames": 1})
        looked_at = [number for number in range(len(changed)) if number not in writer.problems]
        assert [changed.entries[number].path.name for number in looked_at] == [
            entry.path.name for entry in changed.entries if entry == new or "clip 2" in entry.path.name
        ]  # what is new, and what could not be used
        with writer:
            for number in looked_at:
                writer.write(Checked(number, replace(changed.entries[number], num_frames=7)))
        index = read_index(path)
        assert index.split.class_names == changed.class_names
        assert [(entry.path, entry.label) for entry in index.split.entries] == [
            (entry.path, entry.label) for entry in changed.entries
        ]


def test_number_of_frames_that_a_list_has_changed_is_looked_at(tmp_path):
    path, split = tmp_path / "index.jsonl", some_split(2)
    write_index(path, split, range(2))
    changed = replace(
        split, entries=(replace(split.entries[0], num_frames=99), replace(split.entries[1], num_frames=11))
    )
    assert IndexWriter(path, changed, Path("/data"), {"min_frames": 1}).problems.keys() == {1}


def test_what_was_transcoded_is_known_where_others_come(video, tmp_path, capsys):
    """What is looked at again is decoded from end to end: days, of Kinetics."""
    for name in ("x/a.webm", "y/b.webm"):
        (tmp_path / "tree" / name).parent.mkdir(parents=True)
        shutil.copy(video, tmp_path / "tree" / name)
    settings = PrepareConfig(tmp_path / "tree", processes=1, transcode=tmp_path / "small", short_side=32)
    before = prepare(settings)
    shutil.copy(video, tmp_path / "tree/x/0.webm")
    capsys.readouterr()
    after = prepare(settings)
    assert "knows 2 of 3 already" in capsys.readouterr().err
    assert [entry.path.name for entry in after.split.entries] == ["0.webm.mp4", "a.webm.mp4", "b.webm.mp4"]
    assert after.split.entries[1:] == before.split.entries
    assert read_index(settings.index) == after


def test_what_was_found_out_of_pictures_that_begin_at_0_is_kept(tmp_path):
    path = tmp_path / "index.jsonl"
    listed = Split("frames", tuple(Entry(Path(f"/data/{n}"), 0, "frames") for n in range(3)), ("a",))
    with IndexWriter(path, replace(listed, entries=listed.entries[:2]), Path("/data"), {}) as writer:
        for number in (0, 1):
            writer.write(Checked(number, replace(listed.entries[number], num_frames=5, first=number)))
    with IndexWriter(path, listed, Path("/data"), {}) as writer:
        assert writer.problems == {0: None, 1: None}
        writer.write(Checked(2, listed.entries[2]))
    assert [(entry.num_frames, entry.first) for entry in read_index(path).split.entries] == [(5, 0), (5, 1), (None, 1)]
    other = replace(listed, entries=tuple(replace(entry, first=2) for entry in listed.entries))
    assert IndexWriter(path, other, Path("/data"), {}).problems == {}


def test_index_and_videos_that_were_moved_together(video, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    for label in ("x", "y"):
        (here / "videos" / label).mkdir(parents=True)
        shutil.copy(video, here / "videos" / label)
    prepare(PrepareConfig(here / "videos", processes=1))
    here.rename(there)
    split = read_index(there / "videos.index.jsonl").split
    assert [entry.path for entry in split.entries] == [there / f"videos/{label}/b.webm" for label in ("x", "y")]
    listed = replace(split, entries=tuple(replace(entry, num_frames=None) for entry in split.entries))
    with IndexWriter(there / "videos.index.jsonl", listed, there / "videos", {"min_frames": 1}) as writer:
        assert writer.problems == {0: None, 1: None}  # `prepare` there has nothing to look at
    assert json.loads((there / "videos.index.jsonl").read_bytes().splitlines()[0])["root"] == str(there / "videos")


def make_tree(root, *places):
    for place in places:
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_bytes(b"no video")


def test_a_tree_of_splits_gets_an_index_each_with_the_same_classes(video, tmp_path, capsys):
    root = tmp_path / "data"
    for place in ("train/runs", "train/walks", "val/walks"):
        (root / place).mkdir(parents=True)
        shutil.copy(video, root / place / "1.webm")
    (root / "val/empty").mkdir()
    run_prepare(PrepareConfig(root, processes=1))
    for name, labels in (("train", [0, 1]), ("val", [1])):
        split = read_index(root / f"{name}.index.jsonl").split
        assert split.class_names == ("runs", "walks")
        assert [entry.label for entry in split.entries] == labels
    said = capsys.readouterr().err
    assert f"note: {root / 'val'}: folders without a clip are no classes: empty" in said
    assert f"note: {root / 'val'}: has no clip of runs" in said
    shutil.copy(video, root / "val/walks/2.webm")
    run_prepare(PrepareConfig(root, processes=1))
    assert f"{root / 'val.index.jsonl'}: knows 1 of 2 already" in capsys.readouterr().err
    assert len(read_index(root / "val.index.jsonl").split) == 2
    with pytest.raises(InputError, match=r"out: got .*x, but .* holds 2 splits"):
        run_prepare(PrepareConfig(root, out=tmp_path / "x"))


def test_nothing_usable_is_a_failure(tmp_path, capsys):
    make_tree(tmp_path / "a", "runs/1.mp4", "walks/2.mp4")
    with pytest.raises(InputError, match="nothing in a can be used; the reasons stand above"):
        run_prepare(PrepareConfig(tmp_path / "a", processes=1))
    assert "corrupt: " in capsys.readouterr().out
    make_tree(tmp_path / "b", "train/runs/1.mp4", "val/runs/2.mp4", "notes/runs/3.mp4")
    with pytest.raises(InputError, match="holds train and val beside other folders, such as notes"):
        run_prepare(PrepareConfig(tmp_path / "b"))
    (tmp_path / "list.txt").write_text("x 0\n")
    with pytest.raises(InputError, match=r"source: is needed for a file such as .*list\.txt, one of list, frames_list"):
        run_prepare(PrepareConfig(tmp_path / "list.txt"))
