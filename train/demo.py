"""The demo: TANet beside the same network without TAM, on video files whose classes no single frame tells apart."""

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

import torch

from train.checkpoint import TrainedNetwork, save_checkpoint
from train.dataset import (
    ClipFormat,
    EpochBatches,
    EvaluationClips,
    Failure,
    TrainingClips,
    evaluation_batches,
    training_batches,
)
from train.errors import InputError
from train.lists import read_class_names, read_list
from train.loop import EpochResult, Learner, Optimisation, fit
from train.networks import NetworkConfig, build_network
from train.plots import Kernels, learned_kernels, plot_curves, plot_kernels
from train.render import Task
from train.synthetic import DatasetSpec, prepare_dataset


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


KINDS: tuple[Literal["C2D", "TANet"], ...] = ("C2D", "TANet")


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
    substituted: list[Failure]
    """Training videos that could not be read; another stood in each time."""
    left_out: list[Failure]
    """Validation videos that could not be read; the accuracies are without them."""


def run_demo(config: DemoConfig) -> list[TaskResult]:
    """Run the demo and print its table. Raises InputError for options that cannot be used."""
    _check(config)
    config.out.mkdir(parents=True, exist_ok=True)
    with (config.out / "log.jsonl").open("w") as file, _reproducible(config.threads):
        log = _Log(file)
        log.write("config", **{key: str(value) if key == "out" else value for key, value in asdict(config).items()})
        results = [_run_task(config, task, log) for task in dict.fromkeys(config.tasks)]
    plot_curves(
        config.out / "curves.png",
        {result.task: result.history for result in results},
        {result.task: result.chance for result in results},
    )
    plot_kernels(config.out / "kernels.png", {result.task: result.kernels for result in results})
    print(_report(results, config.out))
    return results


def _run_task(config: DemoConfig, task: Task, log: "_Log") -> TaskResult:
    started = time.monotonic()
    size, clip_format = TASK_SIZES[task], ClipFormat()
    spec = DatasetSpec(
        task, config.train_videos or size.train_videos, config.val_videos or size.val_videos, config.seed
    )
    root = prepare_dataset(config.out / "data", spec)
    class_names = read_class_names(root / "classes.txt")
    train_list = read_list(root / "train.txt", len(class_names))
    val_list = read_list(root / "val.txt", len(class_names))

    # Small enough to be decoded once and kept: some 100 kB a clip.
    val_batches = list(evaluation_batches(EvaluationClips(val_list, clip_format), config.batch_size, config.workers))
    left_out = [failure for batch in val_batches for failure in batch.failures]
    epochs = config.epochs or size.epochs
    batches = EpochBatches(len(train_list), config.batch_size, epochs, config.seed)
    networks = {kind: NetworkConfig(kind, len(class_names), clip_format.num_segments) for kind in KINDS}
    learners: dict[str, Learner] = {}
    for kind, network in networks.items():
        torch.manual_seed(config.seed)
        learners[kind] = Learner(build_network(network), Optimisation(lr=config.lr), len(batches))

    history: list[EpochResult] = []

    def on_epoch(result: EpochResult) -> None:
        history.append(result)
        log.write("epoch", task=task, **asdict(result))

    clips = TrainingClips(train_list, class_names, clip_format, config.seed)
    substituted = fit(
        learners,
        training_batches(clips, batches, config.workers),
        batches.per_epoch,
        epochs,
        val_batches,
        on_epoch,
        title=f"training on {task}",
    )
    for kind, network in networks.items():
        trained = TrainedNetwork(learners[kind].network, network, class_names, clip_format)
        save_checkpoint(config.out / f"{task}-{kind.lower()}.pt", trained)
    accuracies = {result.network: result.val.accuracy for result in history}  # of the last epoch
    for failure in (*substituted, *left_out):
        log.write("unreadable", task=task, **failure._asdict())
    seconds = time.monotonic() - started
    log.write("result", task=task, accuracies=accuracies, seconds=round(seconds, 1))
    return TaskResult(
        task,
        chance=1 / len(class_names),
        accuracies=accuracies,
        videos=(len(train_list), len(val_list)),
        seconds=seconds,
        history=history,
        kernels=learned_kernels(learners["TANet"].network, val_batches),
        substituted=substituted,
        left_out=left_out,
    )


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


def _failure_lines(title: str, failures: Sequence[Failure]) -> list[str]:
    if not failures:
        return []
    times = Counter(failures)
    details = [f"  {failure.path}: {failure.reason} ({count} ×)" for failure, count in sorted(times.items())]
    return [f"{title} because they cannot be read: {len(times)}", *details]


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


@contextmanager
def _reproducible(threads: int) -> Iterator[None]:
    """Let torch take only algorithms that give the same bits each time, with a fixed number of threads."""
    deterministic: Any = torch.utils.deterministic  # a module with a property, which type checkers do not see
    before = (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        deterministic.fill_uninitialized_memory,
    )
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # Nothing here reads uninitialised memory, and filling it all the same takes a sixth of the time.
    deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        deterministic.fill_uninitialized_memory = before[2]


class _Log:
    """JSON lines, each complete on the disk before the run goes on."""

    def __init__(self, file: TextIO) -> None:
        self.file = file

    def write(self, event: str, **values: Any) -> None:
        print(json.dumps({"event": event, **values}), file=self.file, flush=True)
