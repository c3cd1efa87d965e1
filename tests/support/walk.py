"""From a folder of videos to a network in use: every command that a newcomer types, one after the other, timed.

`python -m tests.support.walk FOLDER` makes the videos and walks, by the recipe for own videos at a small size, each
command in a process of its own. In a test the commands run in the test's process.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch import nn

import tam_triton

# As phones, browsers and old cameras write them: suffix, codec, its options.
CODECS: tuple[tuple[str, str, dict[str, str]], ...] = (
    (".mp4", "libx264", {"g": "12"}),
    (".webm", "libvpx-vp9", {"cpu-used": "8"}),
    (".avi", "mpeg4", {}),
)
CLASSES = ("geht nach oben", "pendelt hin & her", "ça tombe")
SMALL = (
    "--model.backbone small --model.weights None --augmentation.crop-size 48 --validation.short-side 48 "
    "--validation.crop-size 48 --test.short-side 48 --test.crop-size 48 --optimization.lr 0.2"
)
"""What makes `fit own` small: a network and pictures of the demo's size."""


def make_video(path: Path, label: int, number: int, with_sound: bool) -> None:
    """40 frames of a bright square that rises, swings or falls; every third video is upright."""
    _, codec, options = CODECS[number % len(CODECS)]
    rng = np.random.default_rng((label, number))
    height, width = (96, 64) if number % 3 == 0 else (64, 96)
    with av.open(str(path.absolute()), "w") as container:
        video: Any = container.add_stream(codec, rate=25, options=options)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        sound: Any = container.add_stream("aac", rate=16_000) if with_sound and path.suffix == ".mp4" else None
        for i in range(40):
            picture = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
            along = i * (height - 16) // 40
            top = (height - 16 - along, height // 2, along)[label]
            left = abs(i % 20 - 10) * (width - 16) // 10 if label == 1 else width // 2 - 8
            picture[top : top + 16, left : left + 16] = 240
            for packet in video.encode(av.VideoFrame.from_ndarray(picture, "rgb24")):
                container.mux(packet)
        for packet in video.encode(None):
            container.mux(packet)
        if sound is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), "fltp", "mono")
            silence.sample_rate = 16_000
            for packet in (*sound.encode(silence), *sound.encode(None)):
                container.mux(packet)


def make_videos(root: Path, per_class: int) -> None:
    """`root`/train and `root`/val with a folder for each class, of which val has a third of the videos."""
    for split, first, count in (("train", 0, per_class), ("val", per_class, max(1, per_class // 3))):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(first, first + count):
                place = folder / f"mein Video {number} é{CODECS[number % len(CODECS)][0]}"
                make_video(place, label, number, with_sound=number % 2 == 0)


def walk(folder: Path, run: Callable[..., int], per_class: int = 12, epochs: int = 6) -> dict[str, float]:
    """All steps in `folder`; `run` does one command and gives its exit status. Returns the seconds of each step.

    Raises AssertionError where a step does not do what it should.
    """
    videos, out = folder / "meine Videos", folder / "run"
    make_videos(videos, per_class)
    indices = ["--data.train", f"{videos}/train.index.jsonl", "--data.val", f"{videos}/val.index.jsonl"]
    fit = ["fit", "own", *indices, *SMALL.split(), "--out", str(out)]
    best, test = str(out / "checkpoints/best.pt"), ["--views.short-side", "48", "--views.crop-size", "48"]
    seconds: dict[str, float] = {}

    def step(name: str, *command: str, expected: int = 0, **options: Any) -> None:
        started = time.monotonic()
        status = run(*command, **options)
        seconds[name] = time.monotonic() - started
        assert status == expected, f"{name}: exit status {status}: python -m train {' '.join(command)}"

    step("prepare", "prepare", str(videos))
    begun = [*fit, "--optimization.epochs", str(epochs)]
    step("fit, interrupted", *begun, expected=128 + signal.SIGINT, interrupt=out / "log.jsonl")
    step("fit, resumed", *begun, "--resume")
    step("fit, lengthened", *fit, "--optimization.epochs", str(epochs + 2), "--resume")
    step("test", "test", best, "--out", f"{folder}/middle")
    step("test, 6 views", "test", best, *test, "--views.clips", "2", "--views.crops", "3", "--out", f"{folder}/views")
    step("ensemble", "ensemble", f"{folder}/middle", f"{folder}/views", "--out", f"{folder}/both")
    step("predict a folder", "predict", best, str(videos / "val"))
    started = time.monotonic()
    use(Path(best), next(path for path in sorted((videos / "val").rglob("*")) if path.is_file()))
    seconds["in a program"] = time.monotonic() - started
    return seconds


def use(checkpoint: Path, video: Path) -> None:
    """A program of one's own: names, features, another format, another task."""
    model = tam_triton.load(checkpoint)
    assert {prediction.class_name for prediction in model.predict(video)} == set(CLASSES)
    assert model.features(video).shape == (128,)
    clips = model.clip(video)[None]
    exported = torch.export.export(model, (clips,)).module()
    torch.testing.assert_close(exported(clips), model(clips))
    model.network.register_module("fc", nn.Linear(128, 2))
    nn.functional.cross_entropy(model.train()(clips.repeat(2, 1, 1, 1, 1)), torch.tensor([0, 1])).backward()


def in_a_process(*command: str, interrupt: Path | None = None) -> int:
    """The exit status of `python -m train …`, which gets a SIGINT when the file `interrupt` has told of a step."""
    process = subprocess.Popen([sys.executable, "-m", "train", *command])
    while interrupt is not None and process.poll() is None:
        if interrupt.exists() and '"step"' in interrupt.read_text(encoding="utf-8"):
            process.send_signal(signal.SIGINT)
            break
        time.sleep(0.05)
    return process.wait()


if __name__ == "__main__":
    total = time.monotonic()
    for name, taken in walk(Path(sys.argv[1]), in_a_process).items():
        print(f"{name:<20}{taken:7.1f} s")
    print(f"{'in all':<20}{time.monotonic() - total:7.1f} s")
