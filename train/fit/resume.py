"""How a run goes on from another's checkpoint, and what makes the two the same run."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from train.data.entries import Split, fingerprint
from train.data.mirroring import read_mirrored
from train.errors import InputError
from train.fields import from_plain, to_plain
from train.fit.class_weights import describe_weights
from train.fit.config import Compute
from train.fit.optimizer import build_schedule
from train.fit.run import Run
from train.recipe import Recipe

MAY_DIFFER = (
    "recipe.name",
    "recipe.data.train",
    "recipe.data.val",
    "recipe.data.train_root",
    "recipe.data.val_root",
    "recipe.data.max_bad_share",
    "recipe.data.balanced",  # what it makes of the data is compared
    "recipe.augmentation.mirrored",  # what it says is compared
    "recipe.optimization.class_weights",  # so is this
    "recipe.test",
    "compute.accumulate",
    "compute.channels_last",
    "compute.compile",
    "compute.recompute",
    "compute.tuned",
)
"""Settings that change neither what is computed nor on what: where files are (the videos themselves are compared), how
the network is tested, and, but for rounding, how fast it learns. Whatever is in none of recipe, compute and data, such
as the number of workers, may differ too."""

LENGTHENING = ("recipe.optimization.epochs", "recipe.optimization.milestones")
"""What may become more."""


def resume(run: Run, lengthens: bool = True) -> None:
    """Go on from the newest checkpoint that is whole; does nothing where there is none.

    `lengthens` says whether the epochs may have become more.

    Raises:
        InputError: it is of a run that computes something else, or of an older version; or no checkpoint is whole.
    """

    def load(state: dict[str, Any]) -> None:
        """On the leading process, whether it can be; what is of another run is refused below."""
        if "ranks" not in state and not differences(state["identity"], run.identity, LENGTHENING):
            run.load(state)

    content = run.team.on_leader(lambda: run.folder.checkpoints.newest(run.log.warn, load))
    if content is None:
        run.log.rewind(0, 0)
        run.log.say(f"nothing to resume in {run.config.out}: the run starts from its beginning")
        return
    state, size, accumulate = content["run"], run.team.size, run.config.compute.accumulate
    if "ranks" in state:
        raise InputError(
            f"{run.config.out}: holds a run of an older version, which this one cannot go on with; its networks can be "
            "used and tested as before"
        )
    former = _recipe(state["identity"]).optimization
    schedule, steps_per_epoch = run.trained.recipe.optimization, run.order.steps_per_epoch
    is_longer = lengthens and schedule.epochs > former.epochs
    lengthened = LENGTHENING if is_longer else ()
    if differing := differences(state["identity"], run.identity, lengthened):
        more = ", and the epochs may become more" if lengthens else ""
        raise InputError(
            f"{run.config.out}: holds a run that cannot go on by these settings: {'; '.join(differing)}. "
            f"Of recipe and compute only {', '.join(MAY_DIFFER)} may differ{more}"
        )
    run.load(state)
    steps = run.learner.steps
    run.log.rewind(steps, run.validated)
    run.log.event("resume", step=steps, processes=size)
    run.log.say(f"resumed at step {steps}, {steps / run.order.steps_per_epoch:.2f} epochs")
    if is_longer:
        before, now = (build_schedule(each, steps_per_epoch)(steps) for each in (former, schedule))
        run.log.warn(
            f"lengthened from {former.epochs} to {schedule.epochs} epochs: the learning rate goes on at {now:.3g} of "
            f"what it began with, as the schedule of {schedule.epochs} epochs has it, where it was {before:.3g}; so "
            "the numbers will not be those of an unbroken run"
        )
    if (size, accumulate) != (state["processes"], state["accumulate"]):
        run.log.warn(
            f"the checkpoint is of {state['processes']} processes × {state['accumulate']} parts, this run has {size} × "
            f"{accumulate}: every step has the same clips, but BatchNorm, dropout and mixing see them divided "
            "otherwise, so the numbers will not be those of an unbroken run"
        )


def describe_run(
    recipe: Recipe, compute: Compute, train: Split, val: Split, class_weights: Tensor | None
) -> dict[str, Any]:
    """All that decides what a run computes, in the types that JSON has. Raises InputError, of a file that it names.

    Args:
        class_weights: those that the recipe's `class_weights` stand for.
    """
    data = {"training videos": fingerprint(train), "validation videos": fingerprint(val)}
    if recipe.data.balanced:  # named where it is so alone, so that older runs may go on
        data["classes"] = "balanced"
    if path := recipe.augmentation.mirrored:  # so is this
        data["mirrored"] = str(sorted(read_mirrored(path, train.class_names).items()))
    if class_weights is not None:
        data["class weights"] = describe_weights(class_weights)
    return {"recipe": to_plain(recipe), "compute": to_plain(compute), "data": data}


def differences(saved: dict[str, Any], now: dict[str, Any], may_differ: Sequence[str] = ()) -> list[str]:
    """What differs in two runs' descriptions and must not, each as `field: was this, is that`; empty for one run.

    Beside `MAY_DIFFER` the fields `may_differ` may. The run that was saved may be of before a field got its name or was
    added. InputError where it is no description.
    """
    before, after = (_flat(run | {"recipe": to_plain(_recipe(run))}) for run in (saved, now))
    free = tuple(f"{field}." for field in (*MAY_DIFFER, *may_differ))
    return [
        f"{field}: was {before.get(field)!r}, is {after.get(field)!r}"
        for field in sorted(before.keys() | after.keys())
        if before.get(field) != after.get(field) and not f"{field}.".startswith(free)
    ]


def _recipe(run: dict[str, Any]) -> Recipe:
    """Of a run's description; shares of the epochs as epochs, which they are for as many."""
    recipe = from_plain(Recipe, run["recipe"], "recipe")
    milestones = tuple(float(end) for end in recipe.optimization.milestone_epochs)
    return replace(recipe, optimization=replace(recipe.optimization, milestones=milestones))


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} → {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
