"""Files that users hand over and that hold anything: each becomes a value or an InputError that names the file."""

import base64
import json
import random
import tracemalloc
import zipfile
import zlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support.fit_runs import Videos, equal_bits, final_bits, log_of, run_one, tiny_config
from tests.train.test_checkpoint import make_trained, run_of
from train.checkpoint import RunCheckpoints, load_checkpoint
from train.compare.compare import _finished
from train.data.entries import Entry, Split
from train.data.index import Checked, Index, IndexWriter, read_index
from train.data.loader import Loading
from train.data.reader.known import Version, pack
from train.data.reader.packets import Packets
from train.data.sources.kinetics import read_kinetics
from train.data.sources.lists import read_frames_list, read_list
from train.data.sources.something import read_labels, read_something
from train.data.sources.text import read_classes
from train.errors import InputError
from train.evaluation.report import write_report
from train.evaluation.scores import VideoScores
from train.recipe import Recipe
from train.recipes import RECIPES

ADDED = ("from_here", "packets")  # fields that older files do not have
PACKETS = Packets(np.arange(0, 900, 30), np.arange(30) % 10 == 0, np.ones(30, bool), np.ones(30, bool))


@pytest.fixture
def index(tmp_path):
    """A whole index of three entries, one of them unusable."""
    frames = Entry(tmp_path / "b", 1, "frames", 9, "img_{:05d}.jpg")
    entries = (Entry(tmp_path / "a.mp4", 0, packets=pack(Version(9, 9), PACKETS)), frames, Entry(tmp_path / "c.mp4", 1))
    with IndexWriter(tmp_path / "val.jsonl", Split("val", entries, ("x", "y")), tmp_path, {"fast": True}) as writer:
        for number, entry in enumerate(entries):
            problem = ("corrupt", "no picture") if number == 2 else (None, "")
            writer.write(Checked(number, entry, *problem))
    return tmp_path / "val.jsonl"


def read_or_refuse(path):
    """What the index at `path` is, summarized as `test` and `fit` do, or the refusal, which names the file."""
    try:
        found = read_index(path)
    except InputError as error:
        refusal = str(error)
    else:
        assert isinstance(found, Index)
        assert found.summary()
        return found
    assert refusal.startswith(str(path))
    return refusal


def rewrite(path, line, change):
    """Let `change` alter what the line of that number holds."""
    lines = path.read_text().splitlines()
    content = json.loads(lines[line])
    change(content)
    lines[line] = json.dumps(content)
    path.write_text("\n".join(lines) + "\n")


def fields_of(path):
    return [(i, name) for i, line in enumerate(path.read_text().splitlines()[:2]) for name in json.loads(line)]


def test_a_field_that_is_missing_or_has_another_name(index):
    whole = index.read_text()
    for line, name in fields_of(index):
        rewrite(index, line, lambda content, name=name: content.pop(name))
        if name not in ADDED:
            assert f"'{name}'" in read_or_refuse(index)
        index.write_text(whole)
        rewrite(index, line, lambda content, name=name: content.update({f"{name}s": content.pop(name)}))
        assert isinstance(read_or_refuse(index), str) or name in ADDED
        index.write_text(whole)


@pytest.mark.parametrize("value", [None, True, -1, 1.5, 1e400, float("nan"), 10**30, "", "\0", "\ud800", [], [[]], {}])
def test_a_field_that_holds_something_else(index, value):
    whole = index.read_text()
    for line, name in fields_of(index):
        rewrite(index, line, lambda content, name=name: content.update({name: value}))
        read_or_refuse(index)
        index.write_text(whole)


@pytest.mark.parametrize(
    "pattern", ["{", "}", "{a}", "{}{}", "{!r}", "{0.real}", "{:>20000000000}", "{:99999999999d}", "i\0{}"]
)
def test_a_pattern_that_names_no_picture(index, pattern):
    rewrite(index, 2, lambda content: content.update(pattern=pattern))
    assert "pattern" in read_or_refuse(index)


