"""The scores of a test, video by video: how good they are, and the file that holds them.

A score is what a class got, as logit or as probability, averaged over all views of a video. Only videos of which every
view could be read have scores; the others are kept by name, with the reason, and never take part unseen.
"""

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from train.atomic import replacing
from train.errors import InputError

FORMAT = "tam_triton/scores/1"

Kind = Literal["logits", "probabilities"]


class Missing(NamedTuple):
    """A video that has no scores, and why."""

    video: str
    label: int
    reason: str


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

    Raises InputError where the parts do not fit together, a name is there twice or a score is no number.
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
        videos, classes = len(self.videos), len(self.class_names)
        if self.kind not in get_args(Kind):
            raise InputError(f"kind: got {self.kind!r}, expected one of {', '.join(get_args(Kind))}")
        for name, expected in {"scores": (videos, classes), "labels": (videos,)}.items():
            if (shape := getattr(self, name).shape) != expected:
                raise InputError(f"{name}: got shape {shape}, expected {expected}, {videos} videos × {classes} classes")
        every_label = [*self.labels.tolist(), *(missing.label for missing in self.missing)]
        if outside := [label for label in every_label if not 0 <= label < classes]:
            raise InputError(f"labels: got {outside[0]}, expected numbers from 0 to {classes - 1}")
        names = [*self.videos, *(missing.video for missing in self.missing)]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(f"videos: {twice!r} is there twice")
        spoilt = ~np.isfinite(self.scores).all(1)
        if spoilt.any():
            raise InputError(
                f"scores: those of {spoilt.sum()} videos are no finite numbers, the first is "
                f"{self.videos[int(spoilt.argmax())]}"
            )

    def __len__(self) -> int:
        return len(self.videos)

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
        read, total = len(self), len(self) + len(self.missing)
        return Accuracy(read, len(self.missing), top1 / read, top5 / read, top1 / total, top5 / total)

    def save(self, path: Path) -> None:
        """Write to `path`, for NumPy to load without pickle: an array for each field; replaces what is there at once.

        Raises OSError.
        """
        with replacing(path) as unfinished, unfinished.open("wb") as file:
            np.savez_compressed(
                file,
                format=np.array(FORMAT),
                videos=_texts(self.videos),
                labels=self.labels,
                scores=self.scores,
                class_names=_texts(self.class_names),
                kind=np.array(self.kind),
                missing_videos=_texts([missing.video for missing in self.missing]),
                missing_labels=np.array([missing.label for missing in self.missing], dtype=np.int64),
                missing_reasons=_texts([missing.reason for missing in self.missing]),
                protocol=np.array(json.dumps(self.protocol)),
            )

    @staticmethod
    def load(path: Path) -> "VideoScores":
        """The scores that `save` wrote at `path`. InputError if there is no such file, or another one."""
        try:
            # Opened here, since NumPy leaves a file open in which it finds nothing.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                content = {name: arrays[name] for name in arrays.files}
            if str(content["format"]) != FORMAT:
                raise InputError(f"{path}: holds scores of format {str(content['format'])!r}, expected {FORMAT!r}")
            columns = (content[f"missing_{name}"].tolist() for name in ("videos", "labels", "reasons"))
            return VideoScores(
                tuple(content["videos"].tolist()),
                content["labels"],
                content["scores"],
                tuple(content["class_names"].tolist()),
                content["kind"].item(),
                tuple(Missing(*row) for row in zip(*columns, strict=True)),
                json.loads(str(content["protocol"])),
            )
        except InputError as error:
            raise error if str(error).startswith(f"{path}: ") else InputError(f"{path}: {error}") from error
        except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
            raise InputError(f"{path}: {(error.strerror or str(error)).lower()}") from error
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            raise InputError(f"{path}: is no file of scores that `python -m train test` writes") from error


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    """Probabilities of logits (n, classes)."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def _texts(texts: Sequence[str]) -> NDArray[np.str_]:
    return np.array(texts, dtype=np.str_)
