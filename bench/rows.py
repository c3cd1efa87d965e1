"""One measured figure of `ops`, and sums of them over the TAMs of a network."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.timing import Time


@dataclass(frozen=True)
class Row:
    """One candidate at one operator and shape; or, in a sum, at all shapes, each `count` times.

    Attributes:
        shape: C×H×W, or "sum".
        count: how many TAMs of the network have this shape.
        layout, operator, candidate: see `bench.candidates`.
        time: of one call; of a sum, the sums of medians and of spreads.
        traffic_bytes: what the operator cannot avoid to move.
        gigabytes_per_second: that traffic over the time.
        of_copy: these GB/s as a share of what copy_ reached on X in the same rounds; the floor's is 1.
        saved_bytes: held by autograd between forward and backward, X among them; None in evaluation.
        peak_bytes: the most allocated at once; None on the CPU.
        launches: kernels on a GPU, operators on the CPU; None for code that torch.compile generated for the CPU.
    """

    shape: str
    count: int
    layout: str
    operator: str
    candidate: str
    time: Time
    traffic_bytes: int
    gigabytes_per_second: float
    of_copy: float
    saved_bytes: int | None
    peak_bytes: int | None
    launches: int | None


def sums(rows: Sequence[Row]) -> list[Row]:
    """For each layout, operator and candidate, all shapes together, each as often as the network has it."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.layout, row.operator, row.candidate), []).append(row)
    floors = {key[:2]: weighted(group, "median") for key, group in groups.items() if key[2] == "floor"}
    return [total(group, floors[key[:2]]) for key, group in groups.items()]


def total(rows: Sequence[Row], floor: float) -> Row:
    """The sum of rows that differ in shape alone; `floor` is the same sum for the floor, in ms."""
    first, traffic = rows[0], sum(row.count * row.traffic_bytes for row in rows)
    time = Time(weighted(rows, "median"), weighted(rows, "spread"), min(row.time.rounds for row in rows))
    saved, launches = ([getattr(row, name) for row in rows] for name in ("saved_bytes", "launches"))
    peaks = [row.peak_bytes for row in rows if row.peak_bytes is not None]
    counts = [row.count for row in rows]
    return Row(
        shape="sum",
        count=sum(counts),
        layout=first.layout,
        operator=first.operator,
        candidate=first.candidate,
        time=time,
        traffic_bytes=traffic,
        gigabytes_per_second=traffic / time.median / 1e6,
        of_copy=floor / time.median,
        saved_bytes=None if None in saved else sum(n * value for n, value in zip(counts, saved, strict=True)),
        peak_bytes=max(peaks, default=None),
        launches=None if None in launches else sum(n * value for n, value in zip(counts, launches, strict=True)),
    )


def weighted(rows: Sequence[Row], figure: str) -> float:
    """The sum of a figure of the times, each shape as often as it occurs."""
    return sum(row.count * float(getattr(row.time, figure)) for row in rows)