@pytest.mark.parametrize(
    "text",
    ["text", "====", "ü", "A" * 5000, *(base64.b64encode(zlib.compress(bytes(size))).decode() for size in (0, 9, 30))],
)
def test_packets_that_are_none(index, text):
    rewrite(index, 1, lambda content: content.update(packets=text))
    assert "line 2: is no line of an index" in read_or_refuse(index)
    assert "packets: got" in read_or_refuse(index)


def test_packets_with_a_letter_changed_are_refused(index):
    whole, packets = index.read_text(), pack(Version(9, 9), PACKETS)
    for place, letter in enumerate(packets.rstrip("=")):
        other = "A" if letter != "A" else "B"
        rewrite(
            index, 1, lambda content, text=packets[:place] + other + packets[place + 1 :]: content.update(packets=text)
        )
        if place < len(packets.rstrip("=")) - 1:  # of the last letter some bits say nothing
            assert "packets: got" in read_or_refuse(index)
        index.write_text(whole)


def test_packets_that_unpack_to_far_more_are_few(index):
    """No text that is short enough takes more than some megabytes."""
    bomb = base64.b64encode(zlib.compress(bytes(17 + 9 * 300_000), 9)).decode()
    rewrite(index, 1, lambda content: content.update(packets=bomb))
    tracemalloc.start()
    read_or_refuse(index)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_an_index_of_nothing(index):
    rewrite(index, 0, lambda content: content.update(entries=0))
    index.write_text(index.read_text().splitlines()[0] + "\n")
    assert "header.entries: got 0, expected at least 1" in read_or_refuse(index)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 10_000, "null", "[]"])
def test_json_that_is_deep_or_long_or_no_line(index, text):
    lines = index.read_text().splitlines()
    for place in (0, 1):
        index.write_text("\n".join([*lines[:place], text, *lines[place + 1 :]]) + "\n")
        assert f"line {place + 1}: is no line of an index" in read_or_refuse(index)


@pytest.fixture(scope="module")
def trained():
    return make_trained()


PARTS = ["identity", "processes", "accumulate", "learner", "tally", "unreadable", "best", "validated"]
INNER = ["learner.steps", "learner.model", "learner.optimizer", "learner.scaler", "best.step"]


@pytest.mark.parametrize("value", [..., "text", 1.5, [None], [[]], {"a": 1}, torch.zeros(3)])
def test_a_damaged_newest_checkpoint_leads_to_the_one_before(tmp_path, trained, value):
    """Whatever part of the run is gone (...) or another; a value that the part may have is taken."""
    checkpoints = RunCheckpoints(tmp_path, keep=2)
    checkpoints.save(1, trained, run_of(1, {"step": 1}), is_best=True)
    newest = checkpoints.save(2, trained, run_of(2, {"step": 1}), is_best=False)
    whole = torch.load(newest)
    for name in ["recipe", "class_names", "state_dict", *(f"run.{part}" for part in PARTS + INNER)]:
        *above, last = name.split(".")
        torch.save(whole, newest)
        content = torch.load(newest)
        inside = content
        for key in above:
            inside = inside[key]
        if value is ...:
            del inside[last]
        else:
            inside[last] = value
        torch.save(content, newest)
        warnings: list[str] = []
        found = checkpoints.newest(warnings.append)
        assert found
        if found["run"]["learner"]["steps"] == 2:
            assert isinstance(value, dict) or (name, value) == ("run.unreadable", [])
        else:
            assert f"{newest}: is damaged: " in warnings[0]
            assert "trying the checkpoint before it" in warnings[0]


@pytest.mark.parametrize("part", ["model", "optimizer"])
def test_a_newest_checkpoint_of_other_shapes_leads_to_the_one_before(tmp_path, part):
    """Each part is of its type, and whole, and does not fit the network."""
    videos = Videos.make(tmp_path)
    config = tiny_config(tmp_path / "run")
    assert run_one(config, videos) == 0
    expected = final_bits(config.out)
    newest = RunCheckpoints(config.out / "checkpoints", keep=1).by_age()[-1]
    content = torch.load(newest)
    tensors = content["run"]["learner"][part]
    if part == "model":
        name = next(name for name, value in tensors.items() if value.dim() == 4)
        tensors[name] = tensors[name][:-1].clone()
    else:
        state = next(iter(tensors["state"].values()))
        state["momentum_buffer"] = state["momentum_buffer"][:-1].clone()
    torch.save(content, newest)
    assert run_one(replace(config, resume=True), videos) == 0
    assert f"{newest}: is damaged: " in str(log_of(config))
    assert equal_bits(final_bits(config.out), expected)


