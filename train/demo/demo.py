"""The demo: TANet beside the same network without TAM, on video files whose classes no single frame tells apart.

Other systems can stand in their places, any number of them.
"""

import time
from collections import Counter
from dataclasses import asdict

import torch

from train.checkpoint import TrainedNetwork, save_checkpoint
from train.data.batches import FailureTally, TrainingBatches, evaluation_batches, training_batches
from train.data.dataset import EvaluationClips, TrainingClips
from train.data.loader import Loading
from train.data.sources import read_class_names, read_list
from train.demo.config import NAMES, DemoConfig
from train.demo.plots import learned_kernels, plot_curves, plot_kernels
from train.demo.render import Task
from train.demo.report import TaskResult, describe_results
from train.demo.side_by_side import EpochResult, train_side_by_side
from train.demo.synthetic import prepare_dataset
from train.fit.learner import Learner
from train.fit.optimizer import build_schedule
from train.lock import Lock
from train.log import JsonLines
from train.networks import build_network
from train.precision import reproducible
from train.recipe import Recipe


def run_demo(config: DemoConfig) -> list[TaskResult]:
    """Run the demo and print its table. Raises InputError for options that cannot be used."""
    config.check()
    with Lock(config.out):
        return _run_demo(config)


def _run_demo(config: DemoConfig) -> list[TaskResult]:
    with JsonLines(config.out / "log.jsonl") as log, reproducible(config.threads):
        log.write("config", **asdict(config))
        results = [_run_task(config, task, log) for task in dict.fromkeys(config.tasks)]
    plot_curves(config.out / "curves.png", {result.task: (result.history, result.chance) for result in results})
    (config.out / "kernels.png").unlink(missing_ok=True)  # of an earlier run, which may have had a TANet
    if "tanet" in config.systems:
        plot_kernels(config.out / "kernels.png", {result.task: result.kernels for result in results})
    print(describe_results(results, config.out))
    return results


def _run_task(config: DemoConfig, task: Task, log: JsonLines) -> TaskResult:
    """Write the videos, train the networks on them side by side, save them, and look at the kernels of a TANet."""
    started = time.monotonic()
    root = prepare_dataset(config.out / "data", config.dataset(task))
    class_names = read_class_names(root / "classes.txt")
    train, val = (read_list(root / f"{name}.txt", class_names) for name in ("train", "val"))

    recipes = {NAMES.get(system, system): config.recipe(task, system) for system in config.systems}
    recipe, loading = next(iter(recipes.values())), Loading(config.workers)  # the others' differ in the network alone

    # Small enough to be decoded once and kept: some 100 kB a clip.
    val_clips = EvaluationClips(val, recipe.sampling, recipe.validation)
    val_loader = evaluation_batches(val_clips, config.batch_size, loading)
    val_batches = list(val_loader)
    val_loader.close()

    epochs = recipe.optimization.epochs
    order = TrainingBatches(len(train), config.batch_size, epochs, config.seed)
    clips = TrainingClips(train, recipe.sampling, recipe.augmentation, config.seed)
    batches, steps = training_batches(clips, order, loading), order.steps_per_epoch
    learners = {name: _learner(recipe, len(class_names), steps) for name, recipe in recipes.items()}
    failures, history = FailureTally(len(train), recipe.data.max_bad_share), list[EpochResult]()

    def on_epoch(result: EpochResult) -> None:
        history.append(result)
        log.write("epoch", task=task, **asdict(result))

    train_side_by_side(learners, batches, steps, epochs, val_batches, on_epoch, failures, f"training on {task}")
    batches.close()

    for name, learner in learners.items():
        trained = TrainedNetwork(learner.network, recipes[name], class_names)
        save_checkpoint(config.out / f"{task}-{recipes[name].model.system}.pt", trained)
    result = TaskResult(
        task,
        chance=1 / len(class_names),
        videos=(len(train), len(val)),
        seconds=time.monotonic() - started,
        history=history,
        kernels=learned_kernels(learners["TANet"].network, val_batches) if "TANet" in learners else {},
        substituted=failures.counts,
        left_out=Counter(failure for batch in val_batches for failure in batch.failures),
    )
    for failures_of in (result.substituted, result.left_out):
        for failure, times in failures_of.items():
            log.write("unreadable", task=task, **failure._asdict(), times=times)
    log.write("result", task=task, accuracies=result.accuracies, seconds=round(result.seconds, 1))
    return result


def _learner(recipe: Recipe, num_classes: int, steps_per_epoch: int) -> Learner:
    """A network and its optimizer as `recipe` says; equal seeds give all networks equal backbones."""
    torch.manual_seed(recipe.seed)
    network = build_network(recipe.model, num_classes, recipe.sampling.num_segments)
    return Learner(network, recipe.optimization, build_schedule(recipe.optimization, steps_per_epoch))
