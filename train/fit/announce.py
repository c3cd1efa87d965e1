"""What a run says for people at its beginning and at its end."""

import shlex

from train.data.mirroring import describe_flips
from train.fit.run import Run
from train.recipe import Recipe


def beginning(run: Run, bound: str = "") -> str:
    """What the run is about to do: data, network, schedule, and where it writes.

    `bound` is what decided the number of clips a step, where that was not the recipe.
    """
    recipe, order = run.trained.recipe, run.order
    model, optimization, size = recipe.model, recipe.optimization, recipe.augmentation.crop_size
    train, val = run.clips.split, run.validation_split
    parameters = sum(parameter.numel() for parameter in run.learner.network.parameters())
    schedule = "in a cosine to zero"
    if optimization.schedule == "step":
        ends = ", ".join(f"{end:g}" for end in optimization.milestone_epochs) or "no"
        schedule = f"divided by {optimization.lr_divisor:g} after {ends} epochs"
    beyond = _beyond(recipe)
    lines = [
        f"data: {len(train)} videos of {len(train.class_names)} classes to train on, {len(val)} to validate on",
        f"network: {model.system} on {model.backbone}, {parameters:,} parameters, "
        f"{recipe.sampling.num_segments} frames of {size} × {size} pixels",
        f"schedule: {order.epochs} epochs of {order.steps_per_epoch} steps of {order.batch_size} clips; learning rate "
        f"{optimization.scaled_lr:g}, {schedule}",
        *([f"beyond the published recipes: {', '.join(beyond)}"] if beyond else []),
        *([f"batch {order.batch_size}, {bound}"] if bound else []),
        f"computes on {run.team.device}, in {run.team.size} process{'es' if run.team.size > 1 else ''}; "
        f"writes to {run.config.out}",
    ]
    names = zip(train.class_names, run.clips.mirrored, strict=True)
    alone = [repr(name) for name, partner in names if partner is None]
    if recipe.augmentation.flip > 0:
        if alone:
            lines.append(f"never flipped, as no single class is their mirror image: {', '.join(alone)}")
        # The published data sets' names are known to be told by their words.
        if recipe.data.num_classes is None and recipe.augmentation.mirrored is None:
            lines.append(describe_flips(train.class_names, run.clips.mirrored))
    if (distortion := recipe.augmentation.distortion) and distortion.geometric:
        pairs = enumerate(run.clips.mirrored)
        directed = [repr(train.class_names[label]) for label, partner in pairs if partner != label]
        if directed:
            lines.append(
                f"RandAugment turns and shears the pictures of {len(directed)} classes that mean a direction, such as "
                f"{directed[0]}; --augmentation.randaugment {recipe.augmentation.randaugment},color does not"
            )
    return "\n".join(lines)


def _beyond(recipe: Recipe) -> list[str]:
    """What the recipe has that no published one has, in words."""
    augmentation, optimization = recipe.augmentation, recipe.optimization
    options = {
        "label smoothing": optimization.label_smoothing or None,
        "class weights": optimization.class_weights,
        "color jitter": augmentation.color_jitter and " ".join(f"{each:g}" for each in augmentation.color_jitter),
        "RandAugment": augmentation.randaugment,
        "mixup": augmentation.mixup,
        "CutMix": augmentation.cutmix,
    }
    return [f"{name} {value}" for name, value in options.items() if value is not None]


def end(run: Run) -> str:
    """What came of a run that took all its steps, and what can be done with it."""
    if run.best is None:
        return "done; no validation was good enough to be kept"
    epochs, early = f"{run.order.epochs} epochs", ""
    if run.learner.steps < run.total:
        epochs = f"{run.validated} epochs"
        early = (
            f"ended early, after {run.validated} of {run.order.epochs} epochs: top-1 in validation has not become "
            f"better for {run.stale} (--stop-after {run.config.stop_after})\n"
        )
    best = shlex.quote(str(run.folder.checkpoints.best))
    return (
        f"{early}done: the best of {epochs} is number {run.best['epoch']}, top-1 {run.best['accuracy']:.2%}: "
        f"{run.folder.checkpoints.best}\n"
        f"  to test it:  python -m train test {best}\n"
        f"  to use it:   python -m train predict {best} VIDEO"
    )
