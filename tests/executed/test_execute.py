"""The table of `bench execute`."""

from pathlib import Path

import pytest

from bench.execute import COLUMNS, Execute, run
from bench.static import CALLS

pytestmark = pytest.mark.executed


def test_counts_by_hand(tmp_path: Path) -> None:
    """One clip of two frames, 8 channels of 4 × 4: 512 bytes of bfloat16, each read once by the squeeze."""
    options = Execute(channels=8, size=4, clips=1, segments=2, layouts=("nchw",), mix=True, out=tmp_path / "table")
    lines = run(options)
    assert (tmp_path / "table").read_text().splitlines() == lines
    rows = [line for line in lines[1:] if not line.startswith("    ") or line.split()[0] in CALLS]
    squeeze = next(line for line in lines if line.split()[:2] == ["squeeze", "squeeze_kernel"]).split()
    assert len(squeeze) == len(COLUMNS)
    requests, sectors, needed = int(squeeze[6]), float(squeeze[7]), float(squeeze[8])
    assert (requests * sectors, requests * needed) == (16, 16)
    assert {row.split()[0].rstrip(",") for row in rows} >= {call.split(",")[0] for call in CALLS}
    assert any("shfl" in line for line in lines)
