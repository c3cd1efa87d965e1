"""`python -m bench saved`: counts without memory are those with it, and what fusing spares is the maps in between."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 — its usual name

from bench import counters, shapes
from bench.__main__ import main
from bench.networks import eager_twin
from bench.saved import Saved, measure, networks
from tam_triton.nets import tanet

SMALL = Saved(clips=2, depth=18, segments=4, pixels=32)


def test_counts_are_those_of_tensors_with_memory() -> None:
    network = eager_twin(tanet(18, 400, SMALL.segments, dropout=0.0)).train()
    frames, labels = torch.zeros(8, 3, 32, 32), torch.zeros(2, dtype=torch.long)
    held = counters.saved_bytes(lambda: F.cross_entropy(network(frames), labels), network.state_dict().values())
    (counted,) = {row.saved_bytes for row in measure(SMALL) if row.network == "TANet, eager"}
    assert counted == held


@pytest.mark.parametrize("layout", shapes.LAYOUTS)
def test_fusing_spares_the_maps_between(layout: str) -> None:
    """One of each site, ReLU's result; what remains beyond C2D's is small."""
    size = {row.network: row.saved_bytes for row in measure(SMALL) if row.layout == layout}
    maps = 4 * 8 * 2 * sum(channels * side**2 for channels, side in ((64, 8), (128, 4), (256, 2), (512, 1)))
    spared = size["TANet, separate"] - size["TANet, fused"]
    vectors = 4 * 16 * 2 * (64 + 128 + 256 + 512) * SMALL.segments  # at most so much is kept in their place
    assert maps - vectors <= spared <= maps
    assert size["TANet, fused"] < size["TANet, separate"] < size["TANet, eager"]


def test_twins_are_one_network() -> None:
    """On the very parameters; C2D has its own."""
    plain, fused, separate, eager = networks(SMALL).values()
    assert separate.get_parameter("conv1.weight") is fused.get_parameter("conv1.weight")
    assert eager.get_parameter("conv1.weight") is fused.get_parameter("conv1.weight")
    assert plain.get_parameter("conv1.weight") is not fused.get_parameter("conv1.weight")


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "saved.json"
    assert main(["saved", "--depth", "18", "--clips", "2", "--pixels", "32", "--out", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [row["network"] for row in rows[:4]] == ["C2D", "TANet, fused", "TANet, separate", "TANet, eager"]
    assert rows[0]["of_c2d"] == 1
    assert "TANet, fused" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [lambda: Saved(clips=0), lambda: Saved(segments=0), lambda: Saved(pixels=31)])
def test_what_cannot_be_counted_is_refused(wrong: Callable[[], Saved]) -> None:
    with pytest.raises(ValueError, match="expected at least"):
        wrong()
