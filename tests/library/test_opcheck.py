"""Every operator keeps torch's contract: schema, strides of the fake, autograd, tracing with any number of clips."""

import os
import subprocess
import sys

import pytest
import torch

from tam_triton import ops
from tests.support.operators import OPERATORS, Operator, each_operator, each_tensor
from tests.support.strategies import Problem

CASES = {
    "contiguous": Problem(N=2, T=3, C=4, H=3, W=2, K=3),
    "channels_last": Problem(N=2, T=3, C=4, H=3, W=2, K=3, layout="channels_last", dtype=torch.float16),
    "sliced": Problem(N=1, T=4, C=5, H=2, W=3, K=5, layout="sliced", dtype=torch.bfloat16),
    "transposed": Problem(N=3, T=2, C=4, H=3, W=2, K=3, layout="transposed", dtype=torch.float64),
    "fewer frames than taps": Problem(N=2, T=2, C=7, H=1, W=5, K=7, layout="offset"),
    "one frame, one pixel": Problem(N=2, T=1, C=4, H=1, W=1, K=3, layout="channels_last"),
}
DIFFERENTIABLE = ("squeeze", "aggregate")


def opcheck(operator: Operator, problem: Problem) -> None:
    if problem.dtype not in operator.dtypes:
        return
    arguments = operator.arguments(problem)
    if operator.name in DIFFERENTIABLE:
        arguments = each_tensor(lambda tensor: tensor.detach().requires_grad_(), arguments)
    registered = getattr(torch.ops.tam_triton, operator.name).default
    torch.library.opcheck(registered, tuple(arguments.values()))


def test_every_operator_has_a_row() -> None:
    assert {operator.name for operator in OPERATORS} == set(ops.SCHEMAS)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own look at .grad
@each_operator
@pytest.mark.parametrize("case", CASES)
def test_interpreted(operator: Operator, case: str) -> None:
    opcheck(operator, CASES[case])


def check_all() -> None:
    """For a process that does not interpret kernels: on the CPU the operators are then plain torch."""
    assert not ops.INTERPRETED
    for operator in OPERATORS:
        for problem in CASES.values():
            opcheck(operator, problem)


def test_in_plain_torch() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", "from tests import test_opcheck; test_opcheck.check_all()"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)
    assert result.returncode == 0, result.stderr
