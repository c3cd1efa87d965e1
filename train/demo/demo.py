"""The demo: TANet beside the same network without TAM, on video files whose classes no single frame tells apart."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from train.checkpoint import TrainedNetwork, save_checkpoint
from train.data.batches import FailureTally, TrainingBatches, evaluation_batches, training_batches
from train.data.dataset import EvaluationClips, Failure, TrainingClips
from train.data.loader import Loading
from train.data.sources import read_class_names, read_list
from train.demo.plots import Kernels, learned_kernels, plot_curves, plot_kernels
from train.demo.render import Task
from train.demo.side_by_side import EpochResult, train_side_by_side
from train.demo.synthetic import DatasetSpec, prepare_dataset
from train.errors import InputError
from train.fit.learner import Learner
from train.fit.optimizer import build_schedule
from train.log import JsonLines
from train.networks import build_network
from train.precision import reproducible
from train.recipes import RECIPES, Recipe


@dataclass(frozen=True)
class DemoConfig:
    """Train a small TANet, and beside it the same network without TAM, on synthetic video files; then compare them.

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


@dataclass(frozen=True)
class TaskSize:
    """How much of a task the demo takes on by default: what fits into some minutes on two cores."""

    epochs: int
    train_videos: int
    val_videos: int


TASK_SIZES: dict[Task, TaskSize] = {"order": TaskSize(8, 600, 150), "motion": TaskSize(16, 800, 200)}


@dataclass(frozen=True)
class TaskResult:
    """What the demo shows of one task."""

    task: Task
    chance: float
    accuracies: dict[str, float]
    videos: tuple[int, int]
    """Of training and of validation."""
    seconds: float
    history: list[EpochResult]
    kernels: Kernels
    substituted: Mapping[Failure, int]
    """Training videos that could not be read, and how often another stood in."""
    left_out: Mapping[Failure, int]
    """Validation videos that could not be read; the accuracies are without them."""


def run_demo(config: DemoConfig) -> list[TaskResult]:
    """Run the demo and print its table. Raises InputError for options that cannot be used."""
    _check(config)
    config.out.mkdir(parents=True, exist_ok=True)
    with JsonLines(config.out / "log.jsonl") as log, reproducible(config.threads):
        log.write("config", **asdict(config))
        results = [_run_task(config, task, log) for task in dict.fromkeys(config.tasks)]
    plot_curves(
        config.out / "curves.png",
        {result.task: result.history for result in results},
        {result.task: result.chance for result in results},
    )
    plot_kernels(config.out / "kernels.png", {result.task: result.kernels for result in results})
    print(_report(results, config.out))
    return results


