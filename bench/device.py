"""Everything worth knowing of one GPU in one command of a few minutes: a folder of results, and one page of them.

For a machine that is lent for a short time. Steps run one after another in processes of their own, the worthiest first,
each with a time of its own, so that one that fails or hangs costs only itself; what did not begin in time is named.
"""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench.machine import describe
from bench.options import check_device

ROOT = Path(__file__).parents[1]
METRICS = (
    "gpu__time_duration.sum", "dram__bytes_read.sum", "dram__bytes_write.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed", "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__warps_active.avg.pct_of_peak_sustained_active", "smsp__inst_executed.sum", "lts__t_sector_hit_rate.pct",
    "l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum", "l1tex__t_requests_pipe_lsu_mem_global_op_ld.sum",
    "launch__registers_per_thread",
)  # fmt: skip
DONE = "done"
SHORTEST = 5.0  # seconds in which a step may still be of use


@dataclass(frozen=True)
class Device:
    """On the GPU that is there; `--device cpu` tries the command without one, at the smallest sizes."""

    out: Path
    """The folder for logs, results and the page, README.md."""
    device: str = "cuda"
    """A torch device."""
    minutes: float = 8.0
    """For all steps together."""
    steps: tuple[str, ...] = ()
    """Names of steps, in their order; none: all."""

    def __post_init__(self) -> None:
        check_device(self.device)
        if self.minutes <= 0:
            raise ValueError(f"minutes: got {self.minutes}, expected more than 0")
        known = [step.name for step in plan(self)]
        if unknown := set(self.steps) - set(known):
            raise ValueError(f"steps: got {', '.join(sorted(unknown))}, expected some of {', '.join(known)}")


@dataclass(frozen=True)
class Step:
    """One process: its name, what it is for, its time, and its command."""

    name: str
    purpose: str
    seconds: float
    command: tuple[str, ...]


@dataclass(frozen=True)
class Done:
    """What came of a step: its exit status, or why there is none."""

    name: str
    purpose: str
    outcome: str
    seconds: float


