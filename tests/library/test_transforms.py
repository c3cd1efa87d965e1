"""The table of docs/errors.md, cell by cell: what torch's transforms make of the operators, and of plain torch.

Problems are tiny: a second derivative maps the operators over all pairs of elements.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, func, nn
from torch.autograd import forward_ad
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.checkpoint import checkpoint

from tam_triton import TAM, aggregate, squeeze, squeeze_and_aggregate
from tests.library.test_errors import PAGE, Agreeable
from tests.support.networks import randomised

N, T, C, K = 1, 3, 4, 3
SAMPLES = 2

Arguments = tuple[Tensor, ...]
Function = Callable[..., Tensor]


def random(*shape: int, salt: int = 0) -> Tensor:
    """Between 1/2 and 3/2, in float64."""
    return 0.5 + torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape) + salt))


def plain_squeeze(x: Tensor) -> Tensor:
    return x.mean((2, 3)).unflatten(0, (-1, T)).transpose(1, 2)


def plain_aggregate(x: Tensor, importance: Tensor, kernel: Tensor) -> Tensor:
    """Equations 4 and 5, as they are written."""
    z = x.unflatten(0, (-1, T)) * importance.transpose(1, 2)[..., None, None]
    padded = nn.functional.pad(z, (0, 0, 0, 0, 0, 0, K // 2, K // 2))
    return sum(kernel[:, None, :, k, None, None] * padded[:, k : k + T] for k in range(K)).flatten(0, 1)  # type: ignore[union-attr]


def branches(squeezed: Tensor) -> tuple[Tensor, Tensor]:
    """A cheap stand-in for G and L, so that X also reaches the output through X̂."""
    return squeezed.sigmoid(), (squeezed * 2).tanh()


class PlainTAM(TAM):
    def forward(self, x: Tensor) -> Tensor:
        return plain_aggregate(x, *self.branches(plain_squeeze(x)))


class Called:
    """A TAM in training as a function of x and of the local branch's last weight."""

    def __init__(self, module: TAM, replaced: bool) -> None:
        self.module = randomised(module).double()
        if replaced:
            func.replace_all_batch_norm_modules_(module)

    def __call__(self, x: Tensor, *weight: Tensor) -> Tensor:
        return func.functional_call(self.module, dict(zip(["L.3.weight"], weight, strict=False)), (x,))


X, V, THETA = random(N * T, C, 1, 2), random(N, C, T), random(N, C, K)
WEIGHT = random(C, 1, 1)


def functions(column: str, impl: str) -> tuple[Function, Function, Arguments]:
    """Of a column: the function, the same in plain torch, arguments."""
    if column.startswith("`TAM`"):
        ours, plain = (Called(of(C, T, impl=impl), "replaced" in column) for of in (TAM, PlainTAM))
        return ours, plain, (X, WEIGHT)
    table: dict[str, tuple[Function, Function, Arguments]] = {
        "`squeeze`": (partial(squeeze, num_segments=T, impl=impl), plain_squeeze, (X,)),
        "`aggregate`": (partial(aggregate, impl=impl), plain_aggregate, (X, V, THETA)),
        "`squeeze_and_aggregate`": (
            lambda x: squeeze_and_aggregate(x, branches, T, K, impl=impl),
            lambda x: plain_aggregate(x, *branches(plain_squeeze(x))),
            (X,),
        ),
    }
    return table[column]


def every(arguments: Sequence[Tensor]) -> tuple[int, ...]:
    return tuple(range(len(arguments)))


def loss(f: Function) -> Function:
    """With a third derivative."""
    return lambda *arguments: f(*arguments).pow(3).sum()


def tangents(arguments: Arguments) -> Arguments:
    return tuple(random(*one.shape, salt=i) for i, one in enumerate(arguments))


def samples(arguments: Arguments) -> Arguments:
    return tuple(random(SAMPLES, *one.shape) for one in arguments)


def leaves(arguments: Arguments) -> Arguments:
    return tuple(one.clone().requires_grad_() for one in arguments)


def total(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([one.flatten() for one in tensors]).sum()


def forward_mode(f: Function, arguments: Arguments) -> object:
    with forward_ad.dual_level():
        y = f(*(forward_ad.make_dual(one, t) for one, t in zip(arguments, tangents(arguments), strict=True)))
        return tuple(forward_ad.unpack_dual(y))


def vmap(f: Function, arguments: Arguments) -> object:
    """Of all arguments, of the first alone, and along another dimension."""
    of_one: Any = (0, *[None] * (len(arguments) - 1))
    moved = [one.movedim(0, 1) for one in samples(arguments)]
    return (
        func.vmap(f)(*samples(arguments)),
        func.vmap(f, of_one)(samples(arguments)[0], *arguments[1:]),
        func.vmap(f, 1, 1)(*moved),
    )


def vjp(f: Function, arguments: Arguments) -> object:
    y, pullback = func.vjp(f, *arguments)[:2]
    return y, pullback(random(*y.shape))


def gradients(f: Function, arguments: Arguments) -> object:
    inputs = leaves(arguments)
    y = f(*inputs)
    loss(lambda: y)().backward()
    return y, [one.grad for one in inputs]


def twice(f: Function, arguments: Arguments) -> object:
    inputs = leaves(arguments)
    first = torch.autograd.grad(loss(f)(*inputs), inputs, create_graph=True)
    return first, torch.autograd.grad(total(one.square() for one in first), inputs)


def batched_gradients(f: Function, arguments: Arguments) -> object:
    """Of a channels_last feature map, whose layout the backward asks for; once and twice."""
    inputs = leaves(arguments)
    y = f(inputs[0].contiguous(memory_format=torch.channels_last), *inputs[1:])
    dy = random(SAMPLES, *y.shape).requires_grad_()
    first = torch.autograd.grad(y, inputs, dy, is_grads_batched=True, create_graph=True)
    return first, torch.autograd.grad(total(one.pow(3) for one in first), [*inputs, dy], materialize_grads=True)


def with_hooks(f: Function, arguments: Arguments) -> object:
    """What is saved goes through NumPy and back."""
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().numpy().copy(), torch.from_numpy):
        return gradients(f, arguments)


