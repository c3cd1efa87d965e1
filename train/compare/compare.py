"""`python -m train compare RECIPE`: systems trained one after another on the same data, and what they reach."""

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from tam_triton.nets.flops import count
from train.atomic import write_text
from train.checkpoint import DAMAGE, RunCheckpoints, load_checkpoint
from train.compare.config import CompareConfig
from train.compare.report import RunResult, describe, summarize, write_runs, write_summary
from train.curves import require_curves
from train.data.index import Index
from train.errors import InputError
from train.evaluation.report import write_report
from train.evaluation.views import score_videos
from train.fields import parse_json, to_plain
from train.fit.class_weights import class_weights
from train.fit.config import FitConfig
from train.fit.fit import fit, read_splits
from train.fit.resume import describe_run, differences
from train.fit.stopping import StopRequest, stop_on_signals
from train.lock import Lock
from train.log import read_events, say
from train.networks import check_network
from train.precision import computing
from train.recipe import Recipe
from train.team import Team, join_team

RESULT = "comparison.json"


class _StoppedError(Exception):
    """A signal came, whose number this holds."""


def run_compare(config: CompareConfig) -> int | None:
    """Do what the command line asks for. Returns the number of the signal that stopped it, None if it came to its end.

    Raises:
        InputError: an option, file or folder that cannot be used, or another process that is lost. What ends a single
            run is noted in its row instead.
    """
    if config.recipe.optimization.batch_size is None:
        raise InputError("optimization.batch_size: got None, expected a number, for all systems and on every machine")
    require_curves(config.tensorboard, config.wandb is not None)
    with (
        stop_on_signals() as stop,
        join_team(config.device, config.timeout) as team,
        team.holding(Lock(config.out)),
    ):
        train, val = read_splits(config.recipe.resolve(), team)
        results: list[RunResult] = []
        try:
            for result in _results(config, train, val, team, stop):
                results.append(result)
                team.on_leader(lambda: write_runs(config.out, results))
        except _StoppedError as stopped:
            if team.leads:
                say(f"stopped after {len(results)} runs; the same command goes on from there")
            return int(stopped.args[0])
        summaries = summarize(results)
        team.on_leader(lambda: write_summary(config.out, summaries, config.remark))
        if team.leads:
            say(describe(summaries, results, config.remark), f"written to {config.out}")
    return None


def _results(config: CompareConfig, train: Index, val: Index, team: Team, stop: StopRequest) -> Iterator[RunResult]:
    """One run after another, seed by seed, so that all systems have as many if it is stopped."""
    # What takes one process of several is nothing that all could go on from.
    alone = (OSError, torch.OutOfMemoryError) if team.size == 1 else ()
    for seed in config.seeds:
        for system in config.systems:
            run = config.run(system, seed)
            if team.leads:
                say(f"\n{system}, seed {seed}: {run.out}")
            try:
                yield _run(run, train, val, team, stop)
            except (InputError, *alone) as error:
                if team.leads:
                    say(f"failed: {error}")
                yield RunResult(system, seed, problem=str(error))


def _run(config: FitConfig, train: Index, val: Index, team: Team, stop: StopRequest) -> RunResult:
    """Train and test, unless that is done already."""
    recipe = config.recipe.resolve()
    weights = class_weights(recipe.optimization.class_weights, train.split)
    identity = describe_run(recipe, config.compute, train.split, val.split, weights)
    if (known := team.on_leader(lambda: _finished(config.out / RESULT, identity))) is not None:
        if team.leads:
            say(f"is there already: top-1 {known.top1:.2%}")
        return known
    if number := team.all_reduce_max(stop.number or 0):
        raise _StoppedError(number)
    # One that was lengthened has learned by another schedule than one of as many epochs from the beginning.
    outcome = fit(config, train.split, val.split, team, stop, lengthens=False)
    if outcome.signal is not None:
        raise _StoppedError(outcome.signal)
    # The leading process says which, so that it has written it when the others read it.
    last = team.on_leader(lambda: RunCheckpoints(config.out / "checkpoints", config.keep).by_age()[-1])
    with computing(team.device, config.threads, config.deterministic):
        scores = score_videos(
            load_checkpoint(last),
            val,
            recipe.test,
            team,
            config.loading,
            precision=config.compute.precision,
            channels_last=config.compute.channels_last,
        )
    accuracy = scores.accuracy()
    parameters, macs = _cost(recipe, len(train.split.class_names))

    def write() -> RunResult:
        write_report(config.out / "test", scores)
        result = RunResult(
            recipe.model.system,
            recipe.seed,
            accuracy.top1,
            accuracy.top5,
            accuracy.videos,
            accuracy.missing,
            parameters,
            macs,
            _clips_per_second(config.out / "log.jsonl"),
        )
        write_text(config.out / RESULT, json.dumps({"identity": identity, "result": to_plain(result)}, indent=1) + "\n")
        return result

    return team.on_leader(write)


def _finished(path: Path, identity: dict[str, Any]) -> RunResult | None:
    """What is noted at `path` of this very run, tested in this very way."""
    try:
        noted = parse_json(path.read_text(encoding="utf-8"))
        same_test = noted["identity"]["recipe"]["test"] == identity["recipe"]["test"]
        is_same = same_test and not differences(noted["identity"], identity)
        return RunResult(**noted["result"]) if is_same else None
    except (OSError, *DAMAGE):
        return None


def _cost(recipe: Recipe, num_classes: int) -> tuple[int, int]:
    """Parameters, and MACs of one clip as a test crops it."""
    frames, side = recipe.sampling.num_segments, recipe.test.crop_size
    network: nn.Module = check_network(recipe.model, num_classes, frames).eval()
    clip = torch.empty(1, frames, 3, side, side, device="meta")
    with torch.no_grad():
        macs = count(lambda: network(clip)).macs
    return sum(parameter.numel() for parameter in network.parameters()), macs


def _clips_per_second(path: Path) -> float | None:
    """The median over the lines of the log; of all processes."""
    rates = [line["clips_per_second"] for line in read_events(path, "step")]
    return median(rates) if rates else None
