"""The networks to measure: C2D, TANet, and TANet with the same weights as its public implementations run it."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 — its usual name

from bench import peers
from bench.options import Options
from bench.shapes import LAYOUTS
from tam_triton import TAM
from tam_triton.nets import C2D, create_model

CLASSES = 400


class SeparateTAM(TAM):
    """TAM behind a BatchNorm and a ReLU that are called as they are."""

    def activated(self, x: Tensor, norm: nn.Module, activation: nn.Module) -> Tensor:
        """One after another."""
        return self(activation(norm(x)))


class EagerTAM(SeparateTAM):
    """TAM in the usual formulation."""

    def forward(self, x: Tensor) -> Tensor:
        """`(N·T, C, H, W)` → the same shape."""
        return peers.tam(self, x)


def eager_twin(network: C2D) -> C2D:
    """The same network, on the very parameters and buffers, with every TAM in the usual formulation."""
    return twin_of(network, EagerTAM)


def separate_twin(network: C2D) -> C2D:
    """The same, with every TAM as it is, and BatchNorm and ReLU before it by themselves."""
    return twin_of(network, SeparateTAM)


def twin_of(network: C2D, kind: type[TAM]) -> C2D:
    """The same network, on the very parameters and buffers, with every TAM of another class."""
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    twin = copy.deepcopy(network, shared)
    for module in twin.modules():
        if isinstance(module, TAM):
            module.__class__ = kind
    return twin


def check_network(system: str, backbone: str, segments: int, **others: Any) -> nn.Module | None:
    """The network without memory, as `create_model` makes it; None of what torch cannot make so.

    Raises:
        ValueError: what `create_model` refuses.
    """
    try:
        with torch.device("meta"):
            return create_model(system, backbone, CLASSES, segments, weights=None, **others)
    except NotImplementedError:  # torchvision's RegNets compute their widths with tensors, and read these
        return None
    except TypeError as error:
        raise ValueError(error) from error


@dataclass(frozen=True)
class Batch:
    """Frames `(N·T, 3, H, W)` and labels `(N)`."""

    frames: Tensor
    labels: Tensor

    @classmethod
    def random(cls, options: Options, pixels: int, layout: str) -> "Batch":
        """Frames in float32: under autocast the first convolution makes them smaller."""
        frames = torch.randn(options.clips * options.segments, 3, pixels, pixels, device=options.device)
        labels = torch.randint(CLASSES, (options.clips,), device=options.device)
        return cls(frames.contiguous(memory_format=LAYOUTS[layout]), labels)

    def double(self) -> "Batch":
        """The same in float64."""
        return Batch(self.frames.double(), self.labels)


@dataclass(frozen=True)
class Work:
    """One network at work on one batch.

    Attributes:
        network: called with the frames; may be compiled.
        batch: the same in every call.
        autocast: the context of every forward.
        optimizer: for `step`.
    """

    network: Callable[[Tensor], Tensor]
    batch: Batch
    autocast: Callable[[], AbstractContextManager[object]]
    optimizer: torch.optim.Optimizer

    @classmethod
    def of(cls, network: nn.Module, batch: Batch, options: Options, compiled: bool = False) -> "Work":
        """SGD with momentum and weight decay as in the paper, at a learning rate of 0: every step is the same work."""
        optimizer = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9, weight_decay=1e-4)
        called = torch.compile(network, dynamic=False) if compiled else network
        return cls(called, batch, options.autocast, optimizer)

    def evaluate(self) -> Tensor:
        """Logits `(N, classes)`, without gradients."""
        with torch.no_grad(), self.autocast():
            return self.network(self.batch.frames)

    def forward(self) -> Tensor:
        """The loss."""
        with self.autocast():
            return F.cross_entropy(self.network(self.batch.frames), self.batch.labels)

    def step(self, mark: Callable[[], object] = lambda: None) -> None:
        """Forward, backward and a step of the optimizer; `mark` is called before, between and after."""
        mark()
        loss = self.forward()
        mark()
        loss.backward()
        mark()
        self.optimizer.step()
        self.optimizer.zero_grad()
        mark()


def results(network: nn.Module, batch: Batch, autocast: Callable[[], AbstractContextManager[object]]) -> list[Tensor]:
    """What two networks of the same weights must agree on: in evaluation the logits, in training loss and gradients."""
    if not network.training:
        with torch.no_grad(), autocast():
            return [network(batch.frames)]
    with autocast():
        loss = F.cross_entropy(network(batch.frames), batch.labels)
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    return [loss, torch.cat([gradient.flatten() for gradient in gradients])]