def inference(f: Function, arguments: Arguments) -> object:
    with torch.inference_mode():
        return f(*arguments).clone()


def agreeable(f: Function, arguments: Arguments) -> object:
    return gradients(lambda x, *others: f(x.as_subclass(Agreeable), *others).as_subclass(Tensor), arguments)


def two_tensors(f: Function, arguments: Arguments) -> object:
    """A pair of tensors with which everything is computed twice."""
    inputs = [TwoTensor(one, 2 * one).requires_grad_() for one in arguments]
    y = f(*inputs)
    return [(one.a, one.b) for one in (y, *torch.autograd.grad(loss(lambda: y)(), inputs))]  # type: ignore[attr-defined]


def of_all_parameters(f: Any, arguments: Arguments) -> object:
    parameters = dict(
        zip(
            names := [name for name, _ in f.module.named_parameters()],
            leaves(tuple(f.module.parameters())),
            strict=True,
        )
    )
    y = func.functional_call(f.module, parameters, (arguments[0],))
    return y, torch.autograd.grad(y.pow(3).sum(), [parameters[name] for name in names])


def with_buffers(f: Any, arguments: Arguments) -> object:
    """The statistics come as an argument and leave as a result."""
    parameters = {name: one.detach() for name, one in f.module.named_parameters()}
    buffers = {name: one.clone() for name, one in f.module.named_buffers()}

    def with_statistics(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Any:
        buffers = {name: one.clone() for name, one in buffers.items()}
        y = func.functional_call(f.module, (parameters, buffers), (x,))
        return y.pow(3).sum(), buffers

    return func.grad(with_statistics, (0, 2), has_aux=True)(parameters, buffers, arguments[0])


def ensemble(f: Any, arguments: Arguments) -> object:
    """Two modules side by side."""
    twin = Called(type(f.module)(C, T, impl=f.module.impl), replaced=not dict(f.module.named_buffers())).module
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.5)
    state = func.stack_module_state([f.module, twin])
    call = partial(func.functional_call, f.module)
    return func.vmap(lambda state, x: call(state, (x,)), (0, None))(state, arguments[0]), state


ROWS: dict[str, Callable[[Any, Arguments], object]] = {
    "`torch.func.jvp`": lambda f, a: func.jvp(f, a, tangents(a)),
    "`torch.autograd.forward_ad`": forward_mode,
    "`torch.func.vmap`": vmap,
    "`torch.func.grad`": lambda f, a: func.grad(loss(f), every(a))(*a),
    "`torch.func.vjp`": vjp,
    "`torch.func.jacrev`": lambda f, a: func.jacrev(f, every(a))(*a),
    "`torch.func.jacfwd`": lambda f, a: func.jacfwd(f, every(a))(*a),
    "`torch.func.hessian`": lambda f, a: func.hessian(loss(f), every(a))(*a),
    "`torch.func.grad` of `jvp`": lambda f, a: func.grad(lambda *a: func.jvp(loss(f), a, tangents(a))[1], every(a))(*a),
    "`torch.func.grad`, each sample, by `vmap`": lambda f, a: func.vmap(func.grad(loss(f), every(a)))(*samples(a)),
    "`torch.func.functional_call`": of_all_parameters,
    "`torch.func.grad` of `functional_call` with buffers": with_buffers,
    "`torch.func.vmap` of `functional_call` with stacked modules": ensemble,
    "`create_graph=True`": twice,
    "`is_grads_batched=True`": batched_gradients,
    "`torch.utils.checkpoint`, reentrant": lambda f, a: gradients(partial(checkpoint, f, use_reentrant=True), a),
    "`torch.utils.checkpoint`, not reentrant": lambda f, a: gradients(partial(checkpoint, f, use_reentrant=False), a),
    "`torch.autograd.graph.saved_tensors_hooks`": with_hooks,
    "`torch.inference_mode`": inference,
    "a subclass by `__torch_function__`": agreeable,
    "a subclass by `__torch_dispatch__`": two_tensors,
}


def cells() -> list[tuple[str, str, str]]:
    """Row, column and cell of the page's table."""
    table = re.search(r"^\| \|.*?\n\n", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert table is not None
    header, _, *lines = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in table[0].splitlines() if line
    )
    return [(row, column, cell) for row, *rest in lines for column, cell in zip(header[1:], rest, strict=True)]


CELLS = cells()


def test_the_table_has_these_rows_and_says_only_what_is_tested() -> None:
    assert list(dict.fromkeys(row for row, _, _ in CELLS)) == list(ROWS)
    assert {cell for _, _, cell in CELLS} == {"right", "refused", "–"}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")  # torch's own, when it first needs a tangent
@pytest.mark.parametrize("impl", ["triton", "torch"])
@pytest.mark.parametrize(("row", "column", "cell"), [cell for cell in CELLS if cell[-1] != "–"])
def test_cell(row: str, column: str, cell: str, impl: str) -> None:
    ours, plain, arguments = functions(column, impl)
    if cell == "refused":
        with pytest.raises(NotImplementedError, match=r"tam_triton: .*torch\.func.*; call torch\.func\.replace_all"):
            ROWS[row](ours, arguments)
    else:
        torch.testing.assert_close(ROWS[row](ours, arguments), ROWS[row](plain, arguments))
