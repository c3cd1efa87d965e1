"""The operators, the traffic that each cannot avoid, and who computes them.

Traffic in passes over a tensor of X's size (DESIGN: the traffic floor): squeeze 1 (read X); aggregation 2 (read X,
write Y); its backward 4 (read X and dY for the gradients of V and Θ, read dY, write dX); TAM forward 3, with backward
7. The other forms of the aggregation, V after it ("reversed", TANet-R) and one learned Θ for all clips ("filter"), cost
the same; a "shift" has no weights to learn and needs dX alone. Tensors of `(N, C, T)` and less are not counted.
"""

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

import tam_triton
from bench import peers
from bench.agreement import Run
from tam_triton import temporal

Operator = Literal[
    "squeeze", "aggregate", "aggregate_training", "reversed", "reversed_training", "filter", "filter_training",
    "shift", "shift_training", "tam", "tam_training",
]  # fmt: skip
Candidate = Literal["ours", "compiled_plain", "eager", "compiled_eager"]

PASSES: Mapping[Operator, int] = {
    "squeeze": 1, "aggregate": 2, "aggregate_training": 6, "reversed": 2, "reversed_training": 6,
    "filter": 2, "filter_training": 6, "shift": 2, "shift_training": 4, "tam": 3, "tam_training": 7,
}  # fmt: skip
CANDIDATES: Mapping[str, str] = {
    "ours": "this library, as it chooses by device",
    "compiled_plain": "torch.compile of this library's plain-torch functions",
    "eager": "the usual formulation: permute, multiply, grouped convolution, permute",
    "compiled_eager": "torch.compile of the usual formulation",
    "floor": "the operator's passes over X at the bandwidth that copy_ reaches in the same rounds",
}


@dataclass(frozen=True)
class Case:
    """One operator on one set of values.

    Attributes:
        operator: what is computed; with "_training", its gradients too.
        x, dy: `(N·T, C, H, W)`, of one dtype and layout.
        importance: V `(N, C, T)` in x's dtype.
        kernel: Θ `(N, C, K)` in x's dtype.
        module: a TAM in float32, in the operator's mode.
        autocast: the context of every forward.
    """

    operator: Operator
    x: Tensor
    dy: Tensor
    importance: Tensor
    kernel: Tensor
    module: tam_triton.TAM
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext

    @classmethod
    def random(
        cls,
        operator: Operator,
        x: Tensor,
        segments: int,
        kernel_size: int,
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> "Case":
        """Weights such as the branches give: V in (0, 1), the taps of Θ summing to 1."""
        clips, channels = x.shape[0] // segments, x.shape[1]
        importance = torch.rand(clips, channels, segments, device=x.device).to(x.dtype)
        kernel = torch.rand(clips, channels, kernel_size, device=x.device).softmax(-1).to(x.dtype)
        module = tam_triton.TAM(channels, segments, kernel_size, beta=min(4, channels)).to(x.device)
        module.train(operator.endswith("_training"))
        return cls(operator, x, torch.randn_like(x), importance, kernel, module, autocast)

    def double(self) -> "Case":
        """The same values in float64."""
        return replace(
            self,
            x=self.x.double(),
            dy=self.dy.double(),
            importance=self.importance.double(),
            kernel=self.kernel.double(),
            module=copy.deepcopy(self.module).double(),
            autocast=nullcontext,
        )

    def run(self, candidate: Candidate) -> Run:
        """A call that returns the operator's result, and in training the gradients of all that it depends on."""
        forward = self.forward(candidate)
        inputs = (self.x, *self.weights(self.operator.removesuffix("_training")))
        if not self.operator.endswith("_training"):

            def evaluate() -> tuple[Tensor, ...]:
                with torch.no_grad(), self.autocast():
                    return (forward(*inputs),)

            return evaluate
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        wanted = [*leaves, *(self.module.parameters() if self.operator == "tam_training" else ())]

        def train() -> tuple[Tensor, ...]:
            with self.autocast():
                y = forward(*leaves)
            return y, *torch.autograd.grad(y, wanted, self.dy)

        return train

    def weights(self, kind: str) -> tuple[Tensor, ...]:
        """What the operator takes beside x, and has gradients of."""
        if kind == "filter":
            return (self.kernel[0],)
        return (self.importance, self.kernel) if kind in ("aggregate", "reversed") else ()

    def forward(self, candidate: Candidate) -> Callable[..., Tensor]:
        """The operator as `candidate` has it, without gradients."""
        kind, segments = self.operator.removesuffix("_training"), self.importance.shape[-1]
        shift_div = min(8, self.x.shape[1])
        functions: dict[str, Callable[..., Tensor]]
        if candidate in ("eager", "compiled_eager"):
            functions = {
                "squeeze": lambda x: peers.squeeze(x, segments),
                "aggregate": peers.excite_and_aggregate,
                "reversed": peers.aggregate_and_excite,
                "filter": lambda x, theta: peers.filtered(x, theta, segments),
                "shift": lambda x: peers.shift(x, segments, shift_div),
                "tam": lambda x: peers.tam(self.module, x),
            }
        else:
            impl = "torch" if candidate == "compiled_plain" else None
            module = copy.copy(self.module)  # with the same parameters
            module.impl = impl
            functions = {
                "squeeze": lambda x: tam_triton.squeeze(x, segments, impl=impl),
                "aggregate": lambda x, v, theta: tam_triton.aggregate(x, v, theta, impl=impl),
                "reversed": lambda x, v, theta: tam_triton.aggregate(x, v, theta, excitation="after", impl=impl),
                "filter": lambda x, theta: tam_triton.aggregate(x, None, theta, num_segments=segments, impl=impl),
                "shift": temporal.TemporalShift(self.x.shape[1], segments, shift_div=shift_div, impl=impl).to(self.x),
                "tam": module,
            }
        function = functions[kind]
        return torch.compile(function, fullgraph=True, dynamic=False) if is_compiled(candidate) else function


def is_compiled(candidate: str) -> bool:
    """Whether torch.compile generates what runs."""
    return candidate.startswith("compiled_")
