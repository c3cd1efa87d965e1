"""What a comparison is asked for: a run's options, and the systems and seeds that its runs differ in."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import tyro

from train.fields import require
from train.fit.config import FitConfig
from train.recipe import System
from train.recipes import RECIPES, recipe_subcommands

SMALL_SCALE = "demo data, small scale"


@dataclass(frozen=True, kw_only=True)
class CompareConfig(FitConfig):
    """Train any systems on one data set, with equal videos in equal order, equal seeds and schedule; then compare them.

    The same command goes on with a comparison that was stopped. Under torchrun every run is that of all processes.
    """

    out: Path = Path("runs/compare")
    """Folder for the tables and the picture, and for each run in SYSTEM/seed-N."""
    systems: tuple[System, ...] = ("c2d", "tsm", "tanet")
    """Names of systems, in the order of the table."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each system is trained once by each: of its weights, of the videos' order and of their augmentation."""
    resume: tyro.conf.Suppress[bool] = True
    stop_after: tyro.conf.Suppress[int | None] = None  # all are to learn for as long, and to be tested on the last step
    find_batch: tyro.conf.Suppress[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("systems", "seeds"):
            values = getattr(self, name)
            require(self, name, 0 < len(set(values)) == len(values), "at least one, none of them twice")
        published = RECIPES.get(self.recipe.name, self.recipe)
        require(
            self.recipe.model, "system", self.recipe.model.system == published.model.system, "none: systems has them"
        )
        require(self.recipe, "seed", self.recipe.seed == published.seed, "none: seeds has them")
        for system in self.systems:
            self.run(system, self.seeds[0])

    def run(self, system: str, seed: int) -> FitConfig:
        """What `fit` is asked for. Raises InputError where the system cannot have the recipe's options."""
        recipe = replace(self.recipe, model=replace(self.recipe.model, system=system), seed=seed)
        options: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(FitConfig)}
        changes = {"recipe": recipe, "out": self.out / system / f"seed-{seed}", "resume": True}
        return FitConfig(**options | changes)

    @property
    def remark(self) -> str:
        """What is to be said beside the figures."""
        return SMALL_SCALE if self.recipe.name == "demo" else ""


def compare_subcommands() -> Any:
    """A type for tyro: CompareConfig with a subcommand for each recipe."""
    return recipe_subcommands(lambda recipe: CompareConfig(recipe=recipe, out=Path("runs") / f"compare-{recipe.name}"))
