"""docs/errors.md, row by row: what is called, the type of the error, and all of its text, where … stands for anything.

A heading of the page decides how its rows are run: most in this file's names and before any operator has run, those on
feature maps for everything that takes one, those on branches for either implementation, with gradients and without.
"""

import builtins
import fnmatch
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

import tam_triton
from tam_triton import TAM, aggregate, nets, ops, squeeze, squeeze_and_aggregate
from tam_triton.functional import evaluate

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
ROW = re.compile(r"^>>> (?P<call>.+)\n(?P<error>\w+): (?P<message>.+)$", re.MULTILINE)

Row = tuple[str, str, str]


def sections() -> dict[str, list[Row]]:
    """The rows under each heading."""
    parts = re.split(r"^##+ (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {
        heading: [(row["call"], row["error"], row["message"]) for row in ROW.finditer(text)]
        for heading, text in zip(parts[::2], parts[1::2], strict=True)
    }


ROWS = sections()
ON_FEATURES, ON_BRANCHES, OF_TORCH = "Feature maps", "What its branches return", "From torch"
PLAIN = [heading for heading in ROWS if heading not in (ON_FEATURES, ON_BRANCHES, OF_TORCH)]


def rows(*headings: str) -> pytest.MarkDecorator:
    every = [pytest.param(*row, id=row[0]) for heading in headings for row in ROWS[heading]]
    return pytest.mark.parametrize(("call", "error", "message"), every)


X, V, THETA = torch.zeros(8, 8, 3, 3), torch.zeros(2, 8, 4), torch.zeros(2, 8, 3)
HUGE = torch.zeros(()).expand(8, 8, 2**22, 2**22)
FRAMES = torch.zeros(8, 3, 32, 32)
EPS, NAN = 1e-5, float("nan")
OPERATORS = torch.ops.tam_triton


def fused(
    x: Any, branches: Any = lambda s: (s, s[..., :3]), num_segments: Any = 4, kernel_size: Any = 3, impl: Any = None
) -> Tensor:
    return squeeze_and_aggregate(x, branches, num_segments, kernel_size, impl=impl)


def folded(x: Any = X, eps: Any = EPS, num_segments: Any = 4, **replaced: Any) -> Tensor:
    branches: dict[str, Any] = {
        "G": [torch.ones(8, 4), *torch.ones(4, 8), torch.ones(3, 8)],
        "L": [torch.ones(2, 8, 3), *torch.ones(4, 2), torch.ones(8, 2, 1)],
        "norm": list(torch.ones(4, 8)),
    }
    for name, value in replaced.items():
        if name in branches:
            branches[name] = value
        else:
            branches[name[:-1]][int(name[-1])] = value
    return evaluate(x, branches["G"], branches["L"], num_segments, eps, norm=branches["norm"])


def without_gradients(module: nn.Module) -> Callable[..., Any]:
    return torch.no_grad()(module.eval().forward)


def activated(x: Any, norm: Any = None, activation: Any = None) -> Tensor:
    return TAM(8, 4).activated(x, norm or nn.BatchNorm2d(8), activation or nn.ReLU())


def resnet() -> ResNet:
    with torch.device("meta"):
        return ResNet(BasicBlock, [1, 1, 1, 1])


def odd_resnet(**replaced: nn.Module) -> ResNet:
    net = resnet()
    for name, module in replaced.items():
        setattr(net, name, module)
    return net


def network(x: Any) -> Tensor:
    return nets.TANet(ResNet(BasicBlock, [1, 1, 1, 1]), 4, stages=("res2",))(x)


def load(values: Any) -> object:
    return nets.load_published(TAM(8, 4), {"G.0.weight": values})


def quantised(x: Tensor) -> Tensor:
    with warnings.catch_warnings(action="ignore"):  # deprecated, and still what old checkpoints hold
        return torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)


def nested(x: Tensor, layout: torch.layout) -> Tensor:
    with warnings.catch_warnings(action="ignore"):  # a prototype
        return torch.nested.nested_tensor([x, x[:4]] if layout == torch.jagged else [x, x], layout=layout)


def sparse_rows(x: Tensor) -> Tensor:
    with warnings.catch_warnings(action="ignore"):  # in beta
        return x.to_sparse_csr()


