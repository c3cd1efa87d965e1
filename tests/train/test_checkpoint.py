import errno
import os
import shutil
from dataclasses import replace

import pytest
import torch

from tests.support.video_files import run_python
from train.checkpoint import FORMAT, RunCheckpoints, TrainedNetwork, load_checkpoint, read_checkpoint, save_checkpoint
from train.errors import InputError
from train.networks import build_network
from train.recipe import Model
from train.recipes import RECIPES

NAMES = ("up", "down", "left")


def make_trained(system="tanet", seed=7):
    demo = RECIPES["demo"]
    recipe = replace(demo, model=replace(demo.model, system=system), sampling=replace(demo.sampling, num_segments=4))
    torch.manual_seed(seed)
    network = build_network(recipe.model, 3, 4)
    network(torch.randn(2, 4, 3, 32, 32))  # moves the running statistics
    return TrainedNetwork(network.eval(), recipe, NAMES)


@pytest.fixture(params=["tanet", "c2d"])
def trained(request):
    return make_trained(request.param)


def test_round_trip(tmp_path, trained):
    save_checkpoint(tmp_path / "net.pt", trained)
    loaded = load_checkpoint(tmp_path / "net.pt")
    assert (loaded.recipe, loaded.class_names) == (trained.recipe, NAMES)
    clips = torch.randn(2, 4, 3, 32, 32)
    assert not loaded.network.training
    assert torch.equal(loaded.network(clips), trained.network(clips))
    assert [file.name for file in tmp_path.iterdir()] == ["net.pt"]


