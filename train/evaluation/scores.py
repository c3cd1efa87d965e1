"""The scores of a test, video by video: how good they are, and the file that holds them.

A score is what a class got, as logit or as probability, averaged over all views of a video. Only videos of which every
view could be read have scores; the others are kept by name, with the reason, and never take part unseen.
"""

import json
import math
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from train.atomic import replacing
from train.errors import InputError
from train.fields import parse_json

FORMAT = "tam_triton/scores/1"

Kind = Literal["logits", "probabilities"]


class Missing(NamedTuple):
    """A video that has no scores, and why."""

    video: str
    label: int
    reason: str
    cause: str = "missing"
    """Of which kind the reason is: videos are counted by it."""


@dataclass(frozen=True)
class Accuracy:
    """Top-1 and top-5, from 0 to 1: of the videos that were read, and of all if the missing ones count as wrong."""

    videos: int
    missing: int
    top1: float
    top5: float
    top1_of_all: float
    top5_of_all: float


@dataclass(frozen=True)
class VideoScores:
    """What a network, or several, made of n videos.

    Raises InputError where the parts do not fit together or have other types, a name is there twice, a score is no
    number, or probabilities are none.
    """

    videos: tuple[str, ...]
    """Names, in the order of the data set's list; paths from the folder that is common to all."""
    labels: NDArray[np.int64]
    """(n,)"""
    scores: NDArray[np.float32]
    """(n, classes)"""
    class_names: tuple[str, ...]
    kind: Kind
    missing: tuple[Missing, ...] = ()
    protocol: dict[str, Any] = field(default_factory=dict)
    """How the scores came about, in the types that JSON has."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InputError(f"kind: got {self.kind!r}, expected one of {', '.join(get_args(Kind))}")
        videos, classes = len(self.videos), len(self.class_names)
        _check_type("scores", self.scores, np.float32)
        _check_type("labels", self.labels, np.int64)
        for name, expected in {"scores": (videos, classes), "labels": (videos,)}.items():
            if (shape := getattr(self, name).shape) != expected:
                raise InputError(f"{name}: got shape {shape}, expected {expected}, {videos} videos × {classes} classes")
        every_label = [*self.labels.tolist(), *(missing.label for missing in self.missing)]
        if outside := [label for label in every_label if not 0 <= label < classes]:
            raise InputError(f"labels: got {outside[0]}, expected numbers from 0 to {classes - 1}")
        names = [*self.videos, *(missing.video for missing in self.missing)]
        for name, texts in {"videos": names, "class_names": self.class_names}.items():
            if twice := [text for text, count in Counter(texts).items() if count > 1]:
                raise InputError(f"{name}: {twice[0]!r} is there twice")
        self._refuse(np.any(~np.isfinite(self.scores), axis=1), "no finite numbers")
        if self.kind == "probabilities":
            wrong = (self.scores.min(1, initial=0) < 0) | (np.abs(self.scores.sum(1) - 1) > 1e-3)
            self._refuse(wrong, "no probabilities, numbers from 0 on that sum to 1")

    def _refuse(self, wrong: NDArray[np.bool_], what: str) -> None:
        """Raise InputError if a video is `wrong` (n,)."""
        if wrong.any():
            first = int(wrong.argmax())
            raise InputError(
                f"scores: those of {wrong.sum()} videos are {what}; the first is {self.videos[first]}, "
                f"from {self.scores[first].min():g} on, sum {self.scores[first].sum():g}"
            )

    def __len__(self) -> int:
        return len(self.videos)

    @property
    def entries(self) -> int:
        """How many videos the index lists, those without scores included."""
        return len(self.videos) + len(self.missing)

    @property
    def causes(self) -> dict[str, int]:
        """How many videos have no scores, by cause."""
        return dict(Counter(missing.cause for missing in self.missing))

    @property
    def predicted(self) -> NDArray[np.int64]:
        """(n,) the class with the highest score; of equals the first."""
        return self.scores.argmax(1)

    @property
    def ranks(self) -> NDArray[np.int64]:
        """(n,) how many classes come before the right one. Of equal scores the class with the lower number does, so
        that a network that gives all classes the same is no better than chance."""
        own = np.take_along_axis(self.scores, self.labels[:, None], 1)
        earlier = np.arange(len(self.class_names)) < self.labels[:, None]
        return ((self.scores > own) | ((self.scores == own) & earlier)).sum(1)

    def accuracy(self) -> Accuracy:
        """How good the scores are. Raises InputError if there are none."""
        if len(self) == 0:
            raise InputError(f"none of the {len(self.missing)} videos can be read")
        top1, top5 = int((self.ranks < 1).sum()), int((self.ranks < 5).sum())
        read, total = len(self), self.entries
        return Accuracy(read, len(self.missing), top1 / read, top5 / read, top1 / total, top5 / total)

    def save(self, path: Path) -> None:
        """Write to `path`, for NumPy to load without pickle: the arrays of `_ARRAYS`; replaces what is there at once.

        Raises OSError.
        """
        content = {
            "format": FORMAT,
            "entries": self.entries,
            "videos": self.videos,
            "labels": self.labels,
            "scores": self.scores,
            "class_names": self.class_names,
            "kind": self.kind,
            "protocol": json.dumps(self.protocol),
            **{f"missing_{name}s": [getattr(row, name) for row in self.missing] for name in Missing._fields},
        }
        arrays: dict[str, Any] = {name: np.array(value, _ARRAYS[name][0]) for name, value in content.items()}
        with replacing(path) as unfinished, unfinished.open("wb") as file:
            np.savez_compressed(file, **arrays)

    @staticmethod
    def load(path: Path) -> "VideoScores":
        """The scores that `save` wrote at `path`. InputError if there is no such file, or another one."""
        try:
            # Opened here, since NumPy leaves a file open in which it finds nothing.
            with path.open("rb") as file:
                _check_sizes(file)
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                content = _read_arrays(arrays)
            return _from_arrays(content)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
            raise InputError(f"{path}: {(error.strerror or str(error)).lower()}") from error
        except Exception as error:  # damaged bytes can raise anything
            raise InputError(
                f"{path}: is no file of scores that `python -m train test` writes, or a damaged one"
            ) from error


# What a file of scores consists of: types and numbers of dimensions.
_ARRAYS: dict[str, tuple[type[np.generic], int]] = {
    "format": (np.str_, 0),
    "entries": (np.int64, 0),
    "videos": (np.str_, 1),
    "labels": (np.int64, 1),
    "scores": (np.float32, 2),
    "class_names": (np.str_, 1),
    "kind": (np.str_, 0),
    "missing_videos": (np.str_, 1),
    "missing_labels": (np.int64, 1),
    "missing_reasons": (np.str_, 1),
    "missing_causes": (np.str_, 1),
    "protocol": (np.str_, 0),
}
# Files that were written before these came have none.
_ADDED = ("entries", "missing_causes")
_SMALL = 2**24
_MOST_SHRUNK = 100


def _check_sizes(file: IO[bytes]) -> None:
    """Raise InputError, before anything is allocated, where arrays say that they are larger than what is there.

    A file of real scores shrinks by far less than `_MOST_SHRUNK`; one that unpacks to more is made to fill a memory.
    """
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
        unpacked, packed = (sum(sizes) for sizes in ([p.file_size for p in parts], [p.compress_size for p in parts]))
        if unpacked > _SMALL + _MOST_SHRUNK * packed:
            raise InputError(
                f"unpacks to {unpacked} bytes from {packed}, expected at most {_MOST_SHRUNK} times as many"
            )
        for part in parts:
            with archive.open(part) as opened:
                version = np.lib.format.read_magic(opened)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(opened)
                expected = opened.tell() + math.prod(shape) * dtype.itemsize
            if part.file_size != expected:
                raise InputError(
                    f"{part.filename}: is of {part.file_size} bytes, expected {expected} for shape {shape}"
                )


def _read_arrays(arrays: Any) -> dict[str, NDArray[Any]]:
    """The arrays of an opened npz, as `_ARRAYS` says they are. KeyError if one is not there."""
    content: dict[str, NDArray[Any]] = {}
    for name, (kind, ndim) in _ARRAYS.items():
        if name in _ADDED and name not in arrays.files:
            continue
        array = content[name] = arrays[name]
        _check_type(name, array, kind)
        if array.ndim != ndim:
            raise InputError(f"{name}: got shape {array.shape}, expected {ndim} dimensions")
        if name == "format" and array.item() != FORMAT:
            raise InputError(f"holds scores of format {array.item()!r}, expected {FORMAT!r}")
        if name.startswith("missing_") and array.shape != (expected := content["missing_videos"].shape):
            raise InputError(f"{name}: got shape {array.shape}, expected {expected}, one for each of missing_videos")
    return content


def _from_arrays(content: dict[str, NDArray[Any]]) -> VideoScores:
    protocol = parse_json(content["protocol"].item())
    if not isinstance(protocol, dict):
        raise InputError(f"protocol: got {type(protocol).__name__}, expected an object")
    columns = [array.tolist() for name, array in content.items() if name.startswith("missing_")]
    scores = VideoScores(
        tuple(content["videos"].tolist()),
        content["labels"],
        content["scores"],
        tuple(content["class_names"].tolist()),
        content["kind"].item(),
        tuple(Missing(*row) for row in zip(*columns, strict=True)),
        protocol,
    )
    if (entries := content.get("entries", scores.entries)) != scores.entries:
        raise InputError(
            f"has scores of {len(scores)} videos and lacks those of {len(scores.missing)}, expected {entries} in all, "
            "as many as the index had"
        )
    return scores


def _check_type(name: str, array: NDArray[Any], kind: type[np.generic]) -> None:
    expected = "texts" if kind is np.str_ else kind.__name__
    if not isinstance(array, np.ndarray):
        raise InputError(f"{name}: got {type(array).__name__}, expected an array of {expected}")
    if not np.issubdtype(array.dtype, kind):
        raise InputError(f"{name}: got dtype {array.dtype}, expected {expected}")