class Unwilling(Tensor):
    """A subclass that tells its shape and dtype, and computes nothing."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in ("__get__", "dim", "numel", "element_size"):
            return super().__torch_function__(func, types, args, kwargs or {})
        raise NotImplementedError(f"Unwilling: {func.__name__} is not for me")


class Agreeable(Tensor):
    """A subclass that computes like a Tensor."""


def differentiated(call: Callable[[Tensor], Tensor]) -> object:
    return call(torch.rand(8, 8, 3, 3, requires_grad=True)).sum().backward()


def with_tangent(call: Callable[[Tensor], Tensor]) -> object:
    with torch.autograd.forward_ad.dual_level():
        return call(torch.autograd.forward_ad.make_dual(X, X))


NAMES = {
    "ResNet18_Weights": ResNet18_Weights,
    "Bottleneck": Bottleneck,
    "VideoClassifier": tam_triton.VideoClassifier,
    "classifier": tam_triton.VideoClassifier(nn.Identity(), ("a", "b"), num_segments=4),
    **{name: getattr(nets, name) for name in nets.__all__},
    **globals(),
}
OF_ONE_DEPTH = [name for name in nets.__all__ if re.fullmatch(r"(tanet|c2d)\d+", name)]
TAKES_FEATURES: dict[str, Callable[[Any], object]] = {
    "squeeze": lambda x: squeeze(x, 4),
    "squeeze, triton": lambda x: squeeze(x, 4, impl="triton"),
    "aggregate": lambda x: aggregate(x, V, THETA),
    "squeeze_and_aggregate": fused,
    "evaluate": folded,
    "TAM": lambda x: TAM(8, 4)(x),
    "TAM, folded": lambda x: without_gradients(TAM(8, 4, impl="triton"))(x),
    "TAM.activated": activated,
}


def check(call: str, error: str, message: str, **names: object) -> None:
    expected = getattr(builtins, error)
    with pytest.raises(expected) as raised:
        eval(call, NAMES | names)
    assert type(raised.value) is expected
    text = " ".join(str(raised.value).split())
    pattern = message.replace("[", "[[]").replace("…", "*")
    assert fnmatch.fnmatchcase(text, pattern), f"{text}\ninstead of\n{message}"


@pytest.fixture
def operators_run(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of all operators that run, in order."""
    ran: list[str] = []

    def recorded(name: str, operator: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            ran.append(name)
            return operator(*args)

        return run

    for impl, operators in ops.IMPLEMENTATIONS.items():
        recording = {name: recorded(name, operator) for name, operator in vars(operators).items()}
        monkeypatch.setitem(ops.IMPLEMENTATIONS, impl, SimpleNamespace(**recording))
    squeeze(X, 4)
    assert ran == ["squeeze"]  # else what runs would not be seen
    ran.clear()
    return ran


@pytest.mark.parametrize("taker", TAKES_FEATURES)
@rows(ON_FEATURES)
def test_what_is_no_feature_map(taker: str, call: str, error: str, message: str, operators_run: list[str]) -> None:
    check(call, error, message, f=TAKES_FEATURES[taker])
    if error != "NotImplementedError":
        assert operators_run == []


@rows(*PLAIN)
def test_bad_calls(call: str, error: str, message: str, operators_run: list[str]) -> None:
    check(call, error, message)
    assert operators_run == []


@pytest.mark.parametrize("impl", ["triton", "torch"])
@pytest.mark.parametrize("requires_grad", [False, True])
@rows(ON_BRANCHES)
def test_bad_branches(
    call: str, error: str, message: str, requires_grad: bool, impl: str, operators_run: list[str]
) -> None:
    x = X.clone().requires_grad_(requires_grad)
    check(call, error, message, X=x, fused=lambda x, branches: fused(x, branches, impl=impl))
    assert operators_run == ["squeeze"]


@rows(OF_TORCH)
def test_what_comes_from_torch(call: str, error: str, message: str) -> None:
    check(call, error, message)


def test_every_row_is_run_and_nothing_public_is_left_out() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert sum(map(len, ROWS.values())) == page.count("\n>>> ") > 190
    names_on_page = {"squeeze_and_aggregate": "fused", "evaluate": "folded", "load_published": "load"}
    names_on_page["load"] = "tam_triton.load"
    for name in {*tam_triton.__all__, *nets.__all__, "evaluate"} - {"LoadReport"}:
        if name not in OF_ONE_DEPTH:
            assert f">>> {names_on_page.get(name, name)}(" in page, name


@pytest.mark.parametrize("name", OF_ONE_DEPTH)
def test_networks_of_one_depth(name: str) -> None:
    depth = name.removeprefix("tanet").removeprefix("c2d")
    check(f"{name}(weights='V9')", "ValueError", f"weights: got 'V9', expected one of (…) for resnet{depth}")


@pytest.mark.parametrize("changed", ["T = 8", "N·T = 9", "num_segments: got 3"])
def test_a_row_that_is_wrong_fails(changed: str) -> None:
    right = "num_segments: got 3, expected a divisor of x's N·T = 8"
    check("squeeze(X, 3)", "ValueError", right)
    with pytest.raises(AssertionError, match="instead of"):
        check("squeeze(X, 3)", "ValueError", changed)
    with pytest.raises(ValueError, match="N·T = 8"):
        check("squeeze(X, 3)", "TypeError", right)


@pytest.mark.parametrize("taker", TAKES_FEATURES)
def test_a_willing_subclass_is_computed_with(taker: str) -> None:
    torch.manual_seed(0)
    x = torch.rand(X.shape)
    values = []
    for one in (x, x.as_subclass(Agreeable)):
        torch.manual_seed(0)
        y = TAKES_FEATURES[taker](one)
        assert isinstance(y, Tensor)
        values.append(y.detach().as_subclass(Tensor))
    torch.testing.assert_close(*values)  # in another form: theirs may need derivatives or code of their own