def _run_task(config: DemoConfig, task: Task, log: JsonLines) -> TaskResult:
    started = time.monotonic()
    size, loading = TASK_SIZES[task], Loading(config.workers)
    spec = DatasetSpec(
        task, config.train_videos or size.train_videos, config.val_videos or size.val_videos, config.seed
    )
    root = prepare_dataset(config.out / "data", spec)
    class_names = read_class_names(root / "classes.txt")
    train, val = (read_list(root / f"{name}.txt", class_names) for name in ("train", "val"))
    recipes = _recipes(config, config.epochs or size.epochs)
    recipe = recipes["TANet"]  # the two differ in the network alone

    # Small enough to be decoded once and kept: some 100 kB a clip.
    val_clips = EvaluationClips(val, recipe.sampling, recipe.validation)
    val_loader = evaluation_batches(val_clips, config.batch_size, loading)
    val_batches = list(val_loader)
    val_loader.close()
    left_out = Counter(failure for batch in val_batches for failure in batch.failures)

    epochs = recipe.optimization.epochs
    order = TrainingBatches(len(train), config.batch_size, epochs, config.seed)
    learners = {}
    for kind, of_kind in recipes.items():
        torch.manual_seed(config.seed)
        network = build_network(of_kind.model, len(class_names), recipe.sampling.num_segments)
        schedule = build_schedule(recipe.optimization, order.steps_per_epoch)
        learners[kind] = Learner(network, recipe.optimization, schedule)

    history: list[EpochResult] = []

    def on_epoch(result: EpochResult) -> None:
        history.append(result)
        log.write("epoch", task=task, **asdict(result))

    failures = FailureTally(len(train), recipe.data.max_bad_share)
    clips = TrainingClips(train, recipe.sampling, recipe.augmentation, config.seed)
    batches = training_batches(clips, order, loading)
    train_side_by_side(
        learners, batches, order.steps_per_epoch, epochs, val_batches, on_epoch, failures, f"training on {task}"
    )
    batches.close()
    for kind, learner in learners.items():
        trained = TrainedNetwork(learner.network, recipes[kind], class_names)
        save_checkpoint(config.out / f"{task}-{kind.lower()}.pt", trained)
    accuracies = {result.network: result.val.accuracy for result in history}  # of the last epoch
    for failure, times in (failures.counts + left_out).items():
        log.write("unreadable", task=task, **failure._asdict(), times=times)
    seconds = time.monotonic() - started
    log.write("result", task=task, accuracies=accuracies, seconds=round(seconds, 1))
    return TaskResult(
        task,
        chance=1 / len(class_names),
        accuracies=accuracies,
        videos=(len(train), len(val)),
        seconds=seconds,
        history=history,
        kernels=learned_kernels(learners["TANet"].network, val_batches),
        substituted=failures.counts,
        left_out=left_out,
    )


def _recipes(config: DemoConfig, epochs: int) -> dict[str, Recipe]:
    """The demo's recipe for the two networks, with the options that were given."""
    demo = RECIPES["demo"]
    optimization = replace(demo.optimization, batch_size=config.batch_size, lr=config.lr, epochs=epochs)
    # The data are the demo's own, so whatever share of them is damaged is to be seen in its report.
    data = replace(demo.data, max_bad_share=1.0)
    recipe = replace(demo, optimization=optimization, data=data, seed=config.seed)
    return {"C2D": replace(recipe, model=replace(demo.model, kind="C2D")), "TANet": recipe}


def _report(results: Sequence[TaskResult], out: Path) -> str:
    lines = ["", f"{'task':<10}{'chance':>9}{'C2D':>9}{'TANet':>9}{'videos':>14}{'seconds':>10}"]
    for result in results:
        percentages = (result.chance, result.accuracies["C2D"], result.accuracies["TANet"])
        columns = "".join(f"{value:>9.1%}" for value in percentages)
        lines.append(f"{result.task:<10}{columns}{'{} + {}'.format(*result.videos):>14}{result.seconds:>10.0f}")
    lines += ["", f"Pictures, checkpoints and log are in {out}."]
    for result in results:
        lines += _failure_lines(f"{result.task}: training videos replaced by others", result.substituted)
        lines += _failure_lines(f"{result.task}: validation videos left out of the accuracy", result.left_out)
    return "\n".join(lines)


def _failure_lines(title: str, failures: Mapping[Failure, int]) -> list[str]:
    if not failures:
        return []
    details = [f"  {failure.path}: {failure.reason} ({times} ×)" for failure, times in sorted(failures.items())]
    return [f"{title} because they cannot be read: {len(failures)}", *details]


def _check(config: DemoConfig) -> None:
    if not config.tasks:
        raise InputError("tasks: at least one is needed")
    least = {"seed": 0, "epochs": 1, "train_videos": 1, "val_videos": 1, "batch_size": 2, "workers": 0, "threads": 1}
    for name, minimum in least.items():
        value = getattr(config, name)
        if value is not None and value < minimum:
            raise InputError(f"{name}: must be at least {minimum}, got {value}")
    if not 0 < config.lr < float("inf"):
        raise InputError(f"lr: must be a positive number, got {config.lr}")