def plan(options: Device) -> list[Step]:
    """All steps, in the order of their worth."""
    out, on_gpu = options.out.absolute(), torch.device(options.device).type == "cuda"
    device = torch.device(options.device).type  # without its number: a step sees no other one
    where = ("--device", device)
    ops: tuple[str, ...] = ("--clips", "8", "--rounds", "30", "--seconds", "0.15")
    model, sites, backbone = ops, tuple[str, ...](), "resnet50"
    if not on_gpu:
        small = ("--clips", "1", "--rounds", "2", "--seconds", "0", "--segments", "4")
        ops, model = (*small, "--shapes", "512x7x7"), (*small, "--pixels", "32")
        backbone = "resnet18"
        sites = ("--shapes", "512", "7", "--jobs", "1", "--operators", "squeeze")

    def bench(name: str, *rest: str) -> tuple[str, ...]:
        return sys.executable, "-m", "bench", name, *rest

    def measured(name: str, dtype: str) -> tuple[str, ...]:
        return *where, "--dtype", dtype, "--out", f"{out / name}.json"

    aggregation = ("--operators", "squeeze", "aggregate", "aggregate_training", "tam", "tam_training")
    ours = ("--candidates", "ours", "eager")
    workers, graphs = (("-n", "8"), ("--graphs",)) if on_gpu else ((), ())
    tests = (sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-W", "default", "-p", "no:cacheprovider", *workers)
    counted: tuple[str, ...] = (sys.executable, "-m", "bench.one_pass", device)
    ncu = (
        "ncu", "--clock-control", "none", "--csv", "--page", "raw", "--metrics", ",".join(METRICS),
        "--target-processes", "all", "-k", "regex:_kernel$", "--profile-from-start", "off",
    )  # fmt: skip
    if on_gpu and shutil.which("ncu"):
        counted = (*ncu, *counted)
    facts = "import torch, triton; print(torch.__config__.show()); print('triton', triton.__version__)"
    return [
        Step("facts", "what the machine is", 30, (sys.executable, "-c", facts)),
        Step("tests", "the compiled kernels' tests", 150, (*tests, "tests/library")),
        Step("predict", "predicted, measured times", 110, bench("predict", *sites, "--out", f"{out}/predict.csv")),
        Step("ops_bf16", "operators, bfloat16", 80, bench("ops", *ops, *measured("ops_bf16", "bfloat16"), *ours)),
        Step(
            "model_bf16", "networks, bfloat16", 60,
            bench("model", *model, *measured("model_bf16", "bfloat16"), *graphs),
        ),
        Step("counters", "events of every kernel", 100, counted),
        Step(
            "ops_f32", "operators, float32", 60,
            bench("ops", *ops, *measured("ops_f32", "float32"), *aggregation, *ours),
        ),
        Step("values", "executed and measured values", 90, (*tests, "tests/executed", "-k", "values")),
        Step("train", "a training step, taken apart", 40, bench("train", *model, *where)),
        Step(
            "profile", "a training step by kernel", 40,
            bench(
                "profile", "step", "--backbone", backbone, *model, *measured("profile", "bfloat16"),
                "--memory", f"{out}/memory.png",
            ),
        ),
    ]  # fmt: skip


def run(options: Device) -> list[Done]:
    """Runs the steps, and writes the page after each, so that what there is can be read whenever it is cut off."""
    options.out.mkdir(parents=True, exist_ok=True)
    with ended_by_exceptions():
        done = run_steps(options)
    print(f"wrote {options.out / 'README.md'}")
    return done


@contextmanager
def ended_by_exceptions() -> Iterator[None]:
    """Inside, a signal to end is an exception: steps are in sessions of their own, where it would not reach them."""

    def stop(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_steps(options: Device) -> list[Done]:
    """One after another."""
    end = time.monotonic() + 60 * options.minutes
    done: list[Done] = []
    for step in plan(options):
        if options.steps and step.name not in options.steps:
            continue
        left = end - time.monotonic()
        if left < SHORTEST:
            done.append(Done(step.name, step.purpose, "not begun: no time was left", 0.0))
        else:
            log = options.out / f"{step.name}.log"
            done.append(executed(step, min(step.seconds, left), log, visible(options.device)))
        print(f"{done[-1].name:<10} {done[-1].seconds:6.1f} s  {done[-1].outcome}", flush=True)
        (options.out / "README.md").write_text(page(options, done))
    return done


def visible(device: str) -> dict[str, str]:
    """Variables that let a process see the GPU of that number alone; none where no number is named."""
    index = torch.device(device).index
    if index is None or torch.device(device).type != "cuda":
        return {}
    name = "HIP_VISIBLE_DEVICES" if torch.version.hip else "CUDA_VISIBLE_DEVICES"
    seen = [one.strip() for one in os.environ.get(name, "").split(",") if one.strip()]
    return {name: seen[index] if seen else str(index)}


def executed(step: Step, seconds: float, log: Path, variables: Mapping[str, str]) -> Done:
    """One step, whose output goes to `log`; at its end by the clock, so do all processes that it began."""
    began = time.monotonic()
    environment = {**os.environ, **variables, "PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(
        [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}  # fmt: skip
    with log.open("w") as file, subprocess.Popen(
        step.command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
    ) as process:  # fmt: skip
        try:
            status = process.wait(seconds)
            outcome = DONE if status == 0 else f"failed with status {status}"
        except BaseException as error:
            with suppress(ProcessLookupError):  # what it began would work on beside the steps that are timed next
                os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            outcome = f"stopped after its {seconds:.0f} s"
    return Done(step.name, step.purpose, outcome, time.monotonic() - began)


def page(options: Device, done: Sequence[Done]) -> str:
    """What the steps gave so far, as Markdown."""
    lines = [
        "# One device",
        "",
        *(f"- {name}: {value}" for name, value in asdict(describe(options.device, torch.get_num_threads())).items()),
    ]
    lines += ["", "| step | for | seconds | outcome | |", "|---|---|---|---|---|"]
    lines += [
        f"| {step.name} | {step.purpose} | {step.seconds:.0f} | {step.outcome} | [{step.name}.log]({step.name}.log) |"
        for step in done
    ]
    given = {step.name for step in done if step.outcome == DONE}  # files of others may be an earlier run's
    for name in ("ops_bf16", "ops_f32"):
        if name in given:
            lines += table(
                f"{name}: sums over the TAMs of TANet-50", options.out / f"{name}.json", "sums",
                {"layout": "layout", "operator": "operator", "candidate": "candidate", "ms": "time",
                 "of copy": "of_copy"},
            )  # fmt: skip
    if "model_bf16" in given:
        lines += table(
            "model_bf16: whole networks", options.out / "model_bf16.json", "rows",
            {"network": "network", "mode": "mode", "layout": "layout", "ms": "time", "of C2D": "of_c2d"},
        )  # fmt: skip
    if "predict" in given:
        lines += ["", f"{predicted(options.out / 'predict.csv')}: [predict.csv](predict.csv)."]
    return "\n".join(lines) + "\n"


def predicted(file: Path) -> str:
    """What the times in a file of `bench predict` are: of a GPU that it has no model of, it measures none."""
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    if any(row["measured"] for row in rows):
        return "Predicted beside measured times of every launch"
    targets = ", ".join(sorted({row["target"] for row in rows}))
    return f"Times of every launch as predicted for {targets}, none of them measured"


def table(title: str, file: Path, rows: str, columns: dict[str, str]) -> list[str]:
    """Some columns of the results in `file`."""
    lines = ["", f"## {title}", "", f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    found = json.loads(file.read_text())[rows]
    return [*lines, *("| " + " | ".join(cell(row[name]) for name in columns.values()) + " |" for row in found)]


def cell(value: Any) -> str:
    """A time as its median, a ratio with three digits."""
    if isinstance(value, dict):
        value = value["median"]
    return f"{value:.3g}" if isinstance(value, float) else str(value)
