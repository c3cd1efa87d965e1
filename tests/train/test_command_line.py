"""`python -m train` before a command begins to work: what it imports, and which process of several speaks."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import train.__main__
from tests.support.options import options_without_text
from train.__main__ import COMMANDS, main
from train.compare.config import CompareConfig
from train.convert import ConvertConfig
from train.data.prepare import PrepareConfig
from train.demo.config import DemoConfig
from train.errors import InputError
from train.evaluation.ensemble import EnsembleConfig
from train.evaluation.extract_config import ExtractConfig
from train.evaluation.predict_config import PredictConfig
from train.evaluation.test import EvaluationConfig
from train.export.config import ExportConfig
from train.fit.config import FitConfig
from train.visualize.config import VisualizeConfig

HELP = """
import contextlib, io, sys
from train.__main__ import main
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as shown:
    main(sys.argv[1:])
assert "usage: python -m train" in shown.getvalue()
print(*sys.modules)
"""
NEVER = ["matplotlib", "bench", "tensorboard", "train.fit.run", "train.demo.demo", "train.compare.compare"]
TORCHVISION = ["torchvision", "torch._dynamo"]
NETWORKS = [*TORCHVISION, "tam_triton"]


@pytest.mark.parametrize(
    ("command", "unwanted"),
    [
        ("--help", ["torch", "numpy", "av", *NETWORKS]),
        ("predict --help", ["torch", "numpy", "av", *NETWORKS]),
        ("extract --help", ["torch", "numpy", "av", *NETWORKS]),
        ("visualize --help", ["torch", "numpy", "av", *NETWORKS]),
        ("export --help", ["torch", "numpy", "av", *NETWORKS]),
        ("prepare --help", ["torch", *NETWORKS]),
        ("ensemble --help", NETWORKS),
        ("fit k400-8f --help", TORCHVISION),
        ("compare k400-8f --help", TORCHVISION),
        ("demo --help", TORCHVISION),
        ("test --help", []),
    ],
)
def test_help_imports_little(command: str, unwanted: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", HELP, *command.split()], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & {*NEVER, *unwanted} == set()


def test_every_command_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name:<9}  {command.__doc__}\n" in shown for name, command in COMMANDS.items())


CONFIGURATIONS = (
    CompareConfig, ConvertConfig, DemoConfig, EnsembleConfig, EvaluationConfig, ExtractConfig, FitConfig, PredictConfig,
    PrepareConfig, VisualizeConfig, ExportConfig,
)  # fmt: skip


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_every_option_has_a_text(kind: type[Any]) -> None:
    assert options_without_text(kind) == []


def test_what_most_runs_change_stands_first(capsys: pytest.CaptureFixture[str]) -> None:
    """The options that the help of `fit` names, each at the head of its box, and their boxes before all others."""
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    named = re.findall(r"--[a-z][\w.-]+", capsys.readouterr().out.split("Most runs change")[1].split(". Each")[0])
    with pytest.raises(SystemExit):
        main(["fit", "k400-8f", "--help"])
    shown = capsys.readouterr().out.replace("│", " ")
    boxes = re.split(r"^\W+(?:\w+ )?options\b", shown, flags=re.MULTILINE)[1:]
    first = [re.findall(r"^ +(--[a-z][\w.-]+)", box, re.MULTILINE) for box in boxes]
    assert named == [first[0][0], first[1][0], *first[2][:2], first[3][0]]
    assert len(named) == 5


TAB = """
source "$1"
COMP_WORDS=("${@:2}") COMP_CWORD=$(($# - 2))
$(complete -p "$2" | sed "s/.* -F //; s/ .*//")
echo "${COMPREPLY[@]}"
"""


def test_a_shell_completes_every_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--tyro-print-completion", "bash"]) == 0
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out)

    def completed(*words: str) -> list[str]:
        command = ["bash", "-c", TAB, "bash", str(script), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    assert all("--help" in completed(f"train-{name}", "--h") for name in COMMANDS)
    assert completed("train-fit", "k400-s") == ["k400-slowfast-4x16", "k400-slowfast-8x8"]
    assert completed("train-fit", "own", "--model.system", "ts") == ["tsm"]
    assert main(["--tyro-print-completion", "command.com"]) == 1
    assert "expected one of bash, zsh" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [PredictConfig, ExtractConfig, VisualizeConfig])
@pytest.mark.parametrize(("field", "value", "expected"), [("segments", "draw", "None"), ("average", True, "False")])
def test_options_of_weights_are_refused_without_weights(
    kind: type[Any], field: str, value: object, expected: str
) -> None:
    with pytest.raises(InputError, match=f"{field}: got {value!r}, expected {expected} without weights"):
        kind(files=("best.pt", "one.mp4"), **{field: value})
    kind(files=("one.mp4",), weights=Path("w.pth"), recipe="k400-8f", **{field: value})


@pytest.mark.parametrize("kind", [PredictConfig, ExtractConfig])
def test_an_index_for_class_names_is_refused_without_weights(kind: type[Any]) -> None:
    with pytest.raises(InputError, match=r"data: got .*, expected None without weights"):
        kind(files=("best.pt", "one.mp4"), data=Path("val.jsonl"))


WRONG = {"fit k400-9f": 2, "fit demo --optimization.lr fast": 2, "fit demo --optimization.lr -1": 2, "fti": 2}


@pytest.mark.parametrize("command", WRONG)
def test_one_process_of_several_names_a_wrong_option(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others end as it does, but later, so that it has spoken when torchrun ends all."""
    waited: list[float] = []
    monkeypatch.setattr(train.__main__.time, "sleep", waited.append)
    for rank, speaks in ((None, True), ("0", True), ("1", False), ("7", False)):
        if rank is not None:
            monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as ended:
            main(command.split())
        assert ended.value.code == WRONG[command]
        shown = capsys.readouterr()
        assert (bool(shown.err), shown.out) == (speaks, "")
    assert waited == [train.__main__.LEADER_SPEAKS] * 2
