"""What the operators have in common: feature maps of TANet-50, gradients, how results are compared, bandwidth."""

import argparse
from collections.abc import Callable, Iterator
from typing import Any, get_args

import torch
from torch import Tensor
from tritonbench.utils.triton_op import BenchmarkOperator, Mode

from bench.options import Layout
from bench.shapes import LAYOUTS, parse, tanet50

# Rounding may be off by this share of the largest element; sums over taps and pixels are of numbers about 1.
SHARES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 8e-2}


class OnMaps(BenchmarkOperator):
    """An operator on feature maps `(N·T, C, H, W)`; a subclass says what else it takes, and what computes it."""

    is_compute_bound = False
    forward_passes: int
    """Over a tensor of X's size: the traffic that cannot be avoided, as in `bench.candidates`."""
    backward_passes: int

    def __init__(self, tb_args: argparse.Namespace, extra_args: list[str] | None = None) -> None:
        self.options = parse_options(extra_args)
        super().__init__(tb_args, extra_args)

    def get_input_iter(self) -> Iterator[tuple[Tensor, ...]]:
        """X, and what goes with it, at every shape: those of TANet-50 unless others are named."""
        options = self.options
        named = [parse(text) for text in options.shapes.split(",") if text]
        for shape in named or tanet50(options.pixels):
            dtype = self.dtype or torch.float32
            x = shape.features(options.clips, options.segments, dtype, options.layout, self.device)
            yield tuple(tensor.requires_grad_(self.requires_grad) for tensor in (x, *self.beside(x)))

    def beside(self, x: Tensor) -> tuple[Tensor, ...]:
        """What the operator takes beside X."""
        return ()

    def get_x_val(self, example_inputs: tuple[Tensor, ...]) -> str:
        """N·T×C×H×W."""
        return "×".join(map(str, example_inputs[0].shape))

    def get_bwd_fn(self, fwd_fn: Callable[[], Tensor]) -> Callable[[], tuple[Tensor, ...]]:
        """The gradients of all that the operator takes, by the same gradient of its result for all candidates."""
        y = fwd_fn()
        generator = torch.Generator(y.device).manual_seed(0)
        dy = torch.randn(y.shape, generator=generator, device=y.device, dtype=y.dtype)
        dy = dy.contiguous(memory_format=LAYOUTS[self.options.layout] if y.ndim == 4 else torch.contiguous_format)
        return lambda: torch.autograd.grad(y, self.example_inputs, dy, retain_graph=True)

    def accuracy(self, fn: Callable[[], Any], baseline_fn: Callable[[], Any]) -> bool:
        """Whether results and gradients are the baseline's, but for rounding."""
        if self.mode == Mode.FWD_NO_GRAD:  # its calls return nothing, but know whose they are
            names = [call._name for call in (fn, baseline_fn)]  # type: ignore[attr-defined]
            with torch.no_grad():
                return is_close(*(getattr(self, name)(*self.example_inputs)() for name in names))
        pairs = zip(tensors(fn()), tensors(baseline_fn()), strict=True)
        return all(is_close(got, expected) for got, expected in pairs)

    def bandwidth(self, milliseconds: Any) -> float:
        """Of the traffic that cannot be avoided, in GB/s."""
        forward, backward = self.forward_passes, self.backward_passes
        passes = {Mode.BWD: backward, Mode.FWD_BWD: forward + backward}.get(self.mode, forward)
        return passes * self.example_inputs[0].nbytes / milliseconds * 1e-6


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """What tritonbench leaves to the operator."""
    parser = argparse.ArgumentParser(prog="run.py --op tam_…", description=__doc__)
    parser.add_argument("--clips", type=int, default=8, help="N")
    parser.add_argument("--segments", type=int, default=8, help="T, the frames of a clip")
    parser.add_argument("--kernel-size", type=int, default=3, help="K, the taps of Θ; odd")
    parser.add_argument("--pixels", type=int, default=224, help="frames of this size give the shapes")
    parser.add_argument("--shapes", default="", help="CxHxW,…, such as 64x56x56, in place of TANet-50's")
    parser.add_argument("--layout", choices=get_args(Layout), default="nchw", help="of the feature maps")
    return parser.parse_args(arguments or [])


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`torch.compile` of a function whose backward runs several times, on what its forward kept."""
    from torch._functorch import config

    config.donated_buffer = False
    return torch.compile(function, dynamic=False)  # no full graph: while its FLOPs are counted, it runs eagerly


def tensors(result: Any) -> list[Tensor]:
    """All of a result, in order."""
    return [result] if isinstance(result, Tensor) else [tensor for part in result for tensor in tensors(part)]


def is_close(got: Tensor, expected: Tensor) -> bool:
    """Within a share of the largest element."""
    if (got.shape, got.dtype) != (expected.shape, expected.dtype):
        return False
    scale = expected.double().abs().max()
    return bool((got.double() - expected.double()).abs().max() <= SHARES[expected.dtype] * scale)
