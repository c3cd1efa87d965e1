"""A network on a stream: frame by frame, logits of the window of the last T, with what does not change kept.

Up to its first temporal module a network looks at each frame for itself, and each new frame is computed there once.
Behind it nothing is left as it was when the window moves on by a frame: Θ is made of the whole window (equation 3), V
of a frame and its neighbors (equation 2), and the zeros beyond the window's ends stand beside other frames. So equal
results need all T frames again from there on. What a stream gives up instead, if it is to, is said in frames: the last
r go through these layers again, older ones are taken as they were computed when they were among the last r. X̂, V and Θ
are always made of the whole window.
"""

from typing import Any

import torch
from torch import Tensor, nn

from tam_triton.checks import check_count, check_device, check_dtype, is_autocasting
from tam_triton.classifier import Prediction, VideoClassifier, most_probable
from tam_triton.clips import normalize, resize_short_side, slide_crops
from tam_triton.stream_parts import (
    Flow,
    FrameLogits,
    History,
    Parts,
    first_part,
    framewise_nodes,
    is_temporal,
    second_part,
    trace,
)
from tam_triton.temporal.folding import is_bare


class NetworkStream:
    """Logits of the last T frames of a stream, or of N streams side by side, at each new frame.

    Up to the first temporal module one frame is computed; with `recompute` = T the rest, too, is what the network gives
    for the window, to rounding. With r = `recompute` frames, T > r ≥ 1, it costs r frames; what it differs by is in
    docs/streaming.md. A network without temporal modules costs one frame and is exact.

    The weights are the network's own. The first window is computed a second and a third time to see that the network's
    layers look at each frame for itself, as is taken for granted from then on.

    Args:
        network: as `create_model` gives it, in evaluation mode; SlowFast, whose first layers span frames, is none.
        recompute: r, the frames of the window that go through the layers behind the first temporal module at each new
            frame; None: all T.

    Attributes:
        num_segments: T.
        recompute: r; 1 where there is no temporal module.
        num_seen: frames since the beginning, or since `reset`.
        frames_computed: how many frames each layer is given at a new frame, by the layer's name; for temporal modules
            T, of which TAM reads X̂ of all and the maps of r and of those beside them.

    Raises:
        TypeError: the network gives no logits of frames, has hooks or a forward of its own, or `recompute` is no int.
        ValueError: `recompute` is not from 1 to T, or the network cannot be traced by torch.fx.
    """

    def __init__(self, network: nn.Module, recompute: int | None = None) -> None:
        from tam_triton.nets.video import VideoNetwork

        if not isinstance(network, VideoNetwork):
            raise TypeError(
                f"network: got {type(network).__name__}, expected a VideoNetwork, whose first layers see each frame "
                "for itself"
            )
        if not is_bare(network, VideoNetwork.forward):
            raise TypeError(
                f"network: got {type(network).__name__} with hooks or a forward of its own, "
                "which a stream would not run"
            )
        self.num_segments = network.num_segments
        recompute = self.num_segments if recompute is None else recompute
        check_count("recompute", recompute)
        if recompute > self.num_segments:
            raise ValueError(f"recompute: got {recompute}, expected at most the window's {self.num_segments} frames")
        self.network = network
        self._parts = Parts(network)
        root = FrameLogits(network)
        graph = trace(root)
        framewise = framewise_nodes(graph, root)
        self._once, boundary = first_part(graph, root, framewise)
        self._flow = Flow(self.num_segments, recompute)
        self._again, self._over = second_part(graph, root, framewise, boundary, self._flow)
        self.recompute = self._flow.recompute = recompute if self._over else 1
        self._boundary = len(boundary)
        frames = {node: 1 if node in framewise else self.recompute for node in graph.nodes}
        frames |= {node: self.num_segments for node in graph.nodes if is_temporal(node, root)}
        calls = [node for node in graph.nodes if node.op == "call_module"]
        self.frames_computed = {str(node.target).removeprefix("network."): frames[node] for node in calls}
        self.reset()

    def reset(self) -> None:
        """Forget all frames: the next one begins a new stream, of another size too."""
        self.num_seen = 0
        self._shape: tuple[Any, ...] | None = None
        self._autocast: torch.dtype | None = None
        self._parts.forget()
        self._clip: list[Tensor] = []
        self._values = [History(self.num_segments) for _ in range(self._boundary)]
        self._logits = History(self.num_segments)
        for over in self._over:
            over.reset()

    @torch.no_grad()
    def __call__(self, frame: Tensor) -> Tensor | None:
        """Logits (N, classes) of the window that ends with this frame; None until T frames have come.

        Args:
            frame: (N, 3, H, W), the next frame of each of N streams, normalized as for the network.

        Raises:
            TypeError: it is of another dtype than the weights, without autocast.
            ValueError: it is of another rank, shape, dtype, device or autocast than the one before; the network is in
                training, has other weights than at the frame before, or other layers than when the stream was made; at
                the first window, a layer of the network does more than look at each frame for itself.

        A frame for which anything is raised, memory that was not enough included, is not seen: it may be given again.
        """
        histories = [*self._values, self._logits, *(one for over in self._over for one in over.histories())]
        before = self.num_seen, self._shape, [*self._clip], [one.state() for one in histories]
        try:
            self._check(frame)
            return self._advance(frame)
        except BaseException:
            self.num_seen, self._shape, self._clip, states = before
            for history, state in zip(histories, states, strict=True):
                history.restore(state)
            raise

    def _advance(self, frame: Tensor) -> Tensor | None:
        first = self.num_seen < self.num_segments
        values = self._once(frame)
        for history, value in zip(self._values, values, strict=True):
            history.push(value, 1, frame.shape[0])
        self.num_seen += 1
        if first:
            self._clip.append(frame.clone())  # its memory may be the next frame's
            if self.num_seen < self.num_segments:
                return None
        logits = self._window(self.num_segments if first else self.recompute, new=1)
        if first:
            self._verify(logits)
            self._clip = []
        return logits

    def _window(self, frames: int, new: int) -> Tensor:
        """With so many frames of the window through the second part, `new` of which it has not seen."""
        self._flow.frames, self._flow.new = frames, new
        logits = self._again(*(history.last(frames) for history in self._values))
        self._logits.push(logits, new, self._values[0].streams)
        return self._logits.last(self.num_segments).unflatten(0, (-1, self.num_segments)).mean(1)

    def _verify(self, logits: Tensor) -> None:
        clips = torch.stack(self._clip, 1).flatten(0, 1)
        whole = self.network(clips)
        again = self._window(self.recompute, new=0)
        for found in (logits, again):
            limit = torch.finfo(found.dtype).eps ** 0.5 * whole.abs().max().clamp_min(1e-6)
            if bool((found - whole).abs().max() > limit):
                raise ValueError(
                    f"network: a layer of this {type(self.network).__name__} that is no temporal module does more than "
                    "look at each frame for itself; no stream can be computed by it"
                )

    def _check(self, frame: Tensor) -> None:
        if self.network.training:
            raise ValueError("network: got it in training, expected it in evaluation mode (network.eval())")
        shape = (*frame.shape, frame.dtype, frame.device)
        if frame.ndim != 4 or frame.shape[1] != self.network.in_channels or 0 in frame.shape:
            raise ValueError(
                f"frame: got shape {tuple(frame.shape)}, expected (N, {self.network.in_channels}, H, W) of N streams"
            )
        if self._shape not in (None, shape):
            raise ValueError(f"frame: got {shape}, expected {self._shape} as before; reset() begins a new stream")
        autocast = torch.get_autocast_dtype(frame.device.type) if is_autocasting(frame) else None
        if self._shape is not None and autocast != self._autocast:
            raise ValueError(
                f"autocast: got {autocast}, expected {self._autocast} as before; reset() begins a new stream"
            )
        check_device(frame, self.network)
        check_dtype(frame, self.network)
        if not self._parts.are_there():
            raise ValueError("network: layers of it were replaced since the stream was made, expected a new stream")
        if not self._parts.are_equal():
            raise ValueError(
                "network: its weights are others than at the frame before, expected one network for all frames of a "
                "window; reset() begins a new stream"
            )
        self._shape, self._autocast = shape, autocast

    def __repr__(self) -> str:
        counts: dict[int, int] = {}
        for frames in self.frames_computed.values():
            counts[frames] = counts.get(frames, 0) + 1
        layers = ", ".join(f"{count} of {frames}" for frames, count in sorted(counts.items()))
        return (
            f"{type(self).__name__}({type(self.network).__name__}, a window of {self.num_segments} frames, "
            f"recompute={self.recompute}; layers by frames at each new one: {layers})"
        )


