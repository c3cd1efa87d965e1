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


def test_autocast_takes_either_dtype() -> None:
    module, x = TAM(8, 4), torch.rand(8, 8, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        for given in (x, x.bfloat16()):
            assert module(given).dtype == given.dtype
