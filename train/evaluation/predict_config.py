"""What `python -m train predict` is asked for, apart from what does it, so that its help is there at once."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from train.errors import InputError
from train.evaluation.network_config import NetworkConfig
from train.evaluation.places import is_stream
from train.evaluation.view_changes import ViewChanges
from train.fields import check_types, require


@dataclass(frozen=True)
class InputConfig:
    """How FFmpeg is to read a stream, where that does not show by itself."""

    format: str | None = None
    """FFmpeg's name of the format, such as rawvideo."""
    options: tuple[str, ...] = ()
    """FFmpeg's options, KEY=VALUE, such as rtsp_transport=tcp, or video_size=640x480 pixel_format=rgb24 framerate=30
    for rawvideo."""

    def __post_init__(self) -> None:
        check_types(self)
        for option in self.options:
            require(self, "options", "=" in option, f"KEY=VALUE, which {option!r} is not")


@dataclass(frozen=True)
class PredictConfig(NetworkConfig):
    """Name what is in videos: the most probable classes of a trained network, with their probabilities.

    One answer a video; or, for a stream and with --window, --stride, --every or --timeline, one a window of time.
    """

    files: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="CHECKPOINT VIDEO …")]
    """CHECKPOINT VIDEO …, where the checkpoint is of a training run; with --weights videos alone. Videos are files of
    any format and size, folders of them, or quoted patterns ('videos/**/*.mp4'). Or one stream: - (standard input, any
    container that can be read from a pipe), camera (or /dev/video1), rtsp://…, http://…"""
    top: int | None = None
    """How many classes to show; by default 5 of a video, 1 of a window."""
    json: bool = False
    """Print a JSON object a line for each video or window, with its predictions or, where a video cannot be read, the
    error; nothing else on standard output."""
    protocol: Literal["validation", "recipe", "10x3", "4x3", "2x3", "1x1"] = "validation"
    """As how many views a video, or a window, is seen. validation: as the recipe validates. recipe: as it tests.
    Otherwise clips × crops, of 256 pixels; 1x1 is the middle's centre of 224."""
    views: ViewChanges = field(default_factory=ViewChanges)
    batch_size: int = 32
    """Views computed at a time."""
    window: float | None = None
    """Seconds of a window. By default what the network's frames span, where they are consecutive ones (Kinetics);
    networks that saw whole videos (Something-Something) need it: as long as these were."""
    stride: float | None = None
    """Seconds from one window's start to the next one's; by default half a window."""
    every: int | None = None
    """Frames from one window's start to the next one's, by the stream's frames a second: in place of `stride`."""
    recompute: int | None = None
    """Predict at each frame that is taken, one of `every`, and keep what the ones before gave: how many of a window's
    frames are computed again behind the first temporal module. All of them, T, is exact; see docs/streaming.md."""
    timeline: Path | None = None
    """Folder for the classes over time: NAME.png, NAME.csv and NAME.json for each video."""
    overwrite: bool = False
    """Write over the files that are in `timeline`."""
    drop: Literal["auto", "yes", "no"] = "auto"
    """Where the machine is too slow for a stream: leave out windows and the oldest frames, and count them, or let the
    stream wait. auto: what goes on by itself, such as a camera, loses them; standard input waits."""
    buffer: int = 64
    """Frames that are held between reading and the windows."""
    timeout: float = 30.0
    """Seconds without a frame after which a stream, or the decoder of a file in windows, has stalled."""
    input: InputConfig = field(default_factory=InputConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "top", self.top is None or self.top >= 1, "at least 1")
        for name in ("batch_size", "buffer"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("window", "stride"):
            value = getattr(self, name)
            require(self, name, value is None or 0.01 <= value <= 86400, "seconds from 0.01 to 86400")
        require(self, "every", self.every is None or self.every >= 1, "at least 1")
        if self.every is not None and self.stride is not None:
            raise InputError(f"every: got {self.every} beside a stride of {self.stride} s, expected one of them")
        require(self, "recompute", self.recompute is None or self.recompute >= 1, "at least 1")
        if self.recompute is not None and self.stride is not None:
            raise InputError(f"stride: got {self.stride} s, expected none with --recompute, which predicts by --every")
        if self.recompute is not None and self.window is not None and self.every is not None:
            raise InputError(f"window: got {self.window} s, expected none with --recompute and --every, which say it")
        require(self, "timeout", self.timeout > 0, "a number of seconds above 0")
        if self.overwrite and self.timeline is None:
            raise InputError("overwrite: got True without --timeline, which is all that is written")
        if self.stream is None:
            require(self, "drop", self.drop == "auto", "auto, as only a stream can lose frames")
            require(self.input, "format", self.input.format is None, "None, as only streams are told their format")
            require(self.input, "options", not self.input.options, "none, as only streams take them")

    @property
    def stream(self) -> str | None:
        """The stream that is asked for. Raises InputError where it is not alone."""
        streams = [place for place in self.videos if is_stream(place)]
        if streams and len(self.videos) > 1:
            raise InputError(f"files: got {' '.join(self.videos)}, expected a stream ({streams[0]}) alone")
        return streams[0] if streams else None

    @property
    def in_windows(self) -> bool:
        """Whether windows of time are predicted, and not whole videos."""
        asked = (self.window, self.stride, self.every, self.recompute, self.timeline)
        return self.stream is not None or any(value is not None for value in asked)
