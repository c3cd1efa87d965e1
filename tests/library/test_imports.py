"""What importing the library imports: nothing that takes long and is not asked for; what is missing is named."""

import ast
import inspect
import os
import subprocess
import sys

import pytest

from tam_triton import nets

SLOW = ("torchvision", "torch._dynamo", "torch._inductor", "sympy", "timm", "matplotlib", "av")


def run(program: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "statement",
    ["import tam_triton", "import tam_triton.nets", "from tam_triton.nets import Place, insert"],
)
def test_what_is_not_asked_for_is_not_imported(statement: str) -> None:
    program = "import sys, torch; before = set(sys.modules); {}; print(*set({!r}) & (set(sys.modules) - before))"
    assert run(program.format(statement, SLOW)).split() == []


@pytest.mark.parametrize("missing", ["torchvision", "numpy"])
def test_networks_name_what_is_missing(missing: str) -> None:
    """torchvision cannot be imported without numpy either, and is then not to blame."""
    program = f"""
import importlib.abc, sys
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == {missing!r}:
            raise ModuleNotFoundError("No module named {missing}", name=name)
sys.meta_path.insert(0, Missing())
import warnings
warnings.simplefilter("ignore")  # torch's own, of numpy
import tam_triton.nets
try:
    from tam_triton.nets import tanet50
except ImportError as error:
    print(error)
"""
    assert run(program) == f"tam_triton.nets.tanet50 needs {missing}: pip install 'tam-triton[nets]'\n"


def test_type_checkers_see_every_name() -> None:
    (block,) = (node for node in ast.parse(inspect.getsource(nets)).body if isinstance(node, ast.If))
    seen = {
        alias.asname: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == {name: f"tam_triton.nets.{file}" for file, names in nets.NAMES.items() for name in names}
    assert all(getattr(nets, str(name)).__module__ == file for name, file in seen.items())


def test_other_names_are_none() -> None:
    with pytest.raises(AttributeError, match="tanet51"):
        _ = nets.tanet51
    assert set(nets.__all__) <= set(dir(nets))
