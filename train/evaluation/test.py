"""`python -m train test`: how good a trained network is on a data set, by any of the published protocols."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from train.data.entries import fingerprint
from train.data.index import read_index, require_some
from train.data.loader import Loading
from train.errors import InputError
from train.evaluation.protocols import choose_views, describe_views
from train.evaluation.report import check_folder, describe, write_report
from train.evaluation.scores import Accuracy
from train.evaluation.view_changes import ViewChanges
from train.evaluation.views import score_videos
from train.exported.network import ExportedNetwork, load_trained
from train.fields import check_types, require
from train.lock import Lock
from train.log import say
from train.precision import Precision, computing
from train.team import join_team
from train.weights import Foreign


@dataclass(frozen=True)
class EvaluationConfig:
    """Score a trained network on all videos of a data set. Under torchrun every process takes its share of them."""

    checkpoint: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="CHECKPOINT")] = None
    """Checkpoint of a training run. Where the run kept an average of its weights, that is the network."""
    weights: Path | None = None
    """Instead of a checkpoint: weights of another program, such as the authors' code and mmaction2, with --recipe."""
    recipe: str | None = None
    """What `weights` belong to: the name of a recipe, such as k400-8f, or the recipe.json of a run."""
    segments: Literal["interpolate", "draw"] | None = None
    """Where `weights` are of another number of frames: make TAM's global branches of them, or draw them anew."""
    average: bool = False
    """Take the moving average (EMA) that lies beside `weights` in their file."""
    data: Path | None = None
    """Index of the videos, as `python -m train prepare` writes it; by default the checkpoint's own `data.val`."""
    root: Path | None = None
    """Folder of the videos, where it is not the one that the index was written for."""
    protocol: Literal["recipe", "10x3", "4x3", "2x3", "1x1"] = "recipe"
    """recipe: what the recipe tests by. Otherwise clips × crops, of 256 pixels; 1x1 is the middle's centre of 224."""
    views: ViewChanges = field(default_factory=ViewChanges)
    out: Path = Path("runs/test")
    """Folder for the scores and tables."""
    overwrite: bool = False
    """Write over the scores that are in `out`."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: GPUs where there are some."""
    batch_size: int = 32
    """Views that a process computes at a time."""
    precision: Precision = "fp32"
    """bf16 and fp16 compute under autocast."""
    channels_last: bool = True
    """Keep pictures and convolutions in channels_last."""
    loading: Loading = field(default_factory=Loading)
    threads: int | None = None
    """Threads that torch computes with on the CPU; by default as many as torch takes."""
    timeout: float = 3600.0
    """Seconds after which a process that does not answer the others is taken for lost; they meet only at the end."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self, "batch_size", self.batch_size >= 1, "at least 1")
        require(self, "threads", self.threads is None or self.threads >= 1, "at least 1")
        require(self, "timeout", self.timeout > 0, "a number of seconds above 0")
        if (self.checkpoint is None) == (self.weights is None):
            raise InputError(f"checkpoint: got {self.checkpoint} and weights {self.weights}, expected one of the two")
        if (self.weights is None) != (self.recipe is None):
            raise InputError(
                f"recipe: got {self.recipe} with weights {self.weights}, expected both of them or neither; "
                "a checkpoint has its own recipe"
            )
        if self.foreign:
            self.foreign.load_recipe()
        else:
            require(self, "segments", self.segments is None, "None without weights")
            require(self, "average", not self.average, "False without weights")

    @property
    def foreign(self) -> Foreign | None:
        """The weights that are tested instead of a checkpoint."""
        if self.weights is None or self.recipe is None:
            return None
        return Foreign(self.weights, self.recipe, self.segments, self.average)


def run_test(config: EvaluationConfig) -> Accuracy:
    """Do what the command line asks for: print the accuracy and write scores, tables and picture.

    Raises:
        InputError: a file or option that cannot be used, data that do not suit the network, scores that are no
            numbers, no video that can be read, or another process that is lost.
    """
    with (
        join_team(config.device, config.timeout) as team,
        team.holding(Lock(config.out)),
        computing(team.device, config.threads),
    ):
        team.on_leader(lambda: check_folder(config.out, config.overwrite))
        trained = load_trained(config.checkpoint, team.device, config.threads) if config.checkpoint else None
        val = trained.recipe.data.val if trained else None
        data = config.data or val
        if data is None:
            raise InputError("data: got none, expected the index that `python -m train prepare` writes")
        is_own = val is not None and data.absolute() == val.absolute()
        root = config.root or (trained.recipe.data.val_root if trained and is_own else None)
        index = read_index(data, root)
        require_some(index.split, "--root takes the folder that they were moved to")
        if config.foreign:
            trained = config.foreign.load(index.split.class_names)
        assert trained is not None
        views, recipe = choose_views(config, trained.recipe.test), trained.recipe
        if isinstance(trained.network, ExportedNetwork):
            trained.network.check_asked(views, config.precision, config.channels_last)
        if team.leads:
            say(
                f"{recipe.name} on {index.summary()}",
                describe_views(views, recipe.sampling.num_segments),
            )
        scores = score_videos(
            trained, index, views, team, config.loading, config.batch_size, config.precision, config.channels_last
        )
        # What the run validated on, where this is the same index, which is then to list what it listed.
        then = trained.validated_on if is_own else None
        origin = {"network": str(config.checkpoint or config.weights), "data": str(data), "in_training": then}
        scores = replace(scores, protocol=scores.protocol | origin)
        if team.leads:
            if then not in (None, now := fingerprint(index.split)):
                say(f"warning: {data} has other videos than the run validated on: {now}; then {then}")
            try:
                written = write_report(config.out, scores)
            finally:  # what took hours is to be seen on a full disk too
                say(describe(scores))
            say(written)
        return scores.accuracy()
