"""What a training run is asked for: the recipe, and where, how fast and in how many processes it computes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from train.data.loader import Loading
from train.errors import InputError
from train.fields import check_types, require
from train.precision import Precision
from train.recipe import Recipe
from train.recipes import recipe_subcommands


@dataclass(frozen=True)
class Compute:
    """How a run computes: what decides its speed and its memory, and its numbers only within rounding.

    Except that BatchNorm sees the clips of one process and one part of a step at a time; `sync_batchnorm` lets it see
    those of all processes.
    """

    precision: Precision = "fp32"
    """bf16 and fp16 compute under autocast, fp16 with a loss scaler; weights stay float32."""
    accumulate: int = 1
    """Parts that each process computes its clips of a step in, one after the other (gradient accumulation)."""
    channels_last: bool = True
    """Keep pictures and convolutions in channels_last."""
    compile: bool = False
    """Compile the training pass with torch.compile."""
    recompute: bool = False
    """Keep only the inputs of blocks and compute the rest again (activation checkpointing)."""
    sync_batchnorm: bool = False
    """Take BatchNorm's statistics over all processes; on GPUs only."""
    tuned: Path | None = None
    """A file of launches that `python -m bench tune` wrote for this kind of GPU, in place of the library's own."""
    ema: float | None = None
    """Decay of an exponential moving average of the weights, such as 0.999; evaluation then uses the average. It rises
    to that: after step s it is 1 − s^(−2/3) where this is less, so that short runs forget the weights at the start."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self, "accumulate", self.accumulate >= 1, "at least 1")
        require(self, "ema", self.ema is None or 0 < self.ema < 1, "a number between 0 and 1")
        if self.compile and self.recompute:
            raise InputError(
                "compute: compile and recompute exclude each other; torch.compile itself decides what to keep"
            )


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Train a network. Under torchrun every process takes its share of each step's clips.

    SIGTERM and Ctrl-C stop it after the step at hand with a checkpoint; --resume goes on as if nothing had been.

    Most runs change five options alone: --out, --compute.precision, --data.train, --data.val and
    --optimization.batch-size. Each stands first where a recipe's options are listed. In their texts *paper* is arXiv
    2005.06803, *script* its authors' training scripts, *mmaction2* the implementation in OpenMMLab's library of that
    name; all other values are those of the recipe.
    """

    out: Path = Path("runs/fit")
    """Folder for checkpoints, the log and the resolved recipe."""
    compute: Compute = field(default_factory=Compute)
    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    resume: bool = False
    """Go on from the newest checkpoint in `out` that is whole, or begin if there is none."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: GPUs where there are some."""
    loading: Loading = field(default_factory=Loading)
    checkpoint_every: int = 1000
    """Steps between checkpoints within an epoch; one at its end comes anyway."""
    keep: int = 3
    """How many of the last checkpoints are kept; the best is kept besides."""
    log_every: int = 20
    """Steps between lines of the log."""
    tensorboard: bool = False
    """Write curves for TensorBoard too."""
    wandb: str | None = None
    """Project of Weights & Biases that the same curves are to go to, as one run, which --resume goes on with."""
    stop_after: int | None = None
    """Epochs in a row after whose validation top-1 has not become better that end the run early; None trains them all.
    The learning rate falls as if there were none. In no recipe: the run then depends on the validation videos."""
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
        for name in ("threads", "stop_after"):
            require(self, name, getattr(self, name) is None or getattr(self, name) >= 1, "at least 1")
        require(self, "wandb", self.wandb != "", "the name of a project, or None")
        longest = self.loading.timeout
        require(
            self, "timeout", self.timeout > longest, f"more than the {longest:g} s that one clip may take to be read"
        )


def fit_subcommands() -> Any:
    """A type for tyro: FitConfig with a subcommand for each recipe."""
    return recipe_subcommands(lambda recipe: FitConfig(recipe=recipe, out=Path("runs") / recipe.name))
