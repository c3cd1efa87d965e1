"""Weights in files of any form: to start a training from, or to be tested by a recipe."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from tam_triton.nets import LoadReport, SlowFast, load_published
from tam_triton.nets.archive import read_checkpoint
from tam_triton.nets.checkpoints import COUNT
from tam_triton.nets.slowfast_checkpoints import load_slowfast
from tam_triton.temporal.base import TemporalModule
from train.checkpoint import FORMAT, TrainedNetwork
from train.errors import InputError
from train.networks import build_network
from train.recipe import Model, Recipe
from train.recipes import RECIPES


def start_from_file(network: nn.Module, model: Model, class_names: tuple[str, ...]) -> LoadReport:
    """Load the file that `model.weights` names: of a video network, or of the 2D network below.

    What cannot carry over stays as it was drawn: the head, where the file's is for other classes, temporal modules that
    a 2D network lacks, and with `model.weights_segments` "draw" the branches that are for another T.

    Raises InputError, and `network` may then have changed.
    """
    path = Path(str(model.weights))
    content = _read(path)
    own = isinstance(content, dict) and content.get("format") == FORMAT
    other_classes = own and content.get("class_names") != list(class_names)
    report = _load(
        network,
        path,
        content,
        ignore_head=other_classes,
        segments=model.weights_segments,
        average=model.weights_average,
        start=True,
    )
    temporal = [f"{name}." for name, module in network.named_modules() if isinstance(module, TemporalModule)]
    may_lack = (*temporal, f"{getattr(network, 'head_name', 'fc')}.")
    _check_complete(path, [name for name in report.missing if not name.startswith(may_lack)], model.system)
    return report


def describe_start(model: Model, report: LoadReport) -> str:
    """What became of the file's weights, in a line or two."""
    interpolated = f", {len(report.interpolated)} of them interpolated over time" if report.interpolated else ""
    text = f"weights of {model.weights}: {len(report.loaded)} tensors loaded{interpolated}"
    if report.untouched:
        text += f"; drawn anew: {', '.join(report.untouched)}"
    if report.unused:
        text += f"; not used: {', '.join(report.unused)}"
    return "\n".join([text, *report.notes])


@dataclass(frozen=True)
class Foreign:
    """A file of weights that does not say what network it is of, and the recipe that does."""

    weights: Path
    recipe: str
    """Name of a recipe, or the `recipe.json` of a run."""
    segments: Literal["interpolate", "draw"] | None = None
    average: bool = False

    def load_recipe(self) -> Recipe:
        """The recipe. Raises InputError."""
        if self.recipe in RECIPES:
            return RECIPES[self.recipe]
        path = Path(self.recipe)
        if path.suffix != ".json":
            raise InputError(
                f"recipe: got {self.recipe!r}, expected one of {', '.join(RECIPES)}, or the recipe.json of a run"
            )
        try:
            return Recipe.from_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"recipe: {path}: {(error.strerror or str(error)).lower()}") from error
        except UnicodeDecodeError as error:
            raise InputError(f"recipe: {path}: is no text") from error

    def load(self, class_names: tuple[str, ...]) -> TrainedNetwork:
        """The network, in evaluation mode, which gives these classes. Raises InputError."""
        recipe = self.load_recipe()
        network = build_network(recipe.model, len(class_names), recipe.sampling.num_segments, pretrained=False)
        content = _read(self.weights)
        report = _load(network, self.weights, content, segments=self.segments, average=self.average)
        _check_complete(self.weights, report.missing, recipe.name)
        return TrainedNetwork(network.eval(), recipe, class_names)


def _read(path: Path) -> Any:
    try:
        return read_checkpoint(path, foreign=True)
    except OSError as error:
        raise InputError(f"weights: {path}: {(error.strerror or str(error)).lower()}") from error
    except ValueError as error:
        raise InputError(f"weights: {error}") from error


def _load(network: nn.Module, path: Path, content: Any, **options: Any) -> LoadReport:
    if isinstance(network, SlowFast):
        options.pop("segments", None)  # its TAMs have the frames of their pathways
    load: Any = load_slowfast if isinstance(network, SlowFast) else load_published
    try:
        report: LoadReport = load(network, content, **options)
    except (ValueError, TypeError) as error:
        raise InputError(f"weights: {path}: {error}") from error
    return report


def _check_complete(path: Path, missing: Any, needing: str) -> None:
    # Only training looks at how many batches BatchNorm has seen.
    if lacking := [name for name in missing if not name.endswith(COUNT)]:
        raise InputError(f"weights: {path} has nothing for {len(lacking)} tensors of {needing}, such as {lacking[0]}")
