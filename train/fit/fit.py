"""`python -m train fit RECIPE`: from a recipe and a data set's indices to a trained network, on one GPU or many."""

from contextlib import ExitStack, closing
from dataclasses import asdict

from train.checkpoint import TrainedNetwork
from train.curves import require_curves
from train.data.batches import FailureTally, TrainingBatches, evaluation_batches
from train.data.dataset import EvaluationClips, TrainingClips
from train.data.entries import Split
from train.data.index import Index, read_index, require_some
from train.errors import InputError
from train.fields import require, to_plain
from train.fit import announce
from train.fit.batch import choose_batch
from train.fit.class_weights import class_weights
from train.fit.config import Compute, FitConfig
from train.fit.folder import RunFolder
from train.fit.learner import Learner
from train.fit.meter import Meter
from train.fit.objective import Objective
from train.fit.optimizer import build_schedule
from train.fit.resume import describe_run, resume
from train.fit.run import Outcome, Run
from train.fit.stopping import FiniteWatch, StopRequest, stop_on_signals
from train.log import RunLog, say
from train.networks import build_network, check_network
from train.precision import computing, seed_generators
from train.recipe import Recipe
from train.team import Team, join_team
from train.weights import describe_start, start_from_file


def run_fit(config: FitConfig) -> Outcome:
    """Do what the command line asks for.

    Raises:
        InputError: an option, file or folder that cannot be used; or the run ended before its end, as its message says.
    """
    recipe = config.recipe.resolve()
    with stop_on_signals() as stop, join_team(config.device, config.timeout) as team:
        train, val = read_splits(recipe, team)
        return fit(config, train.split, val.split, team, stop)


