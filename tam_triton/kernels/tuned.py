"""Launch configurations from a file, in place of those that the launch rules give, and only after `use`.

`python -m bench tune` writes such files. One holds for one kind of GPU and the shapes that it names; every other launch
is as ever. Sums over pixels are taken in another order, so that results are equal to rounding and not to the bit.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

from triton import knobs
from triton.runtime import driver

from tam_triton.kernels import launch
from tam_triton.kernels.launch import Block, Tile, ceil_div, next_power_of_2, row_vector

FORMAT = 1
INTERPRETED = "interpreter"
# The rules whose answers may be replaced: their kinds of answers, and the names of their arguments.
RULES: dict[str, tuple[type[Block | Tile], tuple[str, ...]]] = {
    "temporal_block": (Block, ("channels", "pixels", "channels_last", "itemsize")),
    "squeeze_tile": (Tile, ("frames", "channels", "pixels", "channels_last", "itemsize")),
    "moments_tile": (Tile, ("frames", "channels", "pixels", "channels_last", "itemsize")),
    "band_tile": (Tile, ("clips", "channels", "pixels", "channels_last", "itemsize", "bands")),
}
MOST_ELEMENTS = 2**14  # of a program's block
MOST_THREADS = 1024  # of a program
Key = tuple[Any, ...]  # a rule's name and arguments
Choice = Block | Tile


@dataclass(frozen=True)
class Where:
    """What a file of tuned launches holds for: Triton's target, such as cuda:90, and what launch rules ask of it."""

    target: str
    multiprocessors: int
    warp_size: int


def here() -> Where:
    """The GPU that kernels are launched on now; interpreted kernels are those of any such target.

    Raises:
        RuntimeError: there is none.
    """
    target = None if knobs.runtime.interpret else driver.active.get_current_target()
    return Where(INTERPRETED if target is None else f"{target.backend}:{target.arch}", *launch.device())


def use(path: str | PathLike[str] | None) -> int:
    """From now on launches that the file names are as it says; with None all are as the rules say.

    Nothing is changed if anything in the file is refused.

    Returns:
        How many launches of the file are in use.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no such file, holds for another GPU, or a launch in it would not compute what it should.
        RuntimeError: there is no GPU, and kernels are not interpreted.
    """
    choices = {} if path is None else read(Path(path))
    launch.CHOSEN.clear()
    launch.CHOSEN.update(choices)
    return len(choices)


@contextmanager
def chosen(choices: Mapping[Key, Choice]) -> Iterator[None]:
    """These, and no others, inside."""
    before = dict(launch.CHOSEN)
    launch.CHOSEN.clear()
    launch.CHOSEN.update(choices)
    try:
        yield
    finally:
        launch.CHOSEN.clear()
        launch.CHOSEN.update(before)