# Published; with 16 frames on Kinetics, where nobody says, as much more as on Something-Something.
PARAMETERS = {
    "k400-8f": 25_590_320,
    "k400-16f": 25_590_320 + 25_134_670 - 25_127_246,
    "ssv1-8f": 25_127_246,
    "ssv1-16f": 25_134_670,
    "ssv2-8f": 25_127_246,
    "ssv2-16f": 25_134_670,
    "k400-slowfast-4x16": 34_480_216,
    "k400-slowfast-8x8": 34_566_488,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_networks_of_the_published_recipes(name):
    """Built without their weights, which would have to be downloaded."""
    recipe = RECIPES[name]
    classes, frames = recipe.data.num_classes or 0, recipe.sampling.num_segments
    with torch.device("meta"):
        network = build_network(recipe.model, classes, frames, pretrained=False)
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[name]
    dropout = network.get_submodule("dropout")
    assert isinstance(dropout, torch.nn.Dropout)
    assert dropout.p == recipe.model.dropout


def test_failed_save_keeps_the_old_checkpoint(tmp_path, trained, monkeypatch):
    path = tmp_path / "net.pt"
    save_checkpoint(path, trained)
    before = path.read_bytes()

    def disk_full(content, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, trained)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["net.pt"]


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_truncated(tmp_path, trained, share):
    path = tmp_path / "net.pt"
    save_checkpoint(path, trained)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(InputError, match=r"net\.pt: is not a checkpoint, or a damaged one"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [{"state_dict": {}}, {"format": "another/1"}, [1, 2], torch.zeros(3)])
def test_written_by_something_else(tmp_path, content):
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(InputError, match=r"net\.pt: is not a checkpoint of this program"):
        load_checkpoint(tmp_path / "net.pt")


def test_not_a_checkpoint(tmp_path):
    (tmp_path / "video.mp4").write_bytes(b"\0\0\0\x20ftypisom" * 50)
    with pytest.raises(InputError, match="damaged one"):
        load_checkpoint(tmp_path / "video.mp4")
    with pytest.raises(InputError, match="no such file"):
        load_checkpoint(tmp_path / "absent.pt")
    with pytest.raises(InputError, match="is a directory"):
        load_checkpoint(tmp_path)


class Harmful:
    """Unpickled, it would make a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_nothing_in_it_is_executed(tmp_path):
    torch.save({"format": FORMAT, "network": Harmful(str(tmp_path / "harm"))}, tmp_path / "net.pt")
    with pytest.raises(InputError, match="damaged one"):
        load_checkpoint(tmp_path / "net.pt")
    assert [file.name for file in tmp_path.iterdir()] == ["net.pt"]


def other(recipe, part, **changes):
    return {**recipe, part: {**recipe[part], **changes}}


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("recipe", lambda recipe: other(recipe, "model", backbone="resnet18"), "does not fit"),
        ("recipe", lambda recipe: other(recipe, "model", system="I3D"), "got 'I3D', expected"),
        ("recipe", lambda recipe: {"depth": 50}, "unknown fields"),
        ("class_names", lambda names: names[:2], "does not fit"),
        ("state_dict", lambda state: {}, "Missing key"),
    ],
)
def test_description_that_does_not_fit(tmp_path, trained, key, change, message):
    path = tmp_path / "net.pt"
    save_checkpoint(path, trained)
    content = torch.load(path, weights_only=True)
    torch.save({**content, key: change(content[key])}, path)
    with pytest.raises(InputError, match=message) as caught:
        load_checkpoint(path)
    assert "net.pt" in str(caught.value)
    torch.save({name: part for name, part in content.items() if name != key}, path)
    with pytest.raises(InputError, match="does not fit"):
        load_checkpoint(path)


def test_another_number_of_frames(tmp_path):
    """TAM's weights depend on it."""
    save_checkpoint(tmp_path / "net.pt", make_trained())
    content = torch.load(tmp_path / "net.pt", weights_only=True)
    torch.save(content | {"recipe": other(content["recipe"], "sampling", num_segments=8)}, tmp_path / "net.pt")
    with pytest.raises(InputError, match=r"does not fit the network it describes: .*size mismatch"):
        load_checkpoint(tmp_path / "net.pt")


def test_both_networks_start_from_one_backbone():
    states = {}
    for system in ("tanet", "c2d"):
        torch.manual_seed(0)
        states[system] = build_network(Model(system=system, backbone="small", weights=None), 6, 8).state_dict()
    assert sum(weight.numel() for name, weight in states["tanet"].items() if "tam" in name) > 20_000
    for name, weight in states["c2d"].items():
        assert torch.equal(weight, states["tanet"][name])


def run_of(step, best=None):
    learner = {"steps": step, "model": {}, "optimizer": {}, "scaler": {}, "average": None}
    state = {"identity": {}, "processes": 1, "accumulate": 1, "learner": learner, "tally": torch.zeros(4)}
    return state | {"unreadable": [], "best": best, "validated": 0}


def summed(run):
    """`run` with its sums as numbers, which compare."""
    return run | {"tally": run["tally"].tolist()}


def test_the_last_and_the_best_are_kept(tmp_path):
    checkpoints = RunCheckpoints(tmp_path / "runs", keep=2)
    states = {}
    for step in (2, 4, 9, 10):
        trained = make_trained(seed=step)
        states[step] = trained.network.state_dict()
        checkpoints.save(step, trained, run_of(step), is_best=step == 4)
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == [
        "best.pt",
        "step-00000009.pt",
        "step-00000010.pt",
    ]
    for path, step in ((checkpoints.best, 4), (checkpoints.by_age()[0], 9), (checkpoints.by_age()[1], 10)):
        assert summed(read_checkpoint(path)["run"]) == summed(run_of(step))
        assert torch.equal(load_checkpoint(path).network.state_dict()["fc.weight"], states[step]["fc.weight"])


def test_the_best_is_a_copy_where_files_cannot_have_two_names(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    checkpoints = RunCheckpoints(tmp_path, keep=1)
    path = checkpoints.save(1, make_trained(), run_of(1), is_best=True)
    assert checkpoints.best.read_bytes() == path.read_bytes()
    assert not checkpoints.best.samefile(path)


@pytest.fixture(scope="module")
def saved_three(tmp_path_factory):
    checkpoints = RunCheckpoints(tmp_path_factory.mktemp("three"), keep=3)
    trained = make_trained()
    for step in (1, 2, 3):
        checkpoints.save(step, trained, run_of(step, {"step": 1}), is_best=step == 1)
    return checkpoints.folder


@pytest.fixture
def three(saved_three, tmp_path):
    """Checkpoints of the steps 1, 2 and 3; the best is that of step 1."""
    return RunCheckpoints(shutil.copytree(saved_three, tmp_path / "three"), keep=3)


def damage(path, how):
    whole = path.read_bytes()
    if how == "bit flipped":
        place = len(whole) // 3
        whole = whole[:place] + bytes([whole[place] ^ 64]) + whole[place + 1 :]
    path.unlink()  # under its other name the file stays what it is
    path.write_bytes({"empty": b"", "cut short": whole[:-100], "garbage": b"x" * 1000}.get(how, whole))


@pytest.mark.parametrize("how", ["empty", "cut short", "garbage", "bit flipped"])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_newest_that_is_whole(three, how, count):
    for path in three.by_age()[3 - count :]:
        damage(path, how)
    (three.folder / "step-00000004.pt.77.unfinished").write_bytes(b"what a killed process left")
    warnings: list[str] = []
    content = three.newest(warnings.append)
    assert content is not None
    assert summed(content["run"]) == summed(run_of(3 - count, {"step": 1}))
    assert len(warnings) == count
    assert all(f"step-0000000{3 - i}.pt" in text and "the one before" not in text for i, text in enumerate(warnings))
    assert not list(three.folder.glob("*.unfinished"))


def test_none_is_whole(three):
    for path in three.by_age():
        damage(path, "cut short")
    warnings: list[str] = []
    with pytest.raises(InputError, match="none of the 3 checkpoints can be read"):
        three.newest(warnings.append)
    assert len(warnings) == 3
    assert len(three.by_age()) == 3


def test_no_checkpoint_yet(tmp_path):
    assert RunCheckpoints(tmp_path / "absent", keep=1).newest(pytest.fail) is None


def test_a_damaged_best_is_forgotten(three):
    damage(three.best, "cut short")
    warnings: list[str] = []
    content = three.newest(warnings.append)
    assert content is not None
    assert content["run"]["best"] is None
    assert "best.pt" in warnings[0]


def test_a_best_that_was_not_marked_any_more_is(three):
    three.save(4, make_trained(), run_of(4, {"step": 4}), is_best=False)  # killed just then
    three.newest(pytest.fail)
    assert summed(read_checkpoint(three.best)["run"]) == summed(run_of(4, {"step": 4}))


def test_a_best_of_steps_that_are_taken_anew_is_none(three):
    """Where someone removes the last checkpoints, to go on from before, `best.pt` may be of one of these."""
    three.keep = 4
    three.save(4, make_trained(), run_of(4, {"step": 4}), is_best=True)
    three.by_age()[-1].unlink()
    three.newest(pytest.fail)  # step 3, whose best is step 1, which is there still
    assert summed(read_checkpoint(three.best)["run"]) == summed(run_of(1, {"step": 1}))
    three.save(4, make_trained(), run_of(4, {"step": 4}), is_best=True)
    three.keep = 2
    three.save(5, make_trained(), run_of(5, {"step": 2}), is_best=False)
    warnings: list[str] = []
    content = three.newest(warnings.append)
    assert content is not None
    assert content["run"]["best"] is None
    assert f"{three.best}: is of step 4, expected 2; the next validation makes another" in warnings[0]


def limited(path, limit):
    """Save into a file that the system lets grow to `limit` bytes only, in a process of its own; its error number."""
    code = (
        "import resource, sys; from pathlib import Path; from tests.train.test_checkpoint import *\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)\n"
        "try: RunCheckpoints(Path(sys.argv[1]), 1).save(2, make_trained(seed=2), run_of(2), is_best=True)\n"
        "except OSError as error: print(error.errno)"
    )
    return run_python(code, path, limit).strip()


def test_a_file_that_cannot_grow(tmp_path):
    checkpoints = RunCheckpoints(tmp_path, keep=1)
    checkpoints.save(1, make_trained(), run_of(1), is_best=True)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert limited(tmp_path, 300_000) == str(errno.EFBIG)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
