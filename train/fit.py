"""`python -m train fit RECIPE`: from a recipe and a data set's indices to a trained network, on one GPU or many."""

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from train.batch_finder import find_batch
from train.checkpoint import RunCheckpoints
from train.data.entries import Split
from train.data.index import read_index
from train.data.loader import Loading
from train.errors import InputError
from train.fields import check_types, require
from train.learner import Compute
from train.log import RunLog, tensorboard_writer
from train.precision import reproducible
from train.recipes import Recipe, recipe_subcommands
from train.run import Outcome, Run
from train.signals import StopRequest, stop_on_signals
from train.team import Team, choose_device, join_team


@dataclass(frozen=True)
class FitConfig:
    """Train a network. Under torchrun every process takes its share of each step's clips.

    SIGTERM and Ctrl-C stop it after the step at hand with a checkpoint; --resume goes on as if nothing had been.
    """

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    out: Path = Path("runs/fit")
    """Folder for checkpoints, the log and the resolved recipe."""
    resume: bool = False
    """Go on from the newest checkpoint in `out` that is whole, or begin if there is none."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: GPUs where there are some."""
    compute: Compute = field(default_factory=Compute)
    loading: Loading = field(default_factory=Loading)
    checkpoint_every: int = 1000
    """Steps between checkpoints within an epoch; one at its end comes anyway."""
    keep: int = 3
    """How many of the last checkpoints are kept; the best is kept besides."""
    log_every: int = 20
    """Steps between lines of the log."""
    tensorboard: bool = False
    """Write curves for TensorBoard too."""
    deterministic: bool | None = None
    """Take only algorithms that give the same bits each time; by default on the CPU alone, since GPUs lose speed."""
    threads: int | None = None
    """Threads that torch computes with on the CPU; by default as many as torch takes."""
    timeout: float = 600.0
    """Seconds after which a process that does not answer the others is taken for lost."""
    find_batch: bool = False
    """Train nothing: say how many clips of a step fit into the GPU's memory."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("checkpoint_every", "keep", "log_every"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        require(self, "threads", self.threads is None or self.threads >= 1, "at least 1")
        longest = self.loading.timeout
        require(
            self, "timeout", self.timeout > longest, f"more than the {longest:g} s that one clip may take to be read"
        )


def fit_subcommands() -> Any:
    """A type for tyro: FitConfig with a subcommand for each recipe."""
    return recipe_subcommands(lambda recipe: FitConfig(recipe, out=Path("runs") / recipe.name))


def run_fit(config: FitConfig) -> Outcome | None:
    """Do what the command line asks for; None if only batch sizes were asked for.

    Raises:
        InputError: an option, file or folder that cannot be used; or the run ended before its end, as its message says.
    """
    recipe = config.recipe.resolve()
    if config.find_batch:
        device = choose_device(config.device)
        print(find_batch(recipe, recipe.data.num_classes or 400, config.compute, device))
        return None
    with stop_on_signals() as stop, join_team(config.device, config.timeout) as team:
        train, val = _read_splits(recipe, team)
        return fit(config, train, val, team, stop)


def fit(config: FitConfig, train: Split, val: Split, team: Team, stop: StopRequest) -> Outcome:
    """Train by `config` on the videos of `train`, validating on `val`, together with the other processes of `team`.

    `config.out` then holds `recipe.json`, `log.jsonl`, `checkpoints/step-*.pt` and `checkpoints/best.pt`. What is
    returned is the same in all processes.

    Raises:
        InputError: the data do not suit the recipe; the folder holds another run; a loss is no number; too many videos
            cannot be read; reading or writing fails for good; another process is lost.
    """
    recipe = config.recipe.resolve()
    for split in (train, val):
        recipe.data.check_split(split)
    if train.class_names != val.class_names:
        raise InputError("data: the training and the validation videos have different class names")
    if recipe.validation.per_video != 1:
        raise InputError(
            f"validation: got {recipe.validation.per_video} views of a video, expected 1; a test takes more"
        )
    checkpoints = RunCheckpoints(config.out / "checkpoints", config.keep)
    team.led(lambda: _prepare_folder(config, recipe, checkpoints))
    writer = tensorboard_writer(config.out / "tensorboard") if config.tensorboard and team.leads else None
    folder = config.out if team.leads else None
    with _settings(config, team.device), RunLog(folder, append=config.resume, writer=writer) as log:
        run = Run(config, recipe, train, val, team, stop, checkpoints, log)
        if config.resume:
            run.resume()
        return run.train()


def _read_splits(recipe: Recipe, team: Team) -> tuple[Split, Split]:
    paths = (recipe.data.train, recipe.data.val)
    if None in paths:
        raise InputError(
            "data.train and data.val: both are needed, the indices that `python -m train prepare` writes; "
            f"got {paths[0]} and {paths[1]}"
        )
    train, val = (read_index(path) for path in paths if path is not None)
    if team.leads:
        # What is gone is in no score of the run, so it is to be seen beside them.
        print(train.summary(), val.summary(), sep="\n", flush=True)
    return train.split, val.split


def _prepare_folder(config: FitConfig, recipe: Recipe, checkpoints: RunCheckpoints) -> None:
    if checkpoints.by_age() and not config.resume:
        raise InputError(
            f"{config.out}: holds a run already; go on with it by --resume, or take another folder by --out"
        )
    checkpoints.folder.mkdir(parents=True, exist_ok=True)
    if not checkpoints.by_age():
        (config.out / "recipe.json").write_text(recipe.to_json() + "\n")


def _settings(config: FitConfig, device: torch.device) -> AbstractContextManager[None]:
    deterministic = device.type == "cpu" if config.deterministic is None else config.deterministic
    if not deterministic:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        return nullcontext()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses to be deterministic
    return reproducible(config.threads)