class ClassifierStream:
    """A trained network on the frames of a stream; `VideoClassifier.stream` makes it.

    Args:
        classifier: the network, and how it is fed.
        recompute: as for `NetworkStream`.
        every: one frame of so many is taken; a window spans T times as many.

    Attributes:
        stream: the `NetworkStream`.

    Raises:
        TypeError, ValueError: as `NetworkStream`; `every` is no int or below 1.
    """

    def __init__(self, classifier: VideoClassifier, recompute: int | None, every: int) -> None:
        check_count("every", every)
        self.classifier, self.every = classifier, every
        self.stream = NetworkStream(classifier.network, recompute)
        self._next = self._first = every // 2 if classifier.reach is None else 0  # as `middle_frames` takes them

    def reset(self) -> None:
        """Forget all frames."""
        self.stream.reset()
        self._next = self._first

    def __call__(self, frame: Tensor, top: int = 5) -> list[Prediction] | None:
        """The `top` most probable classes of the window that this frame completes, the best first.

        None for a frame that is passed over, and until there is a window.

        Args:
            frame: uint8 (H, W, 3), RGB, of one size throughout; every frame of the stream in turn.
            top: how many.

        Raises:
            ValueError: it is no such frame, or `top` is below 1; and as `NetworkStream`.
        """
        check_count("top", top)
        if frame.dtype != torch.uint8 or frame.ndim != 3 or frame.shape[-1] != 3 or frame.numel() == 0:
            raise ValueError(f"frame: got {frame.dtype} {tuple(frame.shape)}, expected torch.uint8 (H, W, 3)")
        if self._next > 0:
            self._next -= 1
            return None
        ours = self.classifier
        (crop,) = slide_crops(resize_short_side(frame[None], ours.short_side), ours.crop_size, 1)
        weight = next(ours.network.parameters())
        logits = self.stream(normalize(crop[None].to(weight.device), weight.dtype)[0])
        self._next = self.every - 1
        return None if logits is None else most_probable(logits[0].float(), ours.class_names, top)
