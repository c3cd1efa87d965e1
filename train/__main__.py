"""The command line: one command a subcommand, of which only what it needs is imported when it is named."""

import inspect
import io
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any

import tyro

from train.errors import InputError

COMPLETION, SHELLS = "--tyro-print-completion", ("bash", "zsh", "tcsh", "fish")
LEADER_SPEAKS = 5.0
"""Seconds that other processes leave the leading one to print: torchrun ends all when the first one ends."""


def compare(arguments: Sequence[str]) -> int:
    """Train several systems on one data set, over several seeds: mean ± std, cost and speed of each."""
    from train.compare.config import CompareConfig, compare_subcommands

    config: CompareConfig = parse("compare", compare_subcommands(), arguments, inspect.getdoc(CompareConfig))
    from train.compare.compare import run_compare

    return _status(run_compare(config))


def convert(arguments: Sequence[str]) -> int:
    """Write a trained network's weights for the authors' code or for mmaction2."""
    from train.convert import ConvertConfig, run_convert

    run_convert(parse("convert", ConvertConfig, arguments))
    return 0


def demo(arguments: Sequence[str]) -> int:
    """Train a small TANet, and beside it the same network without TAM, on synthetic videos; minutes on a CPU."""
    from train.demo.config import DemoConfig

    config: DemoConfig = parse("demo", DemoConfig, arguments)
    from train.demo.demo import run_demo

    run_demo(config)
    return 0


def ensemble(arguments: Sequence[str]) -> int:
    """Average the scores that several tests have saved."""
    from train.evaluation.ensemble import EnsembleConfig, files_first, run_ensemble

    run_ensemble(parse("ensemble", EnsembleConfig, files_first(arguments)))
    return 0


def export(arguments: Sequence[str]) -> int:
    """Write a trained network for torch.export, ONNX or AOTInductor, checked against the checkpoint."""
    from train.export.config import ExportConfig

    config: ExportConfig = parse("export", ExportConfig, arguments)
    from train.export.export import run_export

    run_export(config)
    return 0


def extract(arguments: Sequence[str]) -> int:
    """Write features of videos, and feature maps, as a trained network computes them."""
    from train.evaluation.extract_config import ExtractConfig

    config: ExtractConfig = parse("extract", ExtractConfig, arguments)
    from train.evaluation.extract import run_extract

    run_extract(config)
    return 0


def fit(arguments: Sequence[str]) -> int:
    """Train a network by a recipe, such as k400-8f; on one GPU, or on several under torchrun."""
    from train.fit.config import FitConfig, fit_subcommands

    config: FitConfig = parse("fit", fit_subcommands(), arguments, inspect.getdoc(FitConfig))
    if config.find_batch:
        from bench.batch_finder import find_batch
        from train.team import choose_device

        recipe = config.recipe.resolve()
        print(find_batch(recipe, recipe.data.num_classes or 400, config.compute, choose_device(config.device)))
        return 0
    from train.fit.fit import run_fit

    return _status(run_fit(config).signal)


def predict(arguments: Sequence[str]) -> int:
    """Name the most probable classes of videos, over time if asked, and of streams as they come."""
    from train.evaluation.predict_config import PredictConfig

    config: PredictConfig = parse("predict", PredictConfig, arguments)
    from train.evaluation.predict import run_predict

    run_predict(config)
    return 0


def prepare(arguments: Sequence[str]) -> int:
    """Check the videos of a data set, file by file, and write the index that training reads."""
    from train.data.prepare import PrepareConfig, run_prepare

    run_prepare(parse("prepare", PrepareConfig, arguments))
    return 0


def test(arguments: Sequence[str]) -> int:
    """Score a trained network on a data set, by the paper's protocols."""
    from train.evaluation.test import EvaluationConfig, run_test

    run_test(parse("test", EvaluationConfig, arguments))
    return 0


def visualize(arguments: Sequence[str]) -> int:
    """Draw the kernels that a TANet gives videos, beside those of other data sets and I3D's."""
    from train.visualize.config import VisualizeConfig

    config: VisualizeConfig = parse("visualize", VisualizeConfig, arguments)
    from train.visualize.visualize import run_visualize

    run_visualize(config)
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "prepare": prepare,
    "fit": fit,
    "test": test,
    "ensemble": ensemble,
    "predict": predict,
    "extract": extract,
    "visualize": visualize,
    "compare": compare,
    "convert": convert,
    "export": export,
    "demo": demo,
}
"""In the order in which they are needed; what each does is its first line."""


def usage() -> str:
    """The commands, one a line."""
    lines = [f"  {name:<9}  {command.__doc__}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: python -m train COMMAND [options]; COMMAND --help lists its options", *lines])


def parse(name: str, kind: Any, arguments: Sequence[str], description: str | None = None) -> Any:
    """What a command is asked for. SystemExit ends `--help`, with 0, and options that are none, with 2."""
    completion = bool(arguments) and arguments[0].startswith("--tyro-")  # for a shell, in which a command is one word
    prog = f"train-{name}" if completion else f"python -m train {name}"
    with _leader_speaking():
        return tyro.cli(kind, prog=prog, description=description, args=arguments)


@contextmanager
def _leader_speaking() -> Iterator[None]:
    """Under torchrun all processes are given the same command line, and only the leading one says what is wrong."""
    if os.environ.get("RANK", "0") == "0":
        yield
        return
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    except (SystemExit, InputError) as error:
        time.sleep(LEADER_SPEAKS)
        raise SystemExit(error.code if isinstance(error, SystemExit) else 1) from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Errors of the user's making end in one line, not in a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names may hold what a terminal has no letters for
            stream.reconfigure(errors="backslashreplace")
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        if name == COMPLETION:
            return complete(rest)
        return COMMANDS[name](rest) if name in COMMANDS else _no_command(name)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def complete(shell: Sequence[str]) -> int:
    """Print what lets a shell complete every command's options, under the names train-fit, train-test, …"""
    if len(shell) != 1 or shell[0] not in SHELLS:
        raise InputError(f"{COMPLETION}: got {' '.join(shell)!r}, expected one of {', '.join(SHELLS)}")
    for command in COMMANDS.values():
        with suppress(SystemExit):
            command([COMPLETION, *shell])
    return 0


def _no_command(name: str) -> int:
    if name in ("-h", "--help"):
        print(usage())
        return 0
    with _leader_speaking():
        print(f"error: got command {name!r}", usage(), sep="\n", file=sys.stderr)
        raise SystemExit(2)


def _status(signal: int | None) -> int:
    """0 for what came to its end; for what a signal stopped, the status that shells give for that signal."""
    return 0 if signal is None else 128 + signal


if __name__ == "__main__":
    sys.exit(main())