HUGE = [
    ("optimization", "batch_size", 10**9, "at most 1048576"),
    ("optimization", "batch_size", 10**6, "so many clips that a step's take at most 1 TiB"),
    ("optimization", "epochs", 10**12, "at most 1000000"),
    ("sampling", "num_segments", 10**6, "at most 4096"),
    ("augmentation", "crop_size", 10**5, "at most 8192"),
    ("test", "crop_size", 10**5, "at most 8192"),
    ("model", "kernel_size", 10**9 + 1, "at most 1024"),
    ("model", "alpha", 10**9, "at most 1024"),
]


@pytest.mark.parametrize(("group", "field", "value", "expected"), HUGE)
def test_sizes_that_no_machine_has(group, field, value, expected):
    """Before anything is allocated, whether from a file or from the command line."""
    plain = json.loads(RECIPES["k400-8f"].to_json())
    plain[group][field] = value
    with pytest.raises(InputError, match=rf"{field}: got {value}, expected {expected}"):
        Recipe.from_json(json.dumps(plain))


def test_workers_that_no_machine_has():
    with pytest.raises(InputError, match="workers: got 1000000, expected at most 4096"):
        Loading(workers=10**6)


def test_class_names_that_are_no_text_are_drawn(tmp_path):
    """Halves of surrogate pairs, which names of folders outside UTF-8 become, and what a formula begins with."""
    names = ("a\udcff", "$\\frac", "plain")
    scores = VideoScores(("a", "b", "c"), np.array([0, 1, 2]), np.eye(3, dtype=np.float32), names, "logits")
    write_report(tmp_path, scores)
    assert (tmp_path / "confusion.png").read_bytes()[:4] == b"\x89PNG"
    assert VideoScores.load(tmp_path / "scores.npz").class_names == names


@pytest.mark.parametrize("names", [None, 7, "abc", [1, 2, 3], [b"a", b"b", b"c"], [["a"], "b", "c"]])
def test_class_names_of_a_checkpoint_that_are_no_texts(tmp_path, trained, names):
    path = RunCheckpoints(tmp_path, keep=1).save(1, trained, run_of(1), is_best=False)
    torch.save(torch.load(path) | {"class_names": names}, path)
    with pytest.raises(InputError, match="class_names") as caught:
        load_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_scores_that_would_fill_the_memory(tmp_path):
    """Zeros that pack well, and a shape that the bytes below it do not fill: refused before they are allocated."""
    path = tmp_path / "scores.npz"
    np.savez_compressed(path, scores=np.zeros((10**7, 4), np.float32))
    with zipfile.ZipFile(tmp_path / "claimed.npz", "w") as archive, archive.open("scores.npy", "w") as part:
        np.lib.format.write_array_header_1_0(part, {"descr": "<f4", "fortran_order": False, "shape": (10**8, 4)})
    for file, message in ((path, "unpacks to"), (tmp_path / "claimed.npz", "bytes, expected 1600000128 for shape")):
        tracemalloc.start()
        with pytest.raises(InputError, match=message) as caught:
            VideoScores.load(file)
        assert tracemalloc.get_traced_memory()[1] < 2**22
        tracemalloc.stop()
        assert str(caught.value).startswith(f"{file}: ")


