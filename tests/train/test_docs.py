"""Every command that a page shows is one that its program takes: the real parser reads it."""

import importlib.util
import re
import shlex
import tomllib
from argparse import ArgumentParser
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, is_dataclass
from typing import Any, NoReturn, get_args, get_type_hints

import pytest
import tyro
from torch.distributed.run import get_args_parser

import bench.__main__
import tam_triton.command
import train.__main__
from tam_triton.nets import list_models
from tests.support import pages
from tests.support.pages import ROOT, command_lines
from train.recipes import RECIPES

ON_TRAINING = ("docs/kinetics-400.md", "docs/something-something.md", "docs/training.md")
ON_USE = ("docs/predicting.md", "docs/export.md")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


class _ParsedError(Exception):
    """Ends a command line where it would begin to work."""


def stopping(original: Callable[..., Any], parsed: list[Any]) -> Callable[..., NoReturn]:
    def stop(*args: Any, **options: Any) -> NoReturn:
        parsed.append(original(*args, **options))
        raise _ParsedError

    return stop


def parse(monkeypatch: pytest.MonkeyPatch, program: str, arguments: list[str]) -> Any:
    """What the real command line makes of `arguments`, without doing it."""
    parsed: list[Any] = []
    main = {"train": train.__main__.main, "bench": bench.__main__.main}[program]
    with monkeypatch.context() as patch:
        patch.setattr(tyro, "cli", stopping(tyro.cli, parsed))
        if arguments[:1] == ["device"]:
            patch.setattr("torch.cuda.is_available", lambda: True)
        try:
            status: Any = main(arguments)
        except _ParsedError:
            return parsed[0]
        except SystemExit as ended:
            status = ended.code
    said_how = not arguments or arguments[-1] == "--help"
    assert (status, said_how) == (0, True), f"{program} {shlex.join(arguments)}: is refused"
    return None


