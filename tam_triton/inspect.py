"""What TAMs make of a clip: the importance map V and the kernel Θ of every forward (paper, appendix A.4).

```python
from tam_triton import inspect

with inspect.collecting(network) as seen:  # the last TAM of res4 and of res5
    network(clips)
importance, kernel = seen["layer3.5.tam"][0]  # of the first forward: (N, C, T), (N, C, K)
```

Nothing of this is in a TAM that is not looked into, and nothing stays when the context ends.
"""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from itertools import groupby
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tam_triton.checks import check_module, is_transformed
from tam_triton.temporal.ablations import Ablation
from tam_triton.temporal.tam import TAM

__all__ = ["Weights", "choose_tams", "collecting", "find_tams", "last_tams"]

_STAGE = re.compile(r"(?:(.*)\.)?(layer\d+)\.")


class Weights(NamedTuple):
    """What the branches of one TAM gave in one forward; float32, contiguous, on the CPU, without a graph."""

    importance: Tensor | None
    """V (N, C, T) (equation 2); None where there is none, as in `GlobalTAM`."""
    kernel: Tensor
    """Θ (N, C, K) (equation 3); one tap of ones in `LocalTAM`. Tap k is of frame t + k − K//2."""


def find_tams(network: nn.Module) -> dict[str, nn.Module]:
    """The TAMs of a network by name, in its order: `TAM` and its parts, `GlobalTAM`, `LocalTAM`, `ReversedTAM`, ….

    Raises TypeError if `network` is no Module.
    """
    check_module("network", network)
    return {name: module for name, module in network.named_modules() if isinstance(module, TAM | Ablation)}


def last_tams(network: nn.Module) -> tuple[str, ...]:
    """The names of the last TAMs of the last two stages that have any.

    In a ResNet stages are `layer1` … `layer4`, so these are the ones that the paper looks at: in a TANet-50
    `layer3.5.tam` (stage4_6b there) and `layer4.2.tam` (stage5_3b). SlowFast has such a pair in each pathway. Other
    backbones name no stages; there one is a row of TAMs of the same width (*reading*).

    Raises:
        TypeError: `network` is no Module.
        ValueError: it has no TAM.
    """
    stages: dict[str, list[str]] = {}
    for (pathway, _), tams in groupby(_some(network).items(), lambda item: _stage(*item)):
        *_, (last, _) = tams
        stages.setdefault(pathway, []).append(last)
    return tuple(name for lasts in stages.values() for name in lasts[-2:])


def choose_tams(network: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    """The names of the TAMs that `names` mean, in the network's order.

    Args:
        network: any with TAMs.
        names: of TAMs, or patterns of such as file names are matched: "layer4.*".

    Raises:
        TypeError: `network` is no Module, or `names` no sequence of texts.
        ValueError: there is no TAM, none is asked for, or a name fits none, with a list of what there is.
    """
    known = _some(network)
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"names: got {names!r}, expected a sequence of names such as ['layer3.5.tam']")
    for name in names:
        if not any(fnmatchcase(there, name) for there in known):
            raise ValueError(f"names: got {name!r}, expected one of {', '.join(known)}")
    if not names:
        raise ValueError(f"names: got none, expected one or more of {', '.join(known)}")
    return tuple(there for there in known if any(fnmatchcase(there, name) for name in names))


@contextmanager
def collecting(network: nn.Module, names: Sequence[str] | None = None) -> Iterator[dict[str, list[Weights]]]:
    """Collect V and Θ of chosen TAMs in every forward of `network`, as long as the context lives.

    They are the very tensors that the aggregation is given, copied to the CPU, so each forward waits for its device. A
    TAM that is looked into goes through its branches' layers where kernels would replace them (`temporal.folding`), in
    evaluation and before the aggregation; results may differ from what they are otherwise by rounding. A forward that
    is computed again, as `torch.utils.checkpoint` does, is collected again.

    Where `torch.compile` is in use, what it has compiled runs eagerly meanwhile, in the whole process. What is compiled
    or exported inside of the context is refused.

    Args:
        network: any with TAMs, in evaluation or in training, on any device.
        names: as for `choose_tams`; None takes `last_tams`.

    Yields:
        For each of the chosen TAMs, by name, the `Weights` of its forwards, which come as they are computed.

    Raises:
        TypeError, ValueError: as `choose_tams`.
        NotImplementedError: by a forward inside, where it is being compiled, exported or transformed by torch.func.
    """
    chosen = last_tams(network) if names is None else choose_tams(network, names)
    seen: dict[str, list[Weights]] = {name: [] for name in chosen}
    with ExitStack() as attached:
        if "torch._dynamo" in sys.modules:  # else nothing is compiled yet, and to import it takes a second
            attached.enter_context(torch.compiler.set_stance("force_eager"))
        for name in chosen:
            attached.callback(_attach(network.get_submodule(name), seen[name].append))
        yield seen


def _attach(module: Any, collect: Callable[[Weights], None]) -> Callable[[], None]:
    """Let `module` call `collect` with what its branches give; the function returned undoes it."""
    own = vars(module)
    before = own.get("branches")
    inner = module.branches

    def branches(tam: Any, squeezed: Tensor) -> tuple[Tensor | None, Tensor]:
        if tam is not module:  # a copy that was made meanwhile: its weights are its own
            there = type(tam).branches.__get__(tam) if before is None else before
            return there.__func__(tam, squeezed) if isinstance(there, MethodType) else there(squeezed)
        weights = inner(squeezed)
        if torch.compiler.is_compiling():
            raise NotImplementedError("tam_triton.inspect: collects from eager forwards, not from what is compiled")
        collect(Weights(*map(_copy, weights)))
        return weights

    own["branches"] = MethodType(branches, module)  # whoever asks whose branches these are is told the module

    def detach() -> None:
        del own["branches"]
        if before is not None:
            own["branches"] = before

    return detach


def _copy(weights: Tensor | None) -> Any:
    if weights is None:
        return None
    if is_transformed(weights):
        raise NotImplementedError("tam_triton.inspect: torch.func transforms this forward, which leaves no values")
    with torch.inference_mode(False):  # so that what comes of it is a tensor like others
        return weights.detach().to("cpu", torch.float32, copy=True, memory_format=torch.contiguous_format)


def _some(network: nn.Module) -> dict[str, nn.Module]:
    if tams := find_tams(network):
        return tams
    raise ValueError(f"network: got a {type(network).__name__} without a TAM, expected one such as a TANet")


def _stage(name: str, module: Any) -> tuple[str, str]:
    """The pathway that a TAM is in, and the stage there."""
    found = _STAGE.match(name)
    return (found[1] or "", found[2]) if found else ("", str(module.channels))
