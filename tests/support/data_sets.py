"""Small data sets in the forms in which the real ones are given out, of really encoded videos.

Three classes that a small network learns in seconds: which colour is behind a moving square. The names of classes are
of the real data sets, in an order that is not that of the alphabet wherever the form has an order of its own.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.support.video_files import VP9, encode

CODECS = {
    ".mp4": ("libx264", {}),
    ".mkv": ("libx264", {"g": "12"}),
    ".avi": ("mpeg4", {"g": "12"}),
    ".webm": VP9,
}
COLOURS = ((200, 40, 40), (40, 180, 60), (50, 60, 210))
HEIGHT, WIDTH = 72, 96
VIDEOS = {"train": 18, "val": 9}
KINETICS = ("abseiling", "air drumming", "zumba")  # numbered as sorted
TEMPLATES = ("Turning something upside down", "Holding something", "Moving something up")
BRACKETS = ("Turning [something] upside down", "Holding [something]", "Moving [something] up")


@dataclass(frozen=True)
class DataSet:
    """One data set.

    Attributes:
        source: as `python -m train prepare --source` names its form.
        lists: what is to be prepared, by the name of the split.
        options: more of prepare's.
        class_names: in the order of the labels.
    """

    source: str
    lists: dict[str, Path]
    options: tuple[str, ...]
    class_names: tuple[str, ...]


def clip(split: str, number: int, length: int) -> NDArray[np.uint8]:
    """Frames (T, H, W, 3) of video `number`, of class `number % 3`: a grey square that moves before a noisy colour."""
    rng = np.random.default_rng((number, len(split)))
    noise = rng.integers(0, 30, (length, HEIGHT, WIDTH, 1))
    frames = (noise + COLOURS[number % 3]).astype(np.uint8)
    top, left = rng.integers(0, 40, 2)
    for t, frame in enumerate(frames):
        shift = round(24 * t / length)
        frame[top : top + 24, left + shift : left + shift + 24] = 120
    return frames


def numbered() -> list[tuple[str, int]]:
    return [(split, number) for split, count in VIDEOS.items() for number in range(count)]


def write_video(path: Path, frames: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    encode(path, frames, CODECS[path.suffix])


def write_frames(folder: Path, frames: NDArray[np.uint8], pattern: str) -> None:
    folder.mkdir(parents=True)
    for i, frame in enumerate(frames, start=1):
        Image.fromarray(frame).save(folder / pattern.format(i), quality=95)


def write_lists(root: Path, rows: dict[str, list[str]], suffix: str, header: Sequence[str] = ()) -> dict[str, Path]:
    paths = {split: root / f"{split}{suffix}" for split in rows}
    for split, path in paths.items():
        path.write_text("\n".join([*header, *rows[split]]) + "\n")
    return paths


def kinetics(root: Path, flat: bool = False) -> DataSet:
    """Kinetics' CSV; mp4 files as the usual downloads name them, in class folders, or several kinds in one folder."""
    rows: dict[str, list[str]] = {split: [] for split in VIDEOS}
    for split, number in numbered():
        label, identity = KINETICS[number % 3], f"{split}-_{number:05d}"
        suffix = (".mp4", ".mkv", ".webm")[number // 3 % 3 if flat else 0]
        folder = root / "videos" / ("" if flat else label.replace(" ", "_"))
        write_video(folder / f"{identity}_{number:06d}_{number + 10:06d}{suffix}", clip(split, number, 70))
        rows[split].append(f"{label},{identity},{number},{number + 10},{split}")
    rows["val"].append(f"{KINETICS[0]},takenDown01,3,13,val")
    lists = write_lists(root, rows, ".csv", ["label,youtube_id,time_start,time_end,split"])
    return DataSet("kinetics", lists, ("--root", str(root / "videos")), KINETICS)


def kinetics_flat(root: Path) -> DataSet:
    return kinetics(root, flat=True)


def video_list(root: Path) -> DataSet:
    """mmaction2's list of videos, `path label`: avi and mkv, with blanks in their names."""
    rows: dict[str, list[str]] = {split: [] for split in VIDEOS}
    for split, number in numbered():
        place = Path("clips", split, f"clip no {number}{('.avi', '.mkv')[number // 3 % 2]}")
        write_video(root / place, clip(split, number, 70))
        rows[split].append(f"{place} {number % 3}")
    rows["val"].append("clips/val/lost.avi 0")
    return DataSet("list", write_lists(root, rows, ".txt"), with_names(root, TEMPLATES), TEMPLATES)


def frames_list(root: Path) -> DataSet:
    """The authors' list of frame folders, `folder num_frames label`, of `img_00001.jpg`."""
    rows: dict[str, list[str]] = {split: [] for split in VIDEOS}
    for split, number in numbered():
        write_frames(root / split / str(number), clip(split, number, 20), "img_{:05d}.jpg")
        rows[split].append(f"{split}/{number} 20 {number % 3}")
    rows["val"].append("val/lost 20 0")
    return DataSet("frames_list", write_lists(root, rows, ".txt"), with_names(root, TEMPLATES), TEMPLATES)


def something_v1(root: Path) -> DataSet:
    """Something-Something V1: tables `id;template`, a file of templates, folders of `00001.jpg`."""
    rows: dict[str, list[str]] = {split: [] for split in VIDEOS}
    for split, number in numbered():
        identity = str(1000 * len(split) + number)
        write_frames(root / "frames" / identity, clip(split, number, 20), "{:05d}.jpg")
        rows[split].append(f"{identity};{TEMPLATES[number % 3]}")
    rows["val"].append(f"99;{TEMPLATES[0]}")
    lists = write_lists(root, rows, ".csv")
    return DataSet("something", lists, (*with_names(root, TEMPLATES), "--root", str(root / "frames")), TEMPLATES)


def something_v2(root: Path) -> DataSet:
    """Something-Something V2: `labels.json`, lists in JSON whose templates have brackets, `<id>.webm` in VP9."""
    content: dict[str, list[dict[str, str]]] = {split: [] for split in VIDEOS}
    for split, number in numbered():
        identity = str(1000 * len(split) + number)
        write_video(root / "videos" / f"{identity}.webm", clip(split, number, 24))
        content[split].append({"id": identity, "label": "holding a square", "template": BRACKETS[number % 3]})
    content["val"].append({"id": "99", "label": "holding a book", "template": BRACKETS[1]})
    (root / "labels.json").write_text(json.dumps({name: str(i) for i, name in enumerate(TEMPLATES)}))
    lists = {split: root / f"{split}.json" for split in VIDEOS}
    for split, path in lists.items():
        path.write_text(json.dumps(content[split]))
    options = ("--classes", str(root / "labels.json"), "--root", str(root / "videos"))
    return DataSet("something", lists, options, TEMPLATES)


def tree(root: Path) -> DataSet:
    """Folders `class/clip.mp4`; the last of the validation is no video."""
    for split, number in numbered():
        write_video(root / split / KINETICS[number % 3] / f"{number}.mp4", clip(split, number, 24))
    (root / "val" / KINETICS[0] / "readme.txt").write_text("not a video")
    return DataSet("tree", {split: root / split for split in VIDEOS}, (), KINETICS)


def with_names(root: Path, class_names: Sequence[str]) -> tuple[str, str]:
    (root / "classes.txt").write_text("\n".join(class_names) + "\n")
    return "--classes", str(root / "classes.txt")


DATA_SETS: dict[str, Callable[[Path], DataSet]] = {
    make.__name__: make for make in (kinetics, kinetics_flat, video_list, frames_list, something_v1, something_v2, tree)
}
