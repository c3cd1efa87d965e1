"""Writes the tables of docs/design-notes.md from bench/results: `python -m tests.support.kernel_tables`.

A test compares the page with them, so no figure in them is kept by hand.
"""

import csv
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median

from tests.support.pages import DOCS, ROOT

PAGE = DOCS / "design-notes.md"
RESULTS = ROOT / "bench" / "results"
SITES = ("64×56×56", "256×28×28", "256×14×14", "512×7×7")
LAYOUTS = ("nchw", "channels_last")
MARK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

Rows = list[dict[str, str]]


def read(name: str) -> Rows:
    """The rows of a file of results."""
    with (RESULTS / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, texts: int) -> str:
    """Markdown, of which the first `texts` columns are words and the others numbers."""
    lines = [heads, ["---"] * texts + ["--:"] * (len(heads) - texts), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def kinds(rows: Rows, *columns: str) -> list[tuple[str, ...]]:
    """What the rows are of, in their order."""
    return list(dict.fromkeys(tuple(row[column] for column in columns) for row in rows))


def static() -> str:
    """Of each kernel of each operator, for one GPU of each maker, whatever dtype, layout, shape and T."""
    rows = read("static")
    lines = []
    operators = [operator for (operator,) in kinds(rows, "operator")]
    for operator, kernel in sorted(kinds(rows, "operator", "kernel"), key=lambda key: operators.index(key[0])):
        mine = [row for row in rows if (row["operator"], row["kernel"]) == (operator, kernel)]
        nvidia = [row for row in mine if row["target"] == "sm_90"]
        amd = [row for row in mine if row["target"] == "gfx942"]
        lines.append(
            (
                f"`{operator}`",
                f"`{kernel}`",
                span_of(int(row["registers"]) for row in nvidia),
                span_of(int(row["occupancy"].rstrip("%")) for row in nvidia) + " %",
                str(max(int(row["shared_bytes"]) for row in nvidia)),
                str(max(int(row["local_bytes"]) for row in nvidia)),
                span_of(int(row["registers"]) for row in amd),
                str(max(int(row["spills"]) for row in amd)),
            )
        )
    heads = ("operator", "kernel", "sm_90: registers", "resident warps", "shared, bytes", "put aside, bytes")
    return table((*heads, "gfx942: registers", "spilled registers"), lines, texts=2)


def executed() -> str:
    """Sectors that a request touches on sm_90, beside those that its bytes would fill, by dtype and layout."""
    rows = [row for row in read("executed") if row["target"] == "sm_90" and row["dtype"] in ("float32", "bfloat16")]
    forms = [(dtype, layout) for dtype in ("float32", "bfloat16") for layout in LAYOUTS]
    lines = []
    for (operator,) in kinds(rows, "operator"):
        cells = []
        for form in forms:
            (row,) = (r for r in rows if (r["operator"], r["dtype"], r["layout"]) == (operator, *form))
            cells.append(f"{row['sectors']} ({row['needed']})")
        mine = [row for row in rows if row["operator"] == operator]
        instructions = sum(int(row["instructions"]) for row in mine)
        lines.append((f"`{operator}`", f"{instructions:,}", *cells))
    heads = [f"{dtype}, {layout.replace('nchw', 'NCHW')}" for dtype, layout in forms]
    return table(("operator", "instructions", *heads), lines, texts=1)


def predicted() -> str:
    """µs predicted for an H100 and measured there, and how far apart these are in all."""
    rows = read("predicted-h100-bf16")
    lines = []
    for layout, mode, kernel in sorted(kinds(rows, "layout", "mode", "kernel"), key=lambda key: key[::-1]):
        cells = []
        for site in SITES:
            mine = [row for row in rows if (row["layout"], row["mode"], row["kernel"]) == (layout, mode, kernel)]
            found = [row for row in mine if row["shape"].replace("x", "×") == site]
            pairs = [f"{of(row, 'predicted')} / {of(row, 'measured')}" for row in found]
            cells.append(", ".join(pairs) or "–")
        lines.append((f"`{kernel}`", mode, layout.replace("nchw", "NCHW"), *cells))
    off = [abs(float(row["predicted_microseconds"]) / float(row["measured_microseconds"]) - 1) for row in rows]
    equal = sum(row["counted_instructions"] == row["walked_instructions"] for row in rows)
    summary = (
        f"\nOf {len(rows)} launches the time is off by {median(off):.0%} in the median and {max(off):.0%} at most; "
        f"the number of\ninstructions of warps is the counted one in {equal}.\n"
    )
    return table(("kernel", "in", "layout", *SITES), lines, texts=3) + summary


def of(row: dict[str, str], kind: str) -> str:
    """µs with one digit."""
    return f"{float(row[f'{kind}_microseconds']):.1f}"


def measured() -> str:
    """µs of each operator on an H200, the sums of split results included, and over TANet-50's 16 TAMs."""
    rows = [row for row in read("times-h200") if row["dtype"] == "bfloat16" and row["triton"] == "3.8.0"]
    lines = []
    for (operator,) in kinds(rows, "operator"):
        for layout in LAYOUTS:
            mine = [row for row in rows if (row["operator"], row["layout"]) == (operator, layout)]
            cells = [f"{sum(float(row['median_us']) for row in mine if row['shape'] == site):.1f}" for site in SITES]
            total = sum(float(row["median_us"]) * int(row["tams"]) for row in mine)
            lines.append((f"`{operator}`", layout.replace("nchw", "NCHW"), *cells, f"{total:.0f}"))
    return table(("operator", "layout", *SITES, "16 TAMs"), lines, texts=2)


def dram() -> str:
    """Passes over X that DRAM gave out, in training, by site; of kernels that read X or dY."""
    lines = []
    for card in ("h200", "h100"):
        rows = [row for row in read(f"counters-{card}-bf16") if row["mode"] == "training"]
        for kernel in ("squeeze", "aggregate", "weight_gradients", "input_gradient"):
            for layout in LAYOUTS:
                mine = [row for row in rows if (row["kernel"], row["layout"]) == (kernel, layout)]
                by_site = {row["shape"].replace("x", "×"): row["read_in_passes_of_x"] for row in mine}
                cells = [by_site[site] for site in SITES]
                lines.append((card.upper(), f"`{kernel}`", layout.replace("nchw", "NCHW"), *cells))
    return table(("card", "kernel", "layout", *SITES), lines, texts=3)


def span_of(values: Iterable[int]) -> str:
    """From the least to the greatest."""
    known = sorted(values)
    return f"{known[0]}" if known[0] == known[-1] else f"{known[0]}–{known[-1]}"


TABLES: dict[str, Callable[[], str]] = {
    "static": static,
    "predicted": predicted,
    "executed": executed,
    "measured": measured,
    "dram": dram,
}


def filled(text: str) -> str:
    """The page with its tables as the results have them."""
    return MARK.sub(lambda match: f"{match[1]}\n{TABLES[match[2]]()}\n{match[3]}", text)


def main(page: Path = PAGE) -> None:
    """Rewrite the page."""
    page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
