"""Which implementation the public functions choose, and that a compiler sees through their checks.

What they say of bad calls stands in docs/errors.md and is tested in test_errors.py.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tam_triton import TAM, aggregate, ops, squeeze
from tam_triton.functional import choose

X = torch.zeros(8, 8, 3, 3)


def weights(squeezed: Tensor) -> tuple[Tensor, Tensor]:
    return squeezed, squeezed[..., :3]


def test_choice_of_implementation(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(None, X) == "torch"
    assert choose("triton", X) == "triton"  # this suite interprets the kernels
    monkeypatch.setattr(ops, "INTERPRETED", False)
    with pytest.raises(ValueError, match='impl: got "triton" for x on cpu, expected x on a GPU'):
        squeeze(X, 4, impl="triton")
    monkeypatch.setattr(ops, "HAS_TRITON", False)
    assert choose(None, X) == "torch"


@pytest.mark.parametrize(("name", "impl"), [("aggregate", "triton"), ("TAM", "torch"), ("activated", "triton")])
def test_checks_are_compiled_once_for_every_batch(name: str, impl: str) -> None:
    """In one graph, which the second and third batch do not compile again."""
    torch.manual_seed(0)
    module, norm = TAM(8, 4, impl=impl).eval(), torch.nn.BatchNorm2d(8).eval()
    calls: dict[str, Callable[[Tensor], Tensor]] = {
        "aggregate": lambda x: aggregate(x, *weights(x.mean((2, 3)).unflatten(0, (-1, 4)).mT), impl=impl),
        "TAM": module,
        "activated": lambda x: module.activated(x, norm, torch.nn.ReLU()),
    }
    torch.compiler.reset()
    compiled = torch.compile(calls[name], fullgraph=True, dynamic=True, backend="eager")
    with torch.no_grad():
        for clips in (3, 4, 5):
            x = torch.rand(clips * 4, 8, 3, 3)
            with torch.compiler.set_stance("default" if clips == 3 else "fail_on_recompile"):
                torch.testing.assert_close(compiled(x), calls[name](x))


@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_an_exported_batch_has_no_upper_bound(impl: str) -> None:
    module, clips = TAM(8, 4, impl=impl).eval(), torch.export.Dim("clips", min=1)
    program = torch.export.export(module, (torch.rand(8, 8, 3, 3),), dynamic_shapes=({0: 4 * clips},))
    assert all(bounds.upper > 2**40 for bounds in program.range_constraints.values())
    x = torch.rand(12, 8, 3, 3)
    torch.testing.assert_close(program.module()(x), module(x))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("impl", ["triton", "torch"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_a_batch_that_no_compiler_knows(training: bool, impl: str, memory_format: torch.memory_format) -> None:
    """What the checks cannot know they leave to the program, which refuses a batch as they would have done."""
    module = TAM(8, 4, impl=impl).train(training)
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for clips in (3, 1, 5):
        x = torch.rand(clips * 4, 8, 3, 3).contiguous(memory_format=memory_format).requires_grad_(training)
        torch._dynamo.decorators.mark_unbacked(x, 0)
        with (
            torch.set_grad_enabled(training),
            torch.compiler.set_stance("default" if clips == 3 else "fail_on_recompile"),
        ):
            results = []
            for forward in (module, compiled):
                y = forward(x)
                results.append((y, *(torch.autograd.grad(y.square().sum(), x) if training else ())))
            torch.testing.assert_close(*results, check_stride=True)
    with torch.set_grad_enabled(training), pytest.raises(RuntimeError, match="u0"):
        compiled(torch.rand(7, 8, 3, 3).contiguous(memory_format=memory_format).requires_grad_(training))


@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_an_exported_batch_that_no_compiler_knows(impl: str) -> None:
    module, x = TAM(8, 4, impl=impl).eval(), torch.rand(12, 8, 3, 3)
    torch._dynamo.decorators.mark_unbacked(x, 0)
    with torch.no_grad():
        program = torch.export.export(module, (x,), strict=True)
        for clips in (1, 2):
            torch.testing.assert_close(program.module()(x[: clips * 4]), module(x[: clips * 4]))


def test_autocast_takes_either_dtype() -> None:
    module, x = TAM(8, 4), torch.rand(8, 8, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        for given in (x, x.bfloat16()):
            assert module(given).dtype == given.dtype
