"""What a trained network sees in a video or stream at each new frame, where what older frames gave is kept."""

import time
from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tam_triton.clips import normalize
from tam_triton.streaming import NetworkStream
from train.data.dataset import crop_views
from train.data.reader import VideoError
from train.errors import InputError
from train.evaluation.predictor import Predictor
from train.evaluation.stream import StreamReader
from train.evaluation.timeline import Seen
from train.evaluation.window_run import WindowRun
from train.evaluation.windows import window_length
from train.precision import autocast


class FrameRun(WindowRun):
    """The predictions of one video or stream, each of the last T of the frames that are taken: one of `every`.

    Args:
        recompute: as for `NetworkStream`.
        window: seconds that T taken frames span, where `every` does not say it.

    All else is as for `WindowRun`.

    Raises:
        InputError: the network, its views or `recompute` are none for a stream.
    """

    def __init__(
        self,
        predictor: Predictor,
        reader: StreamReader,
        recompute: int,
        window: float | None,
        every: int | None,
        top: int = 1,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        super().__init__(predictor, reader, window, None, top, say, every)
        views = predictor.views
        if views.per_video != 1 or views.placement != "middle":
            raise InputError(f"recompute: got {recompute} with {views.per_video} views of a window, expected one")
        try:
            self.stream = NetworkStream(predictor.network.eval(), recompute)
        except (TypeError, ValueError) as error:
            text = str(error).removeprefix("recompute: ")
            raise InputError(f"recompute: {text}") from error

    def __iter__(self) -> Iterator[Seen]:
        """Raises InputError where nothing says which frames are taken, VideoError where T never come, and as before."""
        sampling = self.predictor.trained.recipe.sampling
        taken: deque[int] = deque(maxlen=sampling.num_segments)
        due = first = every = 0
        length = 0.0  # of a window, in seconds
        for moment, frame in self.reader:
            rate = self.reader.rate
            if not every:
                if rate is None:
                    raise InputError("recompute: the stream does not say how many frames a second has")
                every = self.every or max(1, round(self._seconds(rate) * rate / sampling.num_segments))
                self.stride, self.window = every / rate, (length := sampling.num_segments * every / rate)
                due = first = 0 if sampling.kind == "dense" else every // 2  # as a validation takes them
            assert rate is not None
            number = round(moment * rate)
            if number < due:
                continue
            due = number - (number - due) % every + every
            taken.append(number)
            began = time.perf_counter()
            logits = self._logits(frame)
            seconds = time.perf_counter() - began
            if logits is None:
                continue
            start = (taken[0] - first) / rate
            yield self._seen(start, start + length, len(taken), logits, seconds)
        if not self.predictions:
            raise VideoError(
                self.reader.name, f"ends before a window is full: {len(taken)} of {sampling.num_segments} frames"
            )

    def _seconds(self, rate: float) -> float:
        return window_length(self.predictor.trained.recipe.sampling, rate, self.window)

    @torch.inference_mode()
    def _logits(self, frame: Tensor) -> Tensor | None:
        """Logits (classes,) of the window that this frame uint8 (H, W, 3) completes."""
        device = self.predictor.device
        x = normalize(crop_views(frame[None], self.predictor.views).to(device))[0]
        with autocast(device, self.predictor.precision):
            logits = self.stream(x)
        return None if logits is None else logits[0].double().cpu()
