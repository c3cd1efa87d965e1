"""Tables for the terminal, and JSON for everything else."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench.candidates import CANDIDATES
from bench.machine import Machine
from bench.rows import Row

MISSING = "–"
NO_PEAK = f"peak: not available on the CPU ({MISSING})."


def ops_header(candidates: Sequence[str]) -> str:
    """Above the lines of `ops_line`."""
    columns = "".join(f"{name:>17}" for name in (*candidates, "floor"))
    return f"{'shape':>12} {'layout':>14} {'operator':>19}{columns} {'of copy':>8}   (ms; 'of copy': {candidates[0]})"


def ops_line(rows: Sequence[Row]) -> str:
    """The candidates of one operator at one shape, side by side, the floor last."""
    first = rows[0]
    columns = "".join(f"{row.time!s:>17}" for row in rows)
    return f"{first.shape:>12} {first.layout:>14} {first.operator:>19}{columns} {first.of_copy:>8.0%}"


def ops_sums(totals: Sequence[Row], device: str) -> str:
    """One line for each layout, operator and candidate, and what the columns mean."""
    on_gpu = torch.device(device).type == "cuda"
    names = f"{'layout':>14} {'operator':>19} {'candidate':>15}"
    figures = f"{'ms':>17} {'GB/s':>7} {'of copy':>8} {'vs eager':>9} {'saved MiB':>10} {'peak MiB':>9} {'launches':>9}"
    eager = {(row.layout, row.operator): row.time.median for row in totals if row.candidate == "eager"}
    lines = [f"\nAll shapes, each as often as the network has it ({totals[0].count} TAMs):", f"{names} {figures}"]
    for row in totals:
        peer = eager.get((row.layout, row.operator))
        ratio = f"{peer / row.time.median:.2f}×" if peer else MISSING
        lines.append(
            f"{row.layout:>14} {row.operator:>19} {row.candidate:>15} {row.time!s:>17} "
            f"{row.gigabytes_per_second:>7.1f} {row.of_copy:>8.0%} {ratio:>9} "
            f"{mebibytes(row.saved_bytes):>10} {mebibytes(row.peak_bytes):>9} "
            f"{MISSING if row.launches is None else row.launches:>9}"
        )
    lines += [f"{name}: {meaning}." for name, meaning in CANDIDATES.items()]
    lines += [
        "GB/s: the passes over X that the operator cannot avoid, over the time. of copy: the floor over the time.",
        "saved: what autograd holds between forward and backward, X included.",
        "peak: beyond what was allocated before the call; of the largest shape." if on_gpu else NO_PEAK,
        "launches: kernels, counted by the profiler."
        if on_gpu
        else f"launches: operators called, views apart; what torch.compile generated is not counted ({MISSING}).",
    ]
    return "\n".join(lines)


def mebibytes(size: int | None) -> str:
    """With one digit."""
    return MISSING if size is None else f"{size / 2**20:.1f}"


def write_json(file: Path, machine: Machine, options: Any, **tables: Sequence[Any]) -> None:
    """The machine, the options and tables of dataclasses, by name."""
    document = {
        "machine": asdict(machine),
        "options": asdict(options),
        **{name: [asdict(row) for row in rows] for name, rows in tables.items()},
    }
    file.write_text(json.dumps(document, indent=1, ensure_ascii=False, default=str) + "\n")
