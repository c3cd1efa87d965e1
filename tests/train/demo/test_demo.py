import json
import subprocess
import sys
from dataclasses import replace

import matplotlib.image
import pytest
import torch
from matplotlib.axes import Axes

from tam_triton import TAM
from tam_triton.clips import normalize
from tests.support.video_files import bad_videos, cut_without_encoding, encode, striped_frames
from train.__main__ import main
from train.checkpoint import load_checkpoint
from train.data.batches import evaluation_batches
from train.data.dataset import EvaluationClips
from train.data.loader import Loading
from train.data.sources import read_list
from train.demo.config import DemoConfig
from train.demo.demo import run_demo
from train.demo.plots import learned_kernels, plot_curves, plot_kernels
from train.demo.render import CLASS_NAMES
from train.demo.side_by_side import EpochResult
from train.errors import InputError
from train.evaluation.predict import predict
from train.metrics import Score
from train.networks import build_network
from train.recipes import RECIPES


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "run"
    return DemoConfig(out, ("motion",), 4, epochs=2, train_videos=24, val_videos=9, batch_size=8, workers=2, threads=1)


@pytest.fixture(scope="module")
def results(config):
    return run_demo(config)


def val_batches(config):
    (folder,) = config.out.glob("data/*")
    demo = RECIPES["demo"]
    clips = EvaluationClips(read_list(folder / "val.txt", CLASS_NAMES["motion"]), demo.sampling, demo.validation)
    return evaluation_batches(clips, 4, Loading(workers=0))


def log_of(config):
    return [json.loads(line) for line in (config.out / "log.jsonl").read_text().splitlines()]


def test_artefacts(config, results):
    for name in ("curves.png", "kernels.png"):
        picture = matplotlib.image.imread(config.out / name)
        assert picture.shape[0] > 300
        assert picture.std() > 0.05  # something is drawn
    assert {path.name for path in config.out.glob("*.pt")} == {"motion-tanet.pt", "motion-c2d.pt"}
    assert len(list(config.out.glob("data/*/train/*"))) == 24
    log = log_of(config)
    assert [line["event"] for line in log] == ["config", *["epoch"] * 4, "result"]
    assert log[0]["seed"] == 4
    (result,) = results
    assert log[-1]["accuracies"] == result.accuracies
    assert (result.chance, result.videos, result.left_out, result.substituted) == (1 / 8, (24, 9), {}, {})


def test_accuracy_in_the_table_is_that_of_the_checkpoint(config, results, capsys):
    batches = val_batches(config)
    network = load_checkpoint(config.out / "motion-tanet.pt").network
    with torch.inference_mode():
        answers = torch.cat([network(normalize(batch.clips)).argmax(1) == batch.labels for batch in batches])
    assert results[0].accuracies["TANet"] == answers.sum().item() / 9


def test_same_seed_same_numbers_without_workers(config, results, tmp_path, capsys):
    again = replace(config, out=tmp_path / "again", workers=0)
    run_demo(again)
    first, second = ([line for line in log_of(c) if line["event"] == "epoch"] for c in (config, again))
    assert first == second
    assert (config.out / "kernels.png").read_bytes() == (again.out / "kernels.png").read_bytes()
    printed = capsys.readouterr().out
    assert "chance" in printed
    assert "24 + 9" in printed


def test_other_seed_other_numbers(config, results, tmp_path):
    other = replace(config, out=tmp_path / "other", workers=0, seed=5, epochs=1)
    run_demo(other)
    assert log_of(other)[1]["train"] != log_of(config)[1]["train"]


def test_settings_of_torch_are_given_back(config, tmp_path):
    before = torch.get_num_threads()
    with pytest.raises(InputError):
        run_demo(replace(config, out=tmp_path, batch_size=99, threads=before + 1))
    assert torch.get_num_threads() == before
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]


