"""What the demo is asked for, and what that makes of each task: which videos, and which recipes."""

from dataclasses import dataclass, replace
from pathlib import Path

from train.demo.render import CLASS_NAMES, Task
from train.demo.synthetic import DatasetSpec
from train.errors import InputError
from train.fields import check_types, require
from train.networks import check_network
from train.recipe import Recipe, System
from train.recipes import RECIPES

# What fits into some minutes on two cores: epochs, training videos, validation videos.
SIZES: dict[Task, tuple[int, int, int]] = {"order": (8, 600, 150), "motion": (16, 800, 200)}

NAMES = {"c2d": "C2D", "tanet": "TANet"}
"""As tables and pictures have them; other systems have their own there."""


@dataclass(frozen=True)
class DemoConfig:
    """Train a small TANet, and beside it the same network without TAM, or any systems, on synthetic video files.

    The same options on the same machine give the same numbers, whatever the number of workers.
    """

    out: Path = Path("runs/demo")
    """Folder for pictures, checkpoints, the log, and (in `data`) the videos, which a later run uses again."""
    tasks: tuple[Task, ...] = ("order", "motion")
    """order: which of three events came first, second, third. motion: four axes, two directions each."""
    seed: int = 0
    """Of the videos, the weights, the order and the augmentation."""
    epochs: int | None = None
    """By default 8 for order and 16 for motion."""
    train_videos: int | None = None
    """By default 600 for order and 800 for motion."""
    val_videos: int | None = None
    """By default 150 for order and 200 for motion."""
    batch_size: int = 16
    """Clips a step."""
    lr: float = 0.1
    """Learning rate at the start."""
    workers: int = 1
    """Processes that decode videos while the networks learn; 0 decodes in between."""
    threads: int = 1
    """Threads that torch computes with. Another number gives other rounding, and so other numbers; with two, networks
    this small are hardly faster, and the videos are decoded on the other core."""
    systems: tuple[System, ...] = ("c2d", "tanet")
    """Which networks are trained side by side and compared: any systems on the demo's backbone."""

    def check(self) -> None:
        """Raise InputError for an option that cannot be used, or a system that the demo's backbone cannot have."""
        check_types(self)
        require(self, "tasks", len(self.tasks) > 0, "at least one")
        require(self, "systems", 0 < len(set(self.systems)) == len(self.systems), "at least one, none of them twice")
        require(self, "lr", self.lr > 0, "a number above 0")
        minima = {"seed": 0, "epochs": 1, "train_videos": 1, "val_videos": 1, "workers": 0, "threads": 1}
        for name, least in {**minima, "batch_size": 2}.items():  # BatchNorm needs two clips
            value = getattr(self, name)
            require(self, name, value is None or value >= least, f"at least {least}")
        for system in self.systems:
            try:
                recipe = self.recipe(self.tasks[0], system)
                check_network(recipe.model, len(CLASS_NAMES[self.tasks[0]]), recipe.sampling.num_segments)
            except InputError as error:
                raise InputError(f"systems: {system}: {error}") from error

    def dataset(self, task: Task) -> DatasetSpec:
        """The videos of `task`."""
        _, train, val = SIZES[task]
        return DatasetSpec(task, self.train_videos or train, self.val_videos or val, self.seed)

    def recipe(self, task: Task, system: str) -> Recipe:
        """The demo's recipe, with the options that were given."""
        demo, epochs = RECIPES["demo"], self.epochs or SIZES[task][0]
        optimization = replace(demo.optimization, batch_size=self.batch_size, lr=self.lr, epochs=epochs)
        # The data are the demo's own, so whatever share of them is damaged is to be seen in its report.
        data = replace(demo.data, max_bad_share=1.0)
        model = replace(demo.model, system=system)
        return replace(demo, model=model, optimization=optimization, data=data, seed=self.seed)