def check(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    """Raises where a program does not take what follows it, or is none that the pages may name."""
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    name, *rest = words
    if name in ("python", "torchrun"):
        at = rest.index("-m")
        if name == "torchrun":
            get_args_parser().parse_args([*rest[:at], "-m", *rest[at + 1 :]])
        module, arguments = rest[at + 1], rest[at + 2 :]
        if module in ("train", "bench"):
            parse(monkeypatch, module, arguments)
        else:
            assert importlib.util.find_spec(module), module
    elif name == "tam-triton":
        with monkeypatch.context() as patch, suppress(_ParsedError):
            patch.setattr(ArgumentParser, "parse_args", stopping(ArgumentParser.parse_args, []))
            tam_triton.command.main(rest)
    elif name == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert {word for word in rest if "=" not in word} <= set(targets), rest
    elif name == "pip":
        wanted = [extra for word in rest for group in re.findall(r"\[(.*)\]", word) for extra in group.split(",")]
        assert rest[0] == "install"
        assert set(wanted) <= PROJECT["project"]["optional-dependencies"].keys(), wanted
    elif name == "pytest":
        marks = [mark.partition(":")[0] for mark in PROJECT["tool"]["pytest"]["ini_options"]["markers"]]
        assert rest[rest.index("-m") + 1] in marks
    else:
        assert name in OTHERS, f"{name}: is no command that a test knows"


OTHERS = ("ffmpeg",)
"""Programs of others."""


def parts(page: str, line: str) -> list[list[str]]:
    """The commands of a line, one after another in a pipe, with the variables that the page exports in their place."""
    known = {
        match[1]: shlex.split(match[2])[0]
        for _, other in command_lines(page)
        if (match := re.match(r"export (\w+)=(.*)", other))
    }
    for name, value in known.items():
        line = re.sub(rf"\${name}\b", value, line)
    line = line.replace(" NAME", " aggregate")  # of an operator
    words, found = shlex.split(line, comments=True), list[list[str]]([[]])
    for word in words:
        if word == "|":
            found.append([])
        else:
            found[-1].append(word)
    return [] if words[0] == "export" else found


LINES = [(page, number, line) for page in pages.pages() for number, line in command_lines(page)]


@pytest.mark.parametrize(("page", "number", "line"), LINES, ids=[f"{page}:{number}" for page, number, _ in LINES])
def test_a_command_is_taken(page: str, number: int, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in parts(page, line):
        check(monkeypatch, words)


def option_classes(kind: type) -> set[str]:
    """The dataclass of a command's options and those in it, by their paths."""
    found = {f"{kind.__module__}.{kind.__qualname__}"}
    hints = get_type_hints(kind)
    for option in fields(kind):
        for part in (hints[option.name], *get_args(hints[option.name])):
            if is_dataclass(part) and isinstance(part, type):
                found |= option_classes(part)
    return found


def test_the_reference_has_every_option(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command is a heading of the page, and each class that a command's options are fields of is shown there."""
    page = pages.text("docs/api/command-lines.md")
    shown = set(re.findall(r"^::: ([\w.]+)$", page, re.MULTILINE))
    headings = re.findall(r"^### (train|bench) (\w+)$", page, re.MULTILINE)
    assert headings == [("train", name) for name in train.__main__.COMMANDS] + [
        ("bench", name) for name in bench.__main__.COMMANDS
    ]
    examples = {}
    for _, _, line in LINES:
        for words in parts("README.md", line) if " NAME" not in line else ():
            if (place := [i for i, word in enumerate(words) if word in ("train", "bench")]) and words[-1] != "--help":
                program, *arguments = words[place[0] :]
                examples[program, arguments[0] if arguments else ""] = arguments
    classes = set[str]()
    for program, name in headings:
        classes |= option_classes(type(parse(monkeypatch, program, examples.get((program, name), [name]))))
    assert classes - shown == set()


def names(page: str) -> set[str]:
    """The commands of `train` that a page has."""
    return {match[1] for _, line in command_lines(page) if (match := re.search(r"-m train (\w+)", line))}


def test_the_pages_have_commands() -> None:
    for page in ON_TRAINING:
        assert {"prepare", "fit", "test", "ensemble"} <= names(page), page
    assert names("docs/predicting.md") == {"predict", "extract"}
    assert names("docs/export.md") == {"export", "predict", "test"}


@pytest.mark.parametrize(
    "line",
    [
        "python -m train prepare list.csv --source kinetic",
        "python -m train fit k400-9f",
        "python -m train fit k400-8f --lr 1",
        "python -m train fits",
        "python -m bench opss",
        "torchrun --nproc 2 --no-such-option -m train fit k400-8f",
        "tam-triton best.pt one.mp4 --topp 3",
        "make teest",
        "pip install 'tam-triton[netss]'",
        "pytest -m gpus",
        "python -m tests.executed.tables",
        "nvidia-smi",
    ],
)
def test_a_wrong_command_is_not(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((AssertionError, SystemExit)):
        check(monkeypatch, shlex.split(line))


def test_overrides_reach_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pages' advice about batch size and learning rate gives the rates that they say."""
    text = "fit k400-8f --optimization.batch-size 128 --optimization.scale-lr"
    assert text.removeprefix("fit k400-8f ") in pages.text("docs/kinetics-400.md")
    assert parse(monkeypatch, "train", text.split()).recipe.resolve().optimization.lr == pytest.approx(0.02)


def test_options_that_the_text_names_exist(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Options in running text, such as `--loading.timeout`, are options of some command; of tables the last column."""
    for name in train.__main__.COMMANDS:
        recipe = ["k400-8f"] if name in ("fit", "compare") else []
        with pytest.raises(SystemExit):
            train.__main__.main([name, *recipe, "--help"])
    for name in bench.__main__.COMMANDS:
        with pytest.raises(SystemExit):
            bench.__main__.main([name, "--help"])
    known = capsys.readouterr().out
    for page in pages.pages():
        text = re.sub(r"^```\n.*?^```$", "", pages.text(page), flags=re.M | re.S)
        text = re.sub(r"^\|.*\|([^|]*)\|$", r"\1", text, flags=re.M)
        for span in re.findall(r"`([^`\n]*--[^`\n]*)`", text):
            if re.search(r"tests|pytest|-m train --|tam-triton", span):
                continue
            for option in re.findall(r"(?<![\w-])--[a-z][\w.-]*(?<![.…])", span):
                assert re.search(rf"{re.escape(option)}[\s,.]", known) or option in TORCHRUN, (page, option)


TORCHRUN = {string for action in get_args_parser()._actions for string in action.option_strings}


def test_every_system_has_its_row() -> None:
    """Of the paper's tables; each command writes into a place of its own."""
    systems = set()
    for _, line in command_lines("docs/paper-tables.md"):
        if recipe := re.search(r"-m train fit (\S+)", line):
            system = re.search(r"--model\.system (\S+)", line)
            systems.add(system[1] if system else RECIPES[recipe[1]].model.system)
    assert systems == set(list_models())
    places = [match for _, line in command_lines("docs/paper-tables.md") for match in re.findall(r"--out (\S+)", line)]
    assert len(places) == len(set(places))
