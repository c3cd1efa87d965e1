"""The command line: `python -m train demo` and `python -m train predict CHECKPOINT VIDEO`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from train.checkpoint import load_checkpoint
from train.demo import DemoConfig, run_demo
from train.errors import InputError
from train.predict import predict


@dataclass(frozen=True)
class PredictConfig:
    """Name what is in a video: the most probable classes of a trained network, with their probabilities."""

    checkpoint: tyro.conf.Positional[Path]
    """Checkpoint written by a training run."""
    video: tyro.conf.Positional[Path]
    """Video file of any format and size."""
    top: int = 5
    """How many classes to show."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Errors of the user's making end in one line, not in a traceback."""
    config = tyro.extras.subcommand_cli_from_dict(
        {"demo": DemoConfig, "predict": PredictConfig}, prog="python -m train", description=__doc__, args=arguments
    )
    try:
        if isinstance(config, DemoConfig):
            run_demo(config)
        else:
            _print_prediction(config)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _print_prediction(config: PredictConfig) -> None:
    if config.top < 1:
        raise InputError(f"top: must be at least 1, got {config.top}")
    for class_name, probability in predict(load_checkpoint(config.checkpoint), config.video, config.top):
        print(f"{probability:7.2%}  {class_name}")


if __name__ == "__main__":
    sys.exit(main())