def read(path: Path) -> dict[Key, Choice]:
    """The file's launches, all of them checked."""
    try:
        document = json.loads(path.read_text())
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']!r}, expected {FORMAT}")
        where = Where(**document["where"])
        entries = [(entry["rule"], entry["arguments"], entry["chosen"]) for entry in document["launches"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: got {error}, expected a file that `python -m bench tune` wrote") from error
    found = here()
    if found not in (where, replace(where, target=INTERPRETED)):
        raise ValueError(f"{path}: got launches for {where}, expected {found}, the GPU that is here")
    choices: dict[Key, Choice] = {}
    for number, (rule, arguments, values) in enumerate(entries):
        try:
            key, choice = parsed(rule, arguments, values)
        except ValueError as error:
            raise ValueError(f"{path}: launch {number}: {error}") from None
        choices[key] = choice
    return choices


def write(path: Path, where: Where, choices: Mapping[Key, Choice], notes: Mapping[Key, dict[str, Any]]) -> None:
    """The launches, as `read` reads them, each with notes that it does not read, such as times."""
    document = {
        "format": FORMAT,
        "where": asdict(where),
        "launches": [
            {
                "rule": key[0],
                "arguments": arguments_of(key),
                "chosen": asdict(choice),
                **notes.get(key, {}),
            }
            for key, choice in choices.items()
        ],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")


def parsed(rule: Any, arguments: Any, values: Any) -> tuple[Key, Choice]:
    """One launch of a file.

    Raises:
        ValueError: it is none, or would not compute what it should.
    """
    if not isinstance(rule, str) or rule not in RULES:
        raise ValueError(f"rule: got {rule!r}, expected one of {', '.join(RULES)}")
    kind, names = RULES[rule]
    expected = {field.name for field in fields(kind)}
    for what, got, wanted in (("arguments", arguments, set(names)), ("chosen", values, expected)):
        if not isinstance(got, dict) or got.keys() != wanted:
            raise ValueError(f"{what}: got {got!r}, expected {', '.join(sorted(wanted))}")
        for name, value in got.items():
            least = 1 if what == "arguments" and name != "channels_last" else 0
            if type(value) is not (bool if name == "channels_last" else int) or value < least:
                raise ValueError(f"{what}, {name}: got {value!r}")
    key, choice = (rule, *(arguments[name] for name in names)), kind(**values)
    if (wrong := fault(key, choice)) is not None:
        raise ValueError(f"{rule}{key[1:]}: {wrong}")
    return key, choice


def fault(key: Key, choice: Choice) -> str | None:
    """Why a launch would not compute what it should; None if it would."""
    arguments = arguments_of(key)
    channels, pixels, channels_last = arguments["channels"], arguments["pixels"], arguments["channels_last"]
    widest = row_vector(channels, pixels, channels_last, arguments["itemsize"])
    if not powers_of_2(choice.vector) or choice.vector > widest:
        return f"vector: got {choice.vector}, expected a power of two up to {widest}, which divides a row"
    if isinstance(choice, Block):
        if not powers_of_2(choice.vectors) or choice.elements > MOST_ELEMENTS:
            return f"vectors: got {choice.vectors}, expected a power of two, {MOST_ELEMENTS} elements at most"
        return None if choice.ahead else "ahead: got 0, expected at least 1"
    if not powers_of_2(choice.channels, choice.pixels) or choice.channels * choice.pixels > MOST_ELEMENTS:
        return f"got {choice.channels} × {choice.pixels}, expected powers of two, {MOST_ELEMENTS} elements at most"
    if choice.vector > (choice.channels if channels_last else choice.pixels):
        return f"vector: got {choice.vector}, expected no more than the tile has"
    if not powers_of_2(choice.warps) or choice.warps * launch.device().warp_size > MOST_THREADS:
        return f"warps: got {choice.warps}, expected a power of two of {MOST_THREADS} threads at most"
    if not choice.steps or not choice.unroll or (key[0] == "band_tile" and choice.unroll != 1):
        return f"got {choice.steps} steps of {choice.unroll}, expected at least 1 of each, and 1 of a band's"
    total = tiles(key, choice)
    if choice.parts != ceil_div(total, choice.steps * choice.unroll):
        return (
            f"parts: got {choice.parts} of {choice.steps * choice.unroll} tiles, expected as many as hold {total} tiles"
        )
    return None


def tiles(key: Key, tile: Tile) -> int:
    """That all parts together reduce, of one clip or frame or, for the moments, of all frames."""
    arguments = arguments_of(key)
    return ceil_div(arguments["pixels"], tile.pixels) * (arguments["frames"] if key[0] == "moments_tile" else 1)


def arguments_of(key: Key) -> dict[str, Any]:
    """A rule's arguments by name."""
    return dict(zip(RULES[key[0]][1], key[1:], strict=True))


def powers_of_2(*numbers: int) -> bool:
    """Whether all are."""
    return all(number > 0 and next_power_of_2(number) == number for number in numbers)