def hurt(content, rng):
    """`content` with a bit flipped, or some bytes cut out, put in or doubled, once or several times."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(content))
        end = at + rng.randrange(1, 40)
        how = rng.randrange(4)
        if how == 0:
            content[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            del content[at:end]
        else:
            content[at:at] = rng.randbytes(3) if how == 2 else content[at:end]
        content = content or bytearray(b"x")
    return bytes(content)


def damaged(path, seed, count):
    """`path` damaged in one way after the other."""
    whole, rng = path.read_bytes(), random.Random(seed)
    for _ in range(count):
        path.write_bytes(hurt(whole, rng))
        yield path


def ends(paths, read):
    """How reading ends: with a value, or with a refusal that names the file."""
    found: Counter[str] = Counter()
    for path in paths:
        try:
            read(path)
            found["value"] += 1
        except InputError as error:
            found["refusal" if str(path) in str(error) else str(error)] += 1
    assert found.keys() <= {"value", "refusal"}
    return found


def test_any_damage_to_scores(tmp_path):
    path = tmp_path / "scores.npz"
    VideoScores(("a", "b", "c"), np.array([0, 1, 1]), np.eye(3, 2, dtype=np.float32), ("x", "y"), "logits").save(path)
    assert ends(damaged(path, 1, 300), lambda path: VideoScores.load(path).accuracy()).total() == 300


def test_any_damage_to_a_recipe(tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text(RECIPES["k400-8f"].to_json())

    def read(path):
        try:
            Recipe.from_json(path.read_bytes().decode(errors="surrogateescape"))
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    found = ends(damaged(path, 2, 300), read)
    assert found["refusal"] > 200


LISTS = {
    "kinetics.csv": (
        "label,youtube_id,time_start,time_end,split\nfalls,abc,1,11,train\nrises,def,2,12,train\n",
        lambda path: read_kinetics(path, path.parent),
    ),
    "videos.txt": ("a.mp4 0\nb.mp4 1\nc d.mp4 1\n", lambda path: read_list(path, ("x", "y"), path.parent)),
    "frames.txt": ("a 6 0\nb 7 1\n", lambda path: read_frames_list(path, ("x", "y"), path.parent)),
    "something.json": (
        '[{"id": "1", "template": "Pulling [something]"}, {"id": "2", "template": "Pushing [something]"}]',
        lambda path: read_something(path, path.parent / "labels.json", path.parent),
    ),
    "labels.json": ('{"Pulling something": "0", "Pushing something": "1"}', read_labels),
    "something.csv": (
        "1;Pulling something\n2;Pushing something\n",
        lambda path: read_something(path, path.parent / "labels.csv", path.parent),
    ),
    "labels.csv": ("Pulling something\nPushing something\n", read_labels),
    "classInd.txt": ("1 falls\n2 rises\n", read_classes),
}


@pytest.mark.parametrize("name", LISTS)
def test_any_damage_to_a_list(tmp_path, name):
    for other, (text, _) in LISTS.items():
        (tmp_path / other).write_text(text)
    for video in ("a.mp4", "b.mp4", "c d.mp4", "1.webm", "2.webm"):
        (tmp_path / video).touch()
    text, read = LISTS[name]
    read(tmp_path / name)
    assert ends(damaged(tmp_path / name, 4, 150), read)["refusal"] > 20


def test_any_damage_to_a_comparison(tmp_path):
    """A result that cannot be used is no result: the system is tested again."""
    path = tmp_path / "comparison.json"
    path.write_text(json.dumps({"identity": {"recipe": json.loads(RECIPES["k400-8f"].to_json())}, "result": {}}))
    assert not any(_finished(path, {"recipe": {"test": None}}) for path in damaged(path, 5, 150))
    for text in ("[" * 100_000, "[]", '{"identity": 3}', '{"identity": {"recipe": []}}'):
        path.write_text(text)
        assert _finished(path, {"recipe": {"test": None}}) is None


def test_any_damage_to_a_checkpoint(tmp_path, trained):
    path = RunCheckpoints(tmp_path, keep=1).save(1, trained, run_of(1, {"step": 1}), is_best=False)
    assert ends(damaged(path, 3, 150), load_checkpoint)["refusal"] > 10


def test_any_damage_to_an_index_is_a_value_or_a_refusal(index):
    refused = [isinstance(read_or_refuse(path), str) for path in damaged(index, 3, 300)]
    assert any(refused)
    assert not all(refused)
