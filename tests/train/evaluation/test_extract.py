"""`python -m train extract`: a file of features a video, gone on with where it stopped, never of mixed settings."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import tam_triton
from tests.support.pages import run_page, text
from tests.support.video_files import VP9, encode, striped_frames
from tests.train.evaluation.test_testing import make_trained, make_video
from train.__main__ import main
from train.checkpoint import save_checkpoint
from train.data.entries import Entry
from train.errors import InputError
from train.evaluation import extract
from train.evaluation.extract_config import ExtractConfig
from train.evaluation.places import output_paths
from train.recipes import RECIPES

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    for folder in ("a", "b"):
        (root / folder).mkdir()
    encode(root / "a" / "one.mp4", striped_frames(20))
    encode(root / "b" / "one.mp4", striped_frames(30)[::-1])
    encode(root / "b" / "one.webm", striped_frames(30), VP9)
    (root / "b" / "broken.mp4").write_bytes(b"no video" * 100)
    make_video(root / "frames", 12, 1)
    sampling = replace(RECIPES["demo"].sampling, num_segments=4)
    save_checkpoint(root / "best.pt", make_trained(sampling=sampling))
    save_checkpoint(root / "other.pt", make_trained(sampling=replace(sampling, kind="dense")))
    return root


@pytest.fixture(autouse=True)
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    yield place
    shutil.rmtree(place / "out", ignore_errors=True)


def extracted(capsys, *arguments, workers=0):
    options = ("--out", "out", "--device", "cpu", "--threads", "1", "--workers", workers)
    status = main(["extract", *map(str, (*options, *arguments))])
    said = capsys.readouterr()
    return status, said.out.splitlines(), said.err


def read(path):
    with safe_open(path, framework="np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118 (it is no dict)


def test_files_and_what_they_say(here, capsys):
    """What the library gives, too; the rest is done where a video cannot be read, and nothing twice the next time."""
    status, lines, said = extracted(capsys, "best.pt", "a", "b", "frames", workers=1)
    assert status == 1
    assert lines == ["4 of 5 videos written to out, 0 kept, 1 cannot be read"]
    assert "cannot be read: b/broken.mp4: is not a video file" in said
    assert "error: 1 of 5 videos cannot be read" in said
    names = ["a/one.mp4", "b/one.mp4", "b/one.webm", "frames"]
    assert sorted(p.relative_to(here / "out").as_posix() for p in (here / "out").rglob("*") if p.is_file()) == [
        f"{name}.safetensors" for name in names
    ]
    model = tam_triton.load("best.pt")
    for name in names[:3]:
        arrays, metadata = read(f"out/{name}.safetensors")
        assert list(arrays) == ["features"]
        np.testing.assert_allclose(arrays["features"], model.features(name).numpy(), rtol=1e-4, atol=1e-5)
        assert json.loads(metadata["video"]) == str(here / name)
        assert json.loads(metadata["fingerprint"]).startswith("sha256:")
        assert json.loads(metadata["sampling"])["num_segments"] == 4
        assert json.loads(metadata["transforms"])["crop_size"] == 64
        assert tam_triton.__version__ in json.loads(metadata["library"])
    before = {path: path.stat().st_mtime_ns for path in (here / "out").rglob("*.safetensors")}
    assert extracted(capsys, "best.pt", "a", "frames")[:2] == (0, ["0 of 2 videos written to out, 2 kept"])
    assert {path: path.stat().st_mtime_ns for path in (here / "out").rglob("*.safetensors")} == before


@pytest.mark.parametrize("form", ["safetensors", "npz"])
def test_segments_and_maps(here, capsys, form):
    options = ("--per-segment", "--maps", "layer3", "layer4", "--format", form)
    assert extracted(capsys, "best.pt", "a/one.mp4", *options)[0] == 0
    if form == "npz":
        with np.load("out/a/one.mp4.npz") as file:
            arrays = {name: file[name] for name in file.files}
        assert json.loads(str(arrays.pop("metadata")))["maps"] == ["layer3", "layer4"]
    else:
        arrays, _ = read("out/a/one.mp4.safetensors")
    assert {name: array.shape for name, array in arrays.items()} == {
        "features": (4, 128),
        "maps.layer3": (4, 64, 4, 4),
        "maps.layer4": (4, 128, 2, 2),
    }
    model = tam_triton.load("best.pt")
    expected = {f"maps.{name}": each for name, each in model.feature_maps("a/one.mp4", ["layer3", "layer4"]).items()}
    expected["features"] = model.features("a/one.mp4", per_segment=True)
    for name, array in arrays.items():
        np.testing.assert_allclose(array, expected[name].numpy(), rtol=1e-4, atol=1e-5)
    assert extracted(capsys, "best.pt", "a/one.mp4", *options)[1] == ["0 of 1 videos written to out, 1 kept"]


def test_several_views_have_a_row_each(here, capsys):
    """The middle one of three crops of the middle clip is the view of a validation; files of one view are others."""
    assert extracted(capsys, "best.pt", "a/one.mp4", "--maps", "layer4", "--out", "out/one")[0] == 0
    views = ("--views.clips", "3", "--views.crops", "3", "--batch-size", "4", "--maps", "layer4", "--per-segment")
    assert extracted(capsys, "best.pt", "a/one.mp4", *views, workers=1)[0] == 0
    arrays, metadata = read("out/a/one.mp4.safetensors")
    assert {name: array.shape for name, array in arrays.items()} == {
        "features": (9, 4, 128),
        "maps.layer4": (9, 4, 128, 2, 2),
    }
    assert not np.allclose(arrays["features"][0], arrays["features"][8])
    assert (json.loads(metadata["views"])["clips"], json.loads(metadata["views"])["crops"]) == (3, 3)
    assert extracted(capsys, "best.pt", "a/one.mp4", *views)[1] == ["0 of 1 videos written to out, 1 kept"]
    assert "was made otherwise" in extracted(capsys, "best.pt", "a/one.mp4")[2]
    crops = ("--views.crops", "3", "--overwrite", "--maps", "layer4")
    assert extracted(capsys, "best.pt", "a/one.mp4", *crops)[0] == 0
    (three, _), (one, _) = read("out/a/one.mp4.safetensors"), read("out/one/a/one.mp4.safetensors")
    for name, array in one.items():
        np.testing.assert_allclose(three[name][1], array, rtol=1e-4, atol=1e-5)


def test_files_of_other_settings_are_refused_and_named(here, capsys):
    assert extracted(capsys, "best.pt", "a")[0] == 0
    content = (here / "out/a/one.mp4.safetensors").read_bytes()
    arrays, metadata = read("out/a/one.mp4.safetensors")
    for arguments, message in (
        (
            ("best.pt", "a", "b/one.mp4", "--per-segment"),
            "features mean over segments (D,) there, per segment (T, D) now",
        ),
        (("other.pt", "a"), "fingerprint sha256:"),
    ):
        status, lines, said = extracted(capsys, *arguments)
        assert (status, lines) == (1, [])
        assert "error: out/a/one.mp4.safetensors: was made otherwise: " in said
        assert message in said
        assert [path.read_bytes() for path in (here / "out").rglob("*.safetensors")] == [content]
    assert extracted(capsys, "other.pt", "a", "--overwrite")[:2] == (0, ["1 of 1 videos written to out, 0 kept"])
    assert (here / "out/a/one.mp4.safetensors").read_bytes() != content
    (here / "out/a/one.mp4.safetensors").write_bytes(content[:50])
    assert "is no file of features, or is damaged" in extracted(capsys, "best.pt", "a")[2]
    assert extracted(capsys, "best.pt", "a", "--overwrite")[0] == 0
    again, metadata_again = read("out/a/one.mp4.safetensors")
    assert (again["features"].tolist(), metadata_again) == (arrays["features"].tolist(), metadata)


def test_other_pictures_in_a_folder_are_another_video(here, capsys):
    folder = here / "again"
    shutil.copytree(here / "frames", folder)
    try:
        assert extracted(capsys, "best.pt", "again")[:2] == (0, ["1 of 1 videos written to out, 0 kept"])
        assert extracted(capsys, "best.pt", "again")[:2] == (0, ["0 of 1 videos written to out, 1 kept"])
        (folder / "img_00012.png").unlink()
        status, _, said = extracted(capsys, "best.pt", "again")
        assert status == 1
        assert "again.safetensors: was made otherwise: video_bytes " in said
        path = here / "out/again.safetensors"
        arrays, metadata = read(path)
        save_file(arrays, path, metadata | {"video_bytes": "null"})  # as it was written before folders had a size
        assert extracted(capsys, "best.pt", "again")[:2] == (0, ["0 of 1 videos written to out, 1 kept"])
    finally:
        shutil.rmtree(folder)


def test_a_full_disk_in_the_middle(here, capsys, monkeypatch):
    """What was done is kept, the file is named, and the next run goes on."""
    written: list[str] = []

    def write(path, *rest):
        if len(written) == 1:
            raise OSError(28, "No space left on device", str(path))
        written.append(str(path))
        return original(path, *rest)

    original = extract.write_features
    monkeypatch.setattr(extract, "write_features", write)
    status, lines, said = extracted(capsys, "best.pt", "a", "b/one.mp4", "b/one.webm")
    assert status == 1
    assert lines == ["1 of 3 videos written to out, 0 kept, 2 left for the same command to go on with"]
    assert "error: [Errno 28] No space left on device: 'out/b/one.mp4.safetensors'" in said
    monkeypatch.undo()
    monkeypatch.chdir(here)
    status, lines, _ = extracted(capsys, "best.pt", "a", "b/one.mp4", "b/one.webm")
    assert (status, lines) == (0, ["2 of 3 videos written to out, 1 kept"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("best.pt", "a", "--maps", "layer9"), "maps: got 'layer9', expected modules of the network: conv1, bn1"),
        (("best.pt", "a/*.mov"), "a/*.mov: matches nothing"),
        (("a/one.mp4", "a"), "a/one.mp4: is not a checkpoint"),
    ],
)
def test_what_cannot_be_extracted(here, capsys, arguments, message):
    status, _, said = extracted(capsys, *arguments)
    assert status == 1
    assert message in said
    assert not (here / "out").exists()


def test_layers_that_are_named_twice():
    with pytest.raises(InputError, match="expected names of layers, each once"):
        ExtractConfig(("c", "v"), maps=("layer3", "layer3"))


def test_files_of_videos_elsewhere(here, tmp_path):
    inside, outside = Entry(here / "x" / "one.mp4", 0), Entry(tmp_path / "one.mp4", 0)
    assert list(output_paths([inside, outside], here / "out", ".npz")) == [
        here / "out" / "x" / "one.mp4.npz",
        here / "out" / tmp_path.relative_to("/") / "one.mp4.npz",
    ]
    clash = Entry(here / tmp_path.relative_to("/") / "one.mp4", 0)
    with pytest.raises(InputError, match="would be of two videos"):
        output_paths([outside, clash], here / "out", ".npz")


def test_the_page(here, capsys, tmp_path, monkeypatch):
    """Its code reads what its command writes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "videos/val/waving").mkdir(parents=True)
    shutil.copy(here / "a" / "one.mp4", "videos/val/waving")
    assert main(["extract", str(here / "best.pt"), "videos", "--out", "runs/features", "--workers", "0"]) == 0
    names = run_page("docs/predicting.md")
    assert names["features"].shape == (128,)
    metadata = text("docs/predicting.md").split("The metadata")[1].split("A file lies")[0]
    assert names["made_of"].keys() - {"weights"} == set(re.findall(r"`(\w+)`", metadata)) - {"metadata"}
