"""Every command in the pages about training is one that the command line takes: the real parser reads it."""

import re
import shlex
from pathlib import Path
from typing import Any, NoReturn

import pytest
import tyro

import bench.__main__
import train.__main__

DOCS = Path(__file__).parents[2] / "docs"
ON_TRAINING = ("kinetics-400.md", "something-something.md", "training.md")
PAGES = (*ON_TRAINING, "predicting.md", "export.md")
COMMAND = re.compile(r"-m (train|bench) (.*)")


class _ParsedError(Exception):
    """Ends a command line where it would begin to work."""


def commands(page: str) -> list[tuple[str, str]]:
    """(program, arguments) of all command lines in the page's blocks without a language and in its running text."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)
    blocks = [line for language, block in found if not language for line in block.splitlines()]
    inline = re.findall(r"`(python -m (?:train|bench) [^`]* --[^`]*)`", text)
    return [(match[1], match[2]) for line in (*blocks, *inline) if (match := COMMAND.search(line))]


def parse(monkeypatch: pytest.MonkeyPatch, program: str, arguments: str) -> Any:
    """What the real command line makes of `arguments`, without doing it."""
    parsed: list[Any] = []

    def stopping(original: Any) -> Any:
        def stop(*args: Any, **options: Any) -> NoReturn:
            parsed.append(original(*args, **options))
            raise _ParsedError

        return stop

    main = {"train": train.__main__.main, "bench": bench.__main__.main}[program]
    with monkeypatch.context() as patch:
        patch.setattr(tyro, "cli", stopping(tyro.cli))
        with pytest.raises((_ParsedError, SystemExit)) as ended:
            main(shlex.split(arguments))
    if ended.type is SystemExit:
        assert arguments.endswith("--help"), f"{program} {arguments}: is refused"
        assert ended.value.code == 0  # type: ignore[attr-defined]
        return None
    return parsed[0]


LINES = [(page, *command) for page in (*PAGES, "visualizing.md") for command in commands(page)]


def test_the_pages_have_commands() -> None:
    for page in ON_TRAINING:
        names = {arguments.split()[0] for _, arguments in commands(page)}
        assert {"prepare", "fit", "test", "ensemble"} <= names, page
    assert {arguments.split()[0] for _, arguments in commands("predicting.md")} == {"predict", "extract"}
    assert {arguments.split()[0] for _, arguments in commands("export.md")} == {"export", "predict", "test"}


@pytest.mark.parametrize(("page", "program", "arguments"), LINES, ids=[f"{p}-{i}" for i, (p, *_) in enumerate(LINES)])
def test_a_command_is_taken(page: str, program: str, arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parse(monkeypatch, program, arguments)


@pytest.mark.parametrize(
    ("program", "arguments"),
    [("train", "prepare list.csv --source kinetic"), ("train", "fit k400-9f"), ("train", "fit k400-8f --lr 1")],
)
def test_a_wrong_command_is_not(
    program: str, arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(AssertionError, match="is refused"):
        parse(monkeypatch, program, arguments)


def test_overrides_reach_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pages' advice about batch size and learning rate gives the rates that they say."""
    text = "fit k400-8f --optimization.batch-size 128 --optimization.scale-lr"
    assert text.removeprefix("fit k400-8f ") in (DOCS / "kinetics-400.md").read_text(encoding="utf-8")
    assert parse(monkeypatch, "train", text).recipe.resolve().optimization.lr == pytest.approx(0.02)


def test_options_that_the_text_names_exist(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Options in running text, such as `--loading.timeout`, are options of some command."""
    known = ""
    for command in ("prepare", "fit k400-8f", "test", "ensemble", "predict", "extract", "export"):
        with pytest.raises(SystemExit):
            train.__main__.main([*command.split(), "--help"])
        known += capsys.readouterr().out
    for page in PAGES:
        text = re.sub(r"^```\n.*?^```$", "", (DOCS / page).read_text(encoding="utf-8"), flags=re.M | re.S)
        for span in re.findall(r"`([^`\n]*--[^`\n]*)`", text):
            if "bench" in span:
                continue
            for option in re.findall(r"--[a-z][\w.-]*(?<![.…])", span):
                assert re.search(rf"{re.escape(option)}[\s,.]", known), (page, option)
