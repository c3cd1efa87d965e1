"""One fault in a copy of a backend's source, and how a property of the suite sees it."""

import importlib
import importlib.util
import inspect
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

SOURCES = Path(__file__).parents[2] / "tam_triton"


@dataclass(frozen=True)
class Mutant:
    """What is wrong, where, and what has to see it.

    Attributes:
        fault: in words.
        file: below `tam_triton`; its folder names the backend.
        right: text that occurs in it once.
        wrong: what stands there instead.
        prop: a test of the suite, as "module.test".
        operator: a row of `tests.support.operators`, for properties of operators.
        group: arguments in which that is linear, for properties of those.
        escapes: it leaves its tensors, which the check of every address must see before any property does.
    """

    fault: str
    file: str
    right: str
    wrong: str
    prop: str
    operator: str = ""
    group: tuple[str, ...] = ()
    escapes: bool = False

    @property
    def backend(self) -> str:
        return self.file.split("/")[0]

    @property
    def killer(self) -> str:
        """The property with its arguments, for the table."""
        subject = "-".join(part for part in (self.operator, ",".join(self.group)) if part)
        return self.prop + (f"[{subject}]" if subject else "")


def mutated_source(mutant: Mutant) -> str:
    """Raises ValueError unless the text to be replaced occurs exactly once."""
    source = (SOURCES / mutant.file).read_text()
    if (found := source.count(mutant.right)) != 1:
        raise ValueError(f"{mutant.file}: {mutant.right!r} occurs {found} times, expected once: write the mutant anew")
    return source.replace(mutant.right, mutant.wrong)


@contextmanager
def injected(mutant: Mutant) -> Iterator[None]:
    """The functions of the mutant's backend come from a copy of it in another folder, with the fault."""
    package = f"tam_triton.{mutant.backend}"
    original = importlib.import_module(package)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / mutant.backend
        shutil.copytree(SOURCES / mutant.backend, copy, ignore=shutil.ignore_patterns("__pycache__"))
        (copy / Path(mutant.file).name).write_text(mutated_source(mutant))
        spec = importlib.util.spec_from_file_location(package, copy / "__init__.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        with mock.patch.dict(sys.modules):
            for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
                del sys.modules[name]
            sys.modules[package] = module
            spec.loader.exec_module(module)
        with mock.patch.multiple(original, **{name: getattr(module, name) for name in original.__all__}):
            yield


def kill(mutant: Mutant) -> str:
    """How its property fails: the name of the error, or nothing. Errors of other kinds are the mutant's own: raised."""
    from bench.interpreted import AddressError
    from tests.support.operators import OPERATORS

    module, test = mutant.prop.split(".")
    check = getattr(importlib.import_module(f"tests.properties.{module}"), test)
    arguments = {
        "backend": importlib.import_module(f"tam_triton.{mutant.backend}"),
        "operator": {str(operator): operator for operator in OPERATORS}.get(mutant.operator),
        "group": mutant.group,
        "memory": "contiguous",
    }
    with injected(mutant):
        try:
            check(**{name: arguments[name] for name in inspect.signature(check).parameters})
        except AddressError as error:
            return type(error).__name__
        except AssertionError as error:
            return "" if mutant.escapes else type(error).__name__
    return ""
