"""A trained network with all that it takes to use it: what `python -m train fit` leaves, in a program of your own."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from tam_triton.checks import check_count
from tam_triton.clips import middle_frames, normalize, resize_short_side, slide_crops
from tam_triton.features import Features, record_features

if TYPE_CHECKING:
    from tam_triton.streaming import ClassifierStream

FORMAT = "tam_triton/train/2"
"""Of the checkpoints of training runs."""


class Prediction(NamedTuple):
    """A class and its probability."""

    class_name: str
    probability: float


def most_probable(logits: Tensor, class_names: Sequence[str], top: int) -> list[Prediction]:
    """The `top` most probable classes by logits (classes,), the best first.

    Raises ValueError unless there are as many names.
    """
    if len(logits) != len(class_names):
        raise ValueError(f"class_names: got {len(class_names)}, expected one for each of the network's {len(logits)}")
    best = logits.softmax(0).topk(min(top, len(class_names)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [Prediction(class_names[index], probability) for index, probability in pairs]


class VideoClassifier(nn.Module):
    """A network, the names of its classes, and how it is fed. A call takes clips as `clip` makes them.

    Args:
        network: logits (N, classes) of normalized clips (N, T, 3, H, W).
        class_names: in the order of the logits.
        num_segments: T, frames of a clip.
        reach: of how many consecutive frames the T are taken, from the middle of a video; None takes the middles of T
            equal parts of it. See `clips.middle_frames`.
        short_side: pixels to which the shorter side of frames is resized, …
        crop_size: … and of the square that is cut out of their center.

    Raises:
        TypeError, ValueError: no class names, or a number of frames below 1.
    """

    def __init__(
        self,
        network: nn.Module,
        class_names: Sequence[str],
        *,
        num_segments: int,
        reach: int | None = None,
        short_side: int = 256,
        crop_size: int = 224,
    ) -> None:
        super().__init__()
        check_count("num_segments", num_segments)
        if not class_names:
            raise ValueError("class_names: got none, expected at least one")
        self.network, self.class_names = network, tuple(class_names)
        self.num_segments, self.reach = num_segments, reach
        self.short_side, self.crop_size = short_side, crop_size

    def extra_repr(self) -> str:
        """Of what, and how it is fed."""
        frames = "" if self.reach is None else f" of {self.reach} consecutive ones"
        return (
            f"{len(self.class_names)} classes, {self.num_segments} frames{frames}, short side {self.short_side}, "
            f"crop {self.crop_size}"
        )

    def forward(self, clips: Tensor) -> Tensor:
        """Logits (N, classes) of clips uint8 (N, T, H, W, 3), RGB, on the network's device."""
        return self.network(normalize(clips, next(self.network.parameters()).dtype))

    def clip(self, video: str | os.PathLike[str] | Tensor) -> Tensor:
        """The clip uint8 (T, crop, crop, 3) that the network sees of a video: one view, as a validation takes it.

        Args:
            video: a file, for which PyAV is needed, or all of its frames, uint8 (F, H, W, 3), RGB.

        Raises:
            TypeError, ValueError: no such frames; a file that is no video or is damaged.
            OSError: the file cannot be read.
            ImportError: PyAV is not installed.
        """
        if isinstance(video, Tensor):
            if video.dtype != torch.uint8 or video.ndim != 4 or video.shape[-1] != 3 or video.numel() == 0:
                kind = f"{video.dtype} {tuple(video.shape)}"
                raise ValueError(f"video: got a tensor {kind}, expected frames torch.uint8 (F, H, W, 3)")
            frames = video[self._choose(len(video))]
        elif isinstance(video, str | os.PathLike):
            from tam_triton.pictures import read_frames

            frames = read_frames(Path(video), self._choose)
        else:
            raise TypeError(f"video: got {type(video).__name__}, expected a path or a Tensor of frames")
        (crop,) = slide_crops(resize_short_side(frames, self.short_side), self.crop_size, 1)
        return crop.contiguous()

    @torch.inference_mode()
    def predict(self, video: str | os.PathLike[str] | Tensor, top: int = 5) -> list[Prediction]:
        """The `top` most probable classes of a video, the best first; `video`, and what is raised, as for `clip`.

        The network is taken as it stands: `load` gives it in evaluation mode.
        """
        if top < 1:
            raise ValueError(f"top: got {top}, expected at least 1")
        return most_probable(self(self._batch(video))[0].float(), self.class_names, top)

    @torch.no_grad()  # and no inference mode: what comes of it may be learned from
    def features(self, video: str | os.PathLike[str] | Tensor, *, per_segment: bool = False) -> Tensor:
        """What the network's last layer is given of a video: (D,), averaged over the frames, or, `per_segment`, (T, D).

        `video`, and what is raised, as for `clip`; ValueError, too, for `per_segment` of a network that averages over
        time before its last layer, as SlowFast does.
        """
        return self._record(video).of_clip(0, self.num_segments if per_segment else None)

    @torch.no_grad()
    def feature_maps(self, video: str | os.PathLike[str] | Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """What the modules called `layers`, such as `layer3`, make of a video: (T, C, H, W) each, by name.

        `video`, and what is raised, as for `clip`; ValueError, too, for a name of no module that gives feature maps.
        """
        return {name: maps[0] for name, maps in self._record(video, layers).maps.items()}

    def stream(self, recompute: int | None = None, *, every: int | None = None) -> "ClassifierStream":
        """Classes of what a camera sees now: an object that is called with one frame after the other.

        Args:
            recompute: as for `streaming.NetworkStream`; None computes exactly what `predict` gives for the window.
            every: one frame of so many is taken. By default as in the clips that the network learned from, where these
                were of consecutive frames; for a network that saw whole videos, say a T-th of the frames these had.

        Raises:
            TypeError, ValueError: as `NetworkStream`; `every` is no int, below 1, or needed and not there.
        """
        from tam_triton.streaming import ClassifierStream

        if every is None:
            if self.reach is None:
                raise ValueError(
                    "every: got None, expected a number of frames: this network saw whole videos, one frame of each "
                    f"of {self.num_segments} parts"
                )
            every = self.reach // self.num_segments
        return ClassifierStream(self, recompute, every)

    def _choose(self, num_frames: int) -> list[int]:
        return middle_frames(num_frames, self.num_segments, self.reach)

    def _record(self, video: str | os.PathLike[str] | Tensor, layers: Sequence[str] = ()) -> Features:
        clips = self._batch(video)
        return record_features(self.network, lambda: self(clips), 1, layers)

    def _batch(self, video: str | os.PathLike[str] | Tensor) -> Tensor:
        return self.clip(video)[None].to(next(self.network.parameters()).device)


def load(
    checkpoint: str | os.PathLike[str], *, device: torch.device | str = "cpu", impl: str | None = None
) -> VideoClassifier:
    """The network of a training run's checkpoint, in evaluation mode, with its classes, sampling and normalization.

    Args:
        checkpoint: such as `runs/own/checkpoints/best.pt`. Nothing in it is executed, and its checksums are verified.
        device: where the network is to be.
        impl: of its operators: "triton", "torch", or None to pick by device.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, is no checkpoint of a training run, or holds weights of another network.
        ImportError: torchvision is needed for its network, or timm, and is not installed.
    """
    from tam_triton.nets.archive import read_checkpoint

    path = os.fspath(checkpoint)
    content = read_checkpoint(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(
            f"checkpoint: {path} is none of a training run (format {FORMAT!r}); `tam_triton.nets.load_published` takes "
            "weights alone"
        )
    try:
        recipe, names = content["recipe"], [str(name) for name in content["class_names"]]
        sampling, views = recipe["sampling"], recipe["validation"]
        num_segments = int(sampling["num_segments"])
        network = _network(recipe["model"], len(names), num_segments, impl)
        network.load_state_dict(content["state_dict"])
        classifier = VideoClassifier(
            network,
            names,
            num_segments=num_segments,
            reach=int(sampling["reach"]) if sampling["kind"] == "dense" else None,
            short_side=int(views["short_side"]),
            crop_size=int(views["crop_size"]),
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"checkpoint: {path} does not fit the network that it describes: {reason}") from error
    return classifier.to(device).eval()


def _network(model: Mapping[str, Any], num_classes: int, num_segments: int, impl: str | None) -> nn.Module:
    from tam_triton.nets import create_model, list_options
    from tam_triton.nets.small_resnet import with_head

    system = str(model.get("system") or str(model["kind"]).lower())  # before there were others: TANet, C2D
    options = {name: model[name] for name in list_options(system) if name in model and name != "impl"}
    if impl is not None and "impl" in list_options(system):
        options["impl"] = impl
    network = with_head(model["backbone"], num_classes)
    stages = model.get("stages")  # recipes of before have none
    return create_model(system, *network, num_segments, dropout=model["dropout"], stages=stages, **options)
