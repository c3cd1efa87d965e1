"""Checking and storing the frozen dataclasses that recipes are made of, by the annotations of their fields."""

import dataclasses
import functools
import json
import math
import os
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from train.errors import InputError

T = TypeVar("T")

ADDED = {"added": True}
"""Metadata of a field that older files may lack; it is then what it is by default, which changes nothing for them."""

LARGEST = {
    **dict.fromkeys(("batch_size", "lr_batch_size", "accumulate", "checkpoint_every", "keep", "log_every"), 2**20),
    **dict.fromkeys(("epochs", "warmup_epochs"), 10**6),
    **dict.fromkeys(("num_segments", "clips", "crops", "reach", "workers", "prefetch", "threads"), 2**12),
    **dict.fromkeys(("crop_size", "short_side"), 2**13),
    **dict.fromkeys(("kernel_size", "local_kernel_size", "alpha", "beta"), 2**10),
}
"""How much there may be of what a field of that name counts. No machine has more: it is an error, or meant ill."""

_NAMES = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text", Path: "a path"}


_hints: Callable[[Any], dict[str, Any]] = functools.cache(get_type_hints)


def parse_json(text: str, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value that `text` is the JSON of, in which `pairs`, dict by default, makes the objects.

    Raises InputError, also for one too deep or a number too long to read.
    """
    try:
        return json.loads(text, object_pairs_hook=pairs)
    except json.JSONDecodeError as error:
        raise InputError(f"line {error.lineno}: is not JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not JSON that can be read ({error})") from error


def check_types(instance: Any) -> None:
    """Raise InputError unless every field of a dataclass `instance` holds what its annotation says.

    A bool is not taken for a number, nor infinity or NaN for a float; a whole number is a float. What is `LARGEST` for
    a field of its name holds, too.
    """
    hints = _hints(type(instance))
    for field in dataclasses.fields(instance):
        if not _matches(getattr(instance, field.name), hints[field.name]):
            raise _error(instance, field.name, _describe(hints[field.name]))
        value, largest = getattr(instance, field.name), LARGEST.get(field.name)
        if largest is not None and isinstance(value, int | float) and value > largest:
            raise _error(instance, field.name, f"at most {largest}")


def require(instance: Any, field: str, holds: bool, expected: str) -> None:
    """Raise InputError that names `field` of `instance`, what it holds and what was expected, unless `holds`."""
    if not holds:
        raise _error(instance, field, expected)


def to_plain(value: Any) -> Any:
    """`value`, a dataclass or something in one, in the types that JSON has: objects, lists, texts, numbers, null."""
    if dataclasses.is_dataclass(value):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def from_plain(kind: type[T], plain: Any, place: str, *, newer: bool = False) -> T:
    """The instance of dataclass `kind` that `to_plain` made `plain` of. `place` names it in messages.

    A field may have the name that its metadata call "formerly"; what it held under that name is then called as their
    "values" say. Raises InputError for a field too few, unless it is `ADDED`, one too many, or one that holds something
    else than its annotation says. What a `newer` version may have written beside the fields is not looked at.
    """
    if not isinstance(plain, dict):
        raise InputError(f"{place}: got {plain!r}, expected an object")
    hints = _hints(kind)
    plain = dict(plain)
    for field in dataclasses.fields(cast(Any, kind)):
        if (formerly := field.metadata.get("formerly")) in plain and field.name not in plain:
            value = plain.pop(formerly)
            values = field.metadata.get("values", {})
            plain[field.name] = values.get(value, value) if isinstance(value, str) else value
    if not newer and (unknown := sorted(plain.keys() - hints.keys(), key=str)):
        raise InputError(f"{place}: got unknown fields {unknown}, expected {sorted(hints)}")
    added = {field.name for field in dataclasses.fields(cast(Any, kind)) if "added" in field.metadata}
    if absent := sorted(hints.keys() - plain.keys() - added):
        raise InputError(f"{place}: fields {absent} are missing")
    return kind(**{name: _restore(hints[name], plain[name], f"{place}.{name}") for name in hints if name in plain})


def _restore(kind: Any, plain: Any, place: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return from_plain(cast(type[Any], kind), plain, place)
    if isinstance(plain, list):
        return tuple(plain)
    if isinstance(plain, str) and Path in (kind, *get_args(kind)):
        return Path(plain)
    return plain


def _matches(value: Any, kind: Any) -> bool:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return any(_matches(value, option) for option in get_args(kind))
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in get_args(kind))
    if origin is tuple:
        return isinstance(value, tuple) and all(_matches(item, get_args(kind)[0]) for item in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is Path:
        return isinstance(value, Path) and _can_be_opened(value)
    return isinstance(value, origin or kind)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def _can_be_opened(path: Path) -> bool:
    """Whether the system can be asked for `path`: NUL and halves of surrogate pairs are in no name."""
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False


def _describe(kind: Any) -> str:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(option) for option in get_args(kind))
    if origin is Literal:
        return f"one of {', '.join(repr(option) for option in get_args(kind))}"
    if origin is tuple:
        return f"a tuple, each of it {_describe(get_args(kind)[0])}"
    return "None" if kind is type(None) else _NAMES.get(kind) or f"a {kind.__name__}"


def _error(instance: Any, field: str, expected: str) -> InputError:
    group = type(instance).__name__.lower()
    return InputError(f"{group}.{field}: got {getattr(instance, field)!r}, expected {expected}")
