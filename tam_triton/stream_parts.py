"""A network's graph in two parts: what is computed once for a frame, and what is computed of the last frames again.

The second begins at the first modules over time, which are given the last frames and see the whole window: each keeps
what it was given of the frames before.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from tam_triton.functional import aggregate, squeeze
from tam_triton.temporal.base import TemporalModule
from tam_triton.temporal.folding import is_bare, is_ordinary
from tam_triton.temporal.tam import COMPUTE, FORWARD, TAM


class Flow:
    """How many frames of a clip go through the second part, and how many of them have not been there before."""

    def __init__(self, num_segments: int, recompute: int) -> None:
        self.num_segments = self.frames = num_segments
        self.recompute, self.new = recompute, 1


class History:
    """What a layer gave for the last `length` frames, each a tensor (N, …) of its own: layers may write into theirs."""

    def __init__(self, length: int) -> None:
        self._frames: deque[Tensor] = deque(maxlen=length)
        self.streams = 1

    def push(self, x: Tensor, new: int, streams: int) -> None:
        """The frames (N·m, …) take the place of the last m − `new` ones and are followed by no others."""
        self.streams = streams
        count = x.shape[0] // streams
        for _ in range(min(count - new, len(self._frames))):
            self._frames.pop()
        self._frames.extend(x[i::count].clone() for i in range(count))

    def last(self, count: int) -> Tensor:
        """(N·count, …), frames of a stream in a row, in the layout they came in."""
        frames = list(self._frames)[-count:]
        return torch.cat([frame[n : n + 1] for n in range(self.streams) for frame in frames])

    def state(self) -> list[Tensor]:
        """What `restore` takes."""
        return list(self._frames)

    def restore(self, state: Sequence[Tensor]) -> None:
        """Be as it was."""
        self._frames.clear()
        self._frames.extend(state)


class Over(nn.Module):
    """A module over time in the second part: given the last m frames, it sees the window and gives the last m."""

    def __init__(self, module: nn.Module, flow: Flow) -> None:
        super().__init__()
        self.module, self.flow = module, flow
        self.reset()

    def reset(self) -> None:
        """Forget all frames."""
        self.maps = History(self.flow.num_segments)

    def histories(self) -> list[History]:
        """All that it keeps."""
        return [self.maps]

    def forward(self, x: Tensor) -> Tensor:
        """(N·m, C, H, W) → the same, of the window's last m frames."""
        m, T = self.flow.frames, self.flow.num_segments
        return _last(self.module(self.window(x, T)), T, m)

    def window(self, x: Tensor, count: int) -> Tensor:
        """The window's last `count` frames, with the last m as they are now."""
        m, T = self.flow.frames, self.flow.num_segments
        if self.flow.recompute < T:
            self.maps.push(x, self.flow.new, x.shape[0] // m)
        return x if m == T else self.maps.last(count)


class _OverTAM(Over):
    """A TAM: of the window it keeps X̂, and aggregates the last m maps, for which K // 2 before them are needed."""

    module: TAM

    def reset(self) -> None:
        """Forget all frames."""
        super().reset()
        self.squeezed = History(self.flow.num_segments)

    def histories(self) -> list[History]:
        """All that it keeps."""
        return [self.maps, self.squeezed]

    def forward(self, x: Tensor) -> Tensor:
        """(N·m, C, H, W) → the same, of the window's last m frames."""
        tam, m, T = self.module, self.flow.frames, self.flow.num_segments
        if m == self.flow.recompute == T or not _is_known(tam):
            return super().forward(x)
        streams = x.shape[0] // m
        of_frames = squeeze(x, m, impl=tam.impl).transpose(1, 2).flatten(0, 1)
        self.squeezed.push(of_frames, self.flow.new, streams)
        importance, kernel = tam.branches(self.squeezed.last(T).unflatten(0, (streams, T)).transpose(1, 2).contiguous())
        count = min(T, m + tam.kernel_size // 2)
        weights = importance[..., T - count :].contiguous()
        y = aggregate(self.window(x, count), weights, kernel, num_segments=count, impl=tam.impl)
        return _last(y, count, m)


def _is_known(tam: TAM) -> bool:
    """Whether a call of it runs `TAM.compute`, and nothing else."""
    return is_bare(tam, FORWARD) and getattr(tam.compute, "__func__", None) is COMPUTE


def _last(x: Tensor, length: int, count: int) -> Tensor:
    """The last `count` of `length` frames of each stream in (N·length, …)."""
    if count == length:
        return x
    return torch.cat([x[end - count : end] for end in range(length, x.shape[0] + 1, length)])


class Parts:
    """What a network was made of when its graph was: by this a stream notices that it is another one now."""

    def __init__(self, network: nn.Module) -> None:
        modules: list[Any] = list(network.modules())
        self._children = [(one._modules, name, child) for one in modules for name, child in one._modules.items()]
        self._places = [(there, name) for one in modules for there in (one._parameters, one._buffers) for name in there]
        self._tensors: list[tuple[dict[str, Any], str, Tensor, int, int]] | None = None

    def are_there(self) -> bool:
        """Whether all layers are those in the graph."""
        return all(there.get(name) is child for there, name, child in self._children)

    def are_equal(self) -> bool:
        """Whether all weights are what they were at the first such question since `forget`."""
        if self._tensors is None:
            found = ((there, name, there[name]) for there, name in self._places if _tells(there.get(name)))
            self._tensors = [(*one, one[2].data_ptr(), one[2]._version) for one in found]
        return all(
            there.get(name) is tensor and tensor._version == version and tensor.data_ptr() == address
            for there, name, tensor, address, version in self._tensors
        )

    def forget(self) -> None:
        """Take the weights as they will be."""
        self._tensors = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_tensors": None}  # those of a copy are others


def _tells(tensor: Any) -> bool:
    """Whether a tensor stays where it is, as none does that is offloaded, and counts what is written into it."""
    return is_ordinary(tensor) and tensor.device.type != "meta" and not tensor.is_inference()


class FrameLogits(nn.Module):
    """What a graph is made of: a network from frames to their logits."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Any) -> Any:
        """(N·T, 3, H, W) → (N·T, classes)."""
        return self.network.frame_logits(x)


class _Tracer(torch.fx.Tracer):
    """Of a network's layers, where that can be; else of modules of the classes `whole`, each as it is."""

    def __init__(self, whole: tuple[type[nn.Module], ...] = ()) -> None:
        super().__init__()
        self.whole = whole

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a graph calls it."""
        return isinstance(m, (TemporalModule, self.whole)) or super().is_leaf_module(m, module_qualified_name)


def trace(root: FrameLogits) -> torch.fx.Graph:
    """Raises ValueError where torch.fx cannot."""
    from torchvision.models.resnet import BasicBlock, Bottleneck

    try:
        try:
            return _Tracer().trace(root)
        except NotImplementedError:  # a temporal module beside a layer that is none in a graph
            return _Tracer((BasicBlock, Bottleneck)).trace(root)
    except (NotImplementedError, torch.fx.proxy.TraceError, TypeError, RuntimeError) as error:
        name = type(root.network).__name__
        raise ValueError(f"network: got {name}, which torch.fx cannot trace: {error}") from error


def is_temporal(node: torch.fx.Node, root: nn.Module) -> bool:
    """Whether it calls a module that looks at several frames."""
    if node.op != "call_module":
        return False
    modules = root.get_submodule(str(node.target)).modules()
    return any(isinstance(module, TemporalModule) or hasattr(module, "num_segments") for module in modules)


def framewise_nodes(graph: torch.fx.Graph, root: nn.Module) -> set[torch.fx.Node]:
    """The nodes of values that each belong to a frame and to no other."""
    found: set[torch.fx.Node] = set()
    later: set[torch.fx.Node] = set()
    for node in graph.nodes:
        inputs = node.all_input_nodes
        if is_temporal(node, root) or any(source in later for source in inputs):
            later.add(node)
        elif node.op == "placeholder" or any(source in found for source in inputs):
            found.add(node)
    return found - {node for node in graph.nodes if node.op == "output"}


def first_part(
    graph: torch.fx.Graph, root: nn.Module, framewise: set[torch.fx.Node]
) -> tuple[torch.fx.GraphModule, list[torch.fx.Node]]:
    """What is computed once a frame, and the values of it that go on."""
    part, copies = torch.fx.Graph(), dict[torch.fx.Node, torch.fx.Node]()
    for node in graph.nodes:
        if node in framewise or (node.op == "get_attr" and any(user in framewise for user in node.users)):
            copies[node] = part.node_copy(node, copies.__getitem__)
    boundary = [node for node in copies if node in framewise and any(user not in framewise for user in node.users)]
    part.output(tuple(copies[node] for node in boundary))
    return torch.fx.GraphModule(root, part), boundary


def second_part(
    graph: torch.fx.Graph,
    root: FrameLogits,
    framewise: set[torch.fx.Node],
    boundary: Sequence[torch.fx.Node],
    flow: Flow,
) -> tuple[torch.fx.GraphModule, list[Over]]:
    """What is computed of the last frames again, given the values at the `boundary`, and its modules over time."""
    part, over = torch.fx.Graph(), list[Over]()
    copies = {node: part.placeholder(f"value_{i}") for i, node in enumerate(boundary)}
    for node in graph.nodes:
        if node in framewise:
            continue
        if is_temporal(node, root):
            module = root.get_submodule(str(node.target))
            over.append((_OverTAM if isinstance(module, TAM) else Over)(module, flow))
            copies[node] = part.call_module(f"over.{len(over) - 1}", (copies[node.all_input_nodes[0]],))
        else:
            copies[node] = part.node_copy(node, copies.__getitem__)
    modules = nn.Module()
    modules.network, modules.over = root.network, nn.ModuleList(over)
    return torch.fx.GraphModule(modules, part), over