def test_bad_videos_are_counted_and_named(config, results, tmp_path, capsys):
    """The data of a finished run, with files of it damaged since."""
    damaged = replace(config, out=tmp_path / "damaged", epochs=1, workers=1)
    (folder,) = config.out.glob("data/*")
    copy = damaged.out / "data" / folder.name
    copy.parent.mkdir(parents=True)
    subprocess.run(["cp", "-r", folder, copy], check=True)
    (copy / "train/00003.mp4").write_bytes(b"")
    (copy / "val/00002.mp4").unlink()
    (result,) = run_demo(damaged)
    assert [failure.path for failure in result.substituted] == [str(copy / "train/00003.mp4")]
    assert [failure.path for failure in result.left_out] == [str(copy / "val/00002.mp4")]
    assert result.history[-1].val.total == 8
    assert result.history[-1].train.total == 24
    printed = capsys.readouterr().out
    assert "training videos replaced by others because they cannot be read: 1" in printed
    assert f"{copy / 'train/00003.mp4'}: is empty (0 bytes) (1 ×)" in printed
    assert "validation videos left out of the accuracy because they cannot be read: 1" in printed
    assert f"{copy / 'val/00002.mp4'}: no such file or directory" in printed
    assert sum(line["event"] == "unreadable" for line in log_of(damaged)) == 2


def test_any_systems(config, results, tmp_path, capsys):
    """No TANet is among them, so there are no kernels, those of a run before neither."""
    others = replace(config, out=tmp_path / "others", workers=0, epochs=1, systems=("tsm", "global_se", "tanet_a"))
    others.out.mkdir()
    (others.out / "kernels.png").touch()
    (result,) = run_demo(others)
    assert list(result.accuracies) == list(others.systems)
    assert {path.name for path in others.out.iterdir()} == {
        *("curves.png", "log.jsonl", "data"),
        *(f"motion-{system}.pt" for system in others.systems),
    }
    log = log_of(others)
    assert log[0]["systems"] == list(others.systems)
    assert [line["network"] for line in log if line["event"] == "epoch"] == list(others.systems)
    assert log[-1]["accuracies"] == result.accuracies
    for system in others.systems:
        assert load_checkpoint(others.out / f"motion-{system}.pt").recipe.model.system == system
    header, row = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("task", "motion "))]
    assert header.split() == ["task", "chance", *others.systems, "videos", "seconds"]
    assert len(header) == len(row)
    for system, accuracy in result.accuracies.items():
        end = header.index(f" {system} ") + len(system) + 1
        assert row[:end].split()[-1] == f"{accuracy:.1%}"


def test_one_system_alone_learns_as_beside_others(config, results, tmp_path):
    alone = replace(config, out=tmp_path / "alone", workers=0, systems=("tanet",))
    run_demo(alone)
    first, second = ([line for line in log_of(c) if line.get("network") == "TANet"] for c in (config, alone))
    assert first == second
    assert (config.out / "kernels.png").read_bytes() == (alone.out / "kernels.png").read_bytes()


def test_every_network_has_a_color_of_its_own(tmp_path, monkeypatch):
    drawn: dict[str, set] = {}
    plot = Axes.plot

    def noted(self, *arguments, **options):
        drawn.setdefault(options["label"].split(",")[0], set()).add(options["color"])
        return plot(self, *arguments, **options)

    monkeypatch.setattr(Axes, "plot", noted)
    score = Score(correct=1, correct_top5=2, total=2, loss=1.0)
    names = ("C2D", "tsm", "TANet", "global", "local")
    history = [EpochResult(name, epoch, 0.1, score, score) for epoch in (1, 2) for name in names]
    plot_curves(tmp_path / "curves.png", {"order": (history, 0.2)})
    assert list(drawn) == list(names)
    assert len(set.union(*drawn.values())) == len(names)  # one for validation and training, and nobody else's
    assert (drawn["C2D"], drawn["TANet"]) == ({"#d9730d"}, {"#0b6e99"})


def test_learned_kernels_are_those_of_the_modules(config, results, tmp_path):
    torch.manual_seed(0)
    network = build_network(RECIPES["demo"].model, num_classes=8, num_segments=8).eval()
    kernels = learned_kernels(network, val_batches(config))
    assert {name: tuple(kernel.shape) for name, kernel in kernels.items()} == {
        f"layer{i}.0.tam": (9 * 8 * 2**i, 3) for i in (1, 2, 3, 4)
    }
    inputs: list[torch.Tensor] = []
    tam = network.get_submodule("layer2.0.tam")
    assert isinstance(tam, TAM)
    hook = tam.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.inference_mode():
        for batch in val_batches(config):
            network(normalize(batch.clips))
        hook.remove()
        squeezed = torch.cat(inputs).mean((2, 3)).unflatten(0, (9, 8)).transpose(1, 2)
        torch.testing.assert_close(kernels["layer2.0.tam"], tam.branches(squeezed)[1].flatten(0, 1))
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_kernels_of_any_number_of_taps(tmp_path):
    kernel = torch.softmax(torch.randn(50, 5), dim=1)
    plot_kernels(tmp_path / "kernels.png", {"a": {"one.tam": kernel}, "b": {"one.tam": kernel, "two.tam": kernel}})
    assert matplotlib.image.imread(tmp_path / "kernels.png").std() > 0.05


