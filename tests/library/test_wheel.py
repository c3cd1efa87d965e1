"""What is built holds the library, its types and its license, and runs beside torch, Triton and NumPy alone."""

import re
import shutil
import subprocess
import sys
from email.message import Message
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest

import tam_triton

ROOT = Path(__file__).parents[2]
MODULES = {"decord2": "decord", "pillow": "PIL"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, as setuptools leaves folders beside what it builds."""
    source, out = tmp_path_factory.mktemp("source") / "tree", tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".*", "__pycache__", "runs", "build", "*.egg-info")
    shutil.copytree(ROOT, source, ignore=ignored)
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(out)]
    command = [sys.executable, "-m", "pip", "wheel", *options, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.whl")
    return path


def metadata(wheel: Path) -> Message:
    with ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def test_it_holds_the_library_alone(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        (license_,) = (name for name in archive.namelist() if name.endswith("licenses/LICENSE"))
        assert archive.read(license_) == (ROOT / "LICENSE").read_bytes()
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "tam_triton").rglob("*.py")}
    assert held == files | {"tam_triton/py.typed"}


def test_it_says_its_version_and_its_license(wheel: Path) -> None:
    about = metadata(wheel)
    assert about["Version"] == tam_triton.__version__
    assert about["License-Expression"] == "Apache-2.0"


def test_it_runs_with_what_it_asks_for(wheel: Path, tmp_path: Path) -> None:
    """Of what the extras name nothing but NumPy can be imported."""
    asked: dict[bool, set[str]] = {False: set(), True: set()}
    for line in metadata(wheel).get_all("Requires-Dist", []):
        asked["extra ==" in line].add(re.split(r"[^\w-]", line)[0])
    assert asked[False] == {"torch", "triton"}
    absent = sorted(MODULES.get(name, name) for name in asked[True] - {"tam-triton", "numpy"})
    assert {"torchvision", "timm", "tyro", "av", "PIL"} <= set(absent)
    with ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    program = f"""
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name}}", name=name)
sys.meta_path.insert(0, Absent())
sys.path.insert(0, {str(tmp_path)!r})
import torch, tam_triton
assert tam_triton.__file__.startswith({str(tmp_path)!r}), tam_triton.__file__
x = torch.ones(8, 8, 2, 2, requires_grad=True)
tam_triton.TAM(8, 4)(x).sum().backward()
print(*x.grad.shape)
"""
    command = [sys.executable, "-I", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout == "8 8 2 2\n", done.stderr