def fit(
    config: FitConfig, train: Split, val: Split, team: Team, stop: StopRequest, *, lengthens: bool = True
) -> Outcome:
    """Train by `config` on the videos of `train`, validating on `val`, together with the other processes of `team`.

    `config.out` then holds `recipe.json`, `log.jsonl`, `checkpoints/step-*.pt` and `checkpoints/best.pt`. What is
    returned is the same in all processes. `lengthens` says whether a run that is there may go on for more epochs.

    Raises:
        InputError: the data do not suit the recipe, or the system its backbone; the folder holds another run; a loss
            is not finite; too many videos cannot be read; reading or writing fails for good.
    """
    recipe, compute = config.recipe.resolve(), config.compute
    _check_data(recipe, train, val)
    weights = class_weights(recipe.optimization.class_weights, train)
    team.on_leader(lambda: require_curves(config.tensorboard, config.wandb is not None))
    check_network(recipe.model, len(train.class_names), recipe.sampling.num_segments)
    folder = RunFolder(config.out, config.keep)
    with (
        team.holding(folder.lock),
        computing(team.device, config.threads, config.deterministic),
        ExitStack() as stack,
    ):
        begins = team.on_leader(lambda: folder.begins(config.resume))
        size, bound = _batch_size(recipe, train, compute, team, folder, begins)
        recipe = folder.recipe = recipe.resolve(size)
        optimization = recipe.optimization
        loading = config.loading.for_device(team.device)
        labels = [entry.label for entry in train.entries] if recipe.data.balanced else None
        epochs, seed = optimization.epochs, recipe.seed
        order = TrainingBatches(len(train), size, epochs, seed, team.rank, team.size, compute.accumulate, labels)
        objective = Objective.of(recipe, weights)
        for name in ("mixup", "cutmix"):
            fits = getattr(recipe.augmentation, name) is None or order.part_size > 1
            expected = f"None where a process computes one clip at a time, as of {size} a step here"
            require(recipe.augmentation, name, fits, expected)
        views = EvaluationClips(val, recipe.sampling, recipe.validation, recipe.data.decoder)
        seed_generators(team.device, seed)
        # A run that goes on has its weights from its checkpoint; those that it started from may be gone.
        network = build_network(recipe.model, len(train.class_names), recipe.sampling.num_segments, pretrained=begins)
        report = None
        if begins and recipe.model.starts_from_file:
            report = start_from_file(network, recipe.model, train.class_names)
        schedule = build_schedule(optimization, order.steps_per_epoch)
        learner = Learner(network, optimization, schedule, compute, team, objective)
        if begins:  # all that may be refused has been looked at
            team.on_leader(folder.write_recipe)
        log = RunLog(
            config.out if team.leads else None,
            append=config.resume,
            tensorboard=config.tensorboard,
            wandb=config.wandb,
            settings={"recipe": to_plain(recipe), "compute": to_plain(compute)},
        )
        stack.enter_context(closing(log))
        if report:
            log.event("weights", path=recipe.model.weights, **asdict(report), untouched=report.untouched)
            log.say(describe_start(recipe.model, report))
        run = Run(
            config=config,
            identity=describe_run(recipe, compute, train, val, weights),
            team=team,
            stop=stop,
            log=log,
            folder=folder,
            clips=TrainingClips(train, recipe.sampling, recipe.augmentation, seed, recipe.data.decoder),
            order=order,
            validation_split=val,
            validation=evaluation_batches(views, max(1, size // team.size), loading, team.rank, team.size),
            loading=loading,
            learner=learner,
            trained=TrainedNetwork(learner.evaluated, recipe, train.class_names),
            watch=FiniteWatch(norm_may_overflow=compute.precision == "fp16"),
            meter=Meter(team, size),
            failures=FailureTally(len(train), recipe.data.max_bad_share),
        )
        if config.resume:
            resume(run, lengthens)
        both = {entry.path for entry in train.entries} & {entry.path for entry in val.entries}
        if both:
            log.warn(
                f"{len(both)} of the {len(val)} validation videos are trained on too, such as {min(both)}: the score "
                "says nothing of others"
            )
        log.say(announce.beginning(run, bound))
        outcome = run.train()
        if outcome.signal is None:
            log.say(announce.end(run))
        return outcome


def _batch_size(
    recipe: Recipe, train: Split, compute: Compute, team: Team, folder: RunFolder, begins: bool
) -> tuple[int, str]:
    """Clips of a step, and what decided where the recipe does not: the machine, but only that which a run begins on."""
    if recipe.optimization.batch_size is not None:
        return recipe.optimization.batch_size, ""
    known = None if begins else team.on_leader(folder.batch_size)
    if known is not None:
        return known, "as the run began"
    chosen = choose_batch(recipe, len(train.class_names), len(train), compute, team)
    return chosen.clips, f"by this machine: {chosen.reason}"


def _check_data(recipe: Recipe, train: Split, val: Split) -> None:
    for split in (train, val):
        recipe.data.check_split(split)
    if train.class_names != val.class_names:
        only = [sorted({*a.class_names} - {*b.class_names}) for a, b in ((train, val), (val, train))]
        differing = f"only {train.name} has {only[0]}, only {val.name} has {only[1]}" if any(only) else "in order"
        raise InputError(
            f"data: the training and the validation videos have different class names: {differing}. `prepare` gives "
            "both the same by --classes FILE, or where it is given the folder that holds both"
        )
    if recipe.validation.per_video != 1:
        raise InputError(
            f"validation: got {recipe.validation.per_video} views of a video, expected 1; a test takes more"
        )


def read_splits(recipe: Recipe, team: Team) -> tuple[Index, Index]:
    """The indices of `recipe`, of which the leading process prints how much is usable.

    Raises InputError, also where none of their videos is there.
    """
    data = recipe.data
    if data.train is None or data.val is None:
        raise InputError(
            "data.train and data.val: both are needed, the indices that `python -m train prepare` writes; "
            f"got {data.train} and {data.val}"
        )
    train, val = read_index(data.train, data.train_root), read_index(data.val, data.val_root)
    for option, index in (("train", train), ("val", val)):
        require_some(index.split, f"--data.{option}-root takes the folder that they were moved to")
    if team.leads:
        # What is missing is in no score of the run, so it is to be seen beside them.
        say(train.summary(), val.summary())
    return train, val