def test_predict_from_the_command_line(config, results, tmp_path):
    video = encode(tmp_path / "large, oddly shaped.mp4", striped_frames(40, 98, 222))
    command = [sys.executable, "-m", "train", "predict", str(config.out / "motion-tanet.pt"), str(video)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    lines = [line.strip().split("%  ") for line in printed.splitlines()]
    trained = load_checkpoint(config.out / "motion-tanet.pt")
    assert len(lines) == 5
    assert {name for _, name in lines} < set(trained.class_names)
    probabilities = [float(percent) for percent, _ in lines]
    assert probabilities == sorted(probabilities, reverse=True)
    everything = predict(trained, video, top=99)
    assert len(everything) == 8
    assert sum(prediction.probability for prediction in everything) == pytest.approx(1, abs=1e-5)
    assert [p.class_name for p in everything[:5]] == [name for _, name in lines]
    assert [100 * p.probability for p in everything[:5]] == pytest.approx(probabilities, abs=0.006)


def test_predict_reads_a_clip_cut_without_encoding(config, results, tmp_path, capsys):
    source = encode(tmp_path / "source.mp4", striped_frames(120), ("libx264", {"g": "120", "bf": "3"}))
    video = cut_without_encoding(tmp_path / "cut.mp4", source, first=80, last=110)
    assert main(["predict", str(config.out / "motion-c2d.pt"), str(video), "--top", "1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_errors_of_predict_are_one_line(config, results, tmp_path, capfd):
    checkpoint = config.out / "motion-tanet.pt"
    bad = bad_videos(tmp_path)
    unreadable = ("absent", "directory", "empty", "garbage", "text", "no_index", "audio_only", "no_frames")
    cases = [([checkpoint, bad[kind]], bad[kind]) for kind in unreadable]
    cases += [([bad["garbage"], bad["garbage"]], bad["garbage"]), ([tmp_path / "no.pt", tmp_path], tmp_path / "no.pt")]
    for arguments, named in cases:
        assert main(["predict", *map(str, arguments)]) == 1
        printed = capfd.readouterr()
        assert printed.out == ""
        lines = [line for line in printed.err.splitlines() if not line.startswith("[")]  # FFmpeg's own remarks
        assert sum(line.startswith("error: ") for line in lines) == 1
        assert any(line.startswith(("error: ", "cannot be read: ")) and str(named) in line for line in lines)
    with pytest.raises(SystemExit):
        main(["predict", str(checkpoint), str(bad["empty"]), "--top", "0"])
    assert "top: got 0, expected at least 1" in " ".join(capfd.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", "0"], "epochs: got 0, expected at least 1"),
        (["--seed", "-1"], "seed: got -1, expected at least 0"),
        (["--lr", "nan"], "lr: got nan, expected a finite number"),
        (["--tasks"], "tasks: got (), expected at least one"),
        (["--systems"], "systems: got (), expected at least one, none of them twice"),
        (["--systems", "tsm", "tsm"], "systems: got ('tsm', 'tsm'), expected at least one, none of them twice"),
        (["--systems", "slowfast_4x16"], "systems: slowfast_4x16: model.backbone: got 'small', expected resnet50"),
        (["--train-videos", "8", "--val-videos", "8", "--batch-size", "9"], "number of videos, 8; got 9"),
    ],
)
def test_errors_of_demo_are_one_line(tmp_path, capsys, options, message):
    assert main(["demo", "--out", str(tmp_path / "out"), "--workers", "0", *options]) == 1
    if "--systems" in options:
        assert not (tmp_path / "out").exists()
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


def test_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["demo", "--out", str(tmp_path / "file" / "out")]) == 1
    assert "file is a file, expected a folder" in capsys.readouterr().err
