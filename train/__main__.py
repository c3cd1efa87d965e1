"""`python -m train` with `compare`, `convert`, `demo`, `ensemble`, `fit`, `predict`, `prepare` and `test`."""

import io
import sys
from collections.abc import Sequence

import tyro

from bench.batch_finder import find_batch
from train.compare.compare import run_compare
from train.compare.config import CompareConfig, compare_subcommands
from train.convert import ConvertConfig, run_convert
from train.data.prepare import PrepareConfig, run_prepare
from train.demo.demo import DemoConfig, run_demo
from train.errors import InputError
from train.evaluation.ensemble import EnsembleConfig, run_ensemble
from train.evaluation.predict import PredictConfig, run_predict
from train.evaluation.test import EvaluationConfig, run_test
from train.fit.config import FitConfig, fit_subcommands
from train.fit.fit import run_fit
from train.team import choose_device


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Errors of the user's making end in one line, not in a traceback."""
    commands = {
        "compare": compare_subcommands(),
        "convert": ConvertConfig,
        "demo": DemoConfig,
        "ensemble": EnsembleConfig,
        "fit": fit_subcommands(),
        "predict": PredictConfig,
        "prepare": PrepareConfig,
        "test": EvaluationConfig,
    }
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names may hold what a terminal has no letters for
            stream.reconfigure(errors="backslashreplace")
    try:
        config = tyro.extras.subcommand_cli_from_dict(
            commands, prog="python -m train", description=__doc__, args=arguments
        )
        if isinstance(config, DemoConfig):
            run_demo(config)
        elif isinstance(config, CompareConfig):
            return _status(run_compare(config))
        elif isinstance(config, ConvertConfig):
            run_convert(config)
        elif isinstance(config, FitConfig):
            return _fit(config)
        elif isinstance(config, PrepareConfig):
            run_prepare(config)
        elif isinstance(config, EvaluationConfig):
            run_test(config)
        elif isinstance(config, EnsembleConfig):
            run_ensemble(config)
        else:
            run_predict(config)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _fit(config: FitConfig) -> int:
    if config.find_batch:
        recipe = config.recipe.resolve()
        print(find_batch(recipe, recipe.data.num_classes or 400, config.compute, choose_device(config.device)))
        return 0
    return _status(run_fit(config).signal)


def _status(signal: int | None) -> int:
    """0 for what came to its end; for what a signal stopped, the status that shells give for that signal."""
    return 0 if signal is None else 128 + signal


if __name__ == "__main__":
    sys.exit(main())
