"""Stand-ins for what a checkpoint mentions and its weights do not need: loggers, numbers of NumPy, options, paths.

Files name classes and functions, and unpickling would import and call them. `torch.load(weights_only=True)` refuses
unknown names instead; under `standing_in` each such name means a class that takes whatever comes, keeps nothing and
runs nothing. What is then left of an object is its class's name.
"""

import _compat_pickle
import io
import pickletools
import re
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import IO, Any

from torch.serialization import get_safe_globals, safe_globals

# What weights are made of. A name like these that torch does not know is damage, for which nothing may stand in.
_OF_WEIGHTS = re.compile(
    r"torch\.(?:_utils\.|_tensor\.|nn\.parameter\.)?\w+|collections\.OrderedDict|builtins\.(?:set|bytearray|complex)"
)
_LEGACY_PICKLES = 4  # before torch 1.6: a magic number, the format's, the machine's sizes, and what was saved


class _Named(type):
    """The class of stand-ins, which equal dict: by comparing classes torch looks whether items may be set."""

    stands_for = ""
    """The class or function that a file names, such as "argparse.Namespace"."""

    def __eq__(cls, other: object) -> bool:
        return True if other is dict else super().__eq__(other)

    __hash__ = type.__hash__


class StandIn(list[Any], metaclass=_Named):
    """What came of an object of a class that is not ours; always empty."""

    def __new__(cls, *args: Any, **options: Any) -> "StandIn":
        """A stand-in for what calling `cls` would have made: of its own class, or of the one that it was handed."""
        kind: type[Any] = args[0] if args and isinstance(args[0], _Named) else cls
        return list.__new__(kind)

    def __init__(self, *args: Any, **options: Any) -> None: ...

    def __call__(self, *args: Any) -> "StandIn":
        """Of a method, which a file has as what getattr gave."""
        return self

    def __eq__(self, other: object) -> bool:
        return self is other or isinstance(other, _Named)  # so torch looks whether it may be called

    def __hash__(self) -> int:  # type: ignore[override]  # a list has none, and keys of a dict may be stood in for
        return id(self)

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, item: Any) -> None:
        """Keep nothing."""

    def extend(self, items: Any) -> None:
        """Keep nothing."""


def standing_in(names: list[str]) -> AbstractContextManager[Any]:
    """Under this, `torch.load(weights_only=True)` takes stand-ins for the classes and functions of these names."""
    kinds = [(_Named(name, (StandIn,), {"stands_for": name}), name) for name in names]
    return safe_globals(kinds)  # type: ignore[arg-type]  # a class is a callable


def unknown_names(file: IO[bytes], zipped: bool) -> list[str]:
    """The classes and functions that a file of `torch.save` names, but those that the user has declared safe.

    Raises anything where the file is damaged.
    """
    safe = get_safe_globals()
    known = {each[1] if isinstance(each, tuple) else f"{each.__module__}.{each.__qualname__}" for each in safe}
    names = {name for pickle in _pickles(file, zipped) for name in _names(pickle)} - known
    return sorted(name for name in names if not _OF_WEIGHTS.fullmatch(name))


def stood_for(value: Any) -> str | None:
    """The class or function that a file has in the place of `value`; None where it has the value itself."""
    kind = value if isinstance(value, _Named) else type(value)
    return kind.stands_for if isinstance(kind, _Named) else None


def _pickles(file: IO[bytes], zipped: bool) -> Iterator[IO[bytes]]:
    if zipped:
        with zipfile.ZipFile(file) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            yield io.BytesIO(archive.read(name))
    else:
        yield from [file] * _LEGACY_PICKLES


def _names(pickle: IO[bytes]) -> Iterator[str]:
    for opcode, argument, _ in pickletools.genops(pickle):
        if opcode.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            if (module, name) in _compat_pickle.NAME_MAPPING:  # as torch too reads names of Python 2
                module, name = _compat_pickle.NAME_MAPPING[module, name]
            yield f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"
