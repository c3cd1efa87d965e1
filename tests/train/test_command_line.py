"""`python -m train` before a command begins to work: what it imports, and which process of several speaks."""

import subprocess
import sys

import pytest

import train.__main__
from train.__main__ import COMMANDS, main

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
    assert all(f"  {name:<8}  {command.__doc__}\n" in shown for name, command in COMMANDS.items())


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
