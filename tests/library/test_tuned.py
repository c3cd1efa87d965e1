"""Tuned launches: any that are taken compute what the usual ones do; all others are refused; none is used unasked."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._pytree import tree_leaves

from bench.shapes import LAYOUTS
from bench.static import CALLS
from bench.tune import Asked, neighbors
from tam_triton import aggregate
from tam_triton.kernels import launch, tuned
from tam_triton.kernels.launch import Block, Tile

T, K = 3, 3
OPERATORS = ("aggregate", "input_gradient", "squeeze", "normalized_squeeze", "weight_gradients", "batch_statistics")
WHERE: dict[str, Any] = {"target": "cuda:90", "multiprocessors": 132, "warp_size": 32}
ARGUMENTS: dict[str, Any] = {"channels": 8, "pixels": 16, "channels_last": False, "itemsize": 4}
ENTRY: dict[str, Any] = {
    "rule": "temporal_block",
    "arguments": ARGUMENTS,
    "chosen": {"vectors": 64, "vector": 2, "ahead": 1},
}
TILE: dict[str, Any] = {"channels": 2, "pixels": 8, "vector": 2, "warps": 1, "parts": 2, "steps": 1, "unroll": 1}
BAND: dict[str, Any] = {"rule": "band_tile", "arguments": {"clips": 2, **ARGUMENTS, "bands": 1}, "chosen": TILE}


@given(
    st.data(), st.sampled_from(OPERATORS), st.sampled_from(list(LAYOUTS)), st.integers(1, 20), st.integers(1, 6),
    st.integers(1, 6),
)  # fmt: skip
def test_what_is_taken_computes_the_same(
    data: st.DataObject, operator: str, layout: str, channels: int, height: int, moves: int
) -> None:
    generator = torch.Generator().manual_seed(channels)
    x = torch.randn(2 * T, channels, height, 7, generator=generator).contiguous(memory_format=LAYOUTS[layout])
    v, theta = torch.rand(2, channels, T, generator=generator), torch.rand(2, channels, K, generator=generator)
    usual = CALLS[operator](x, v, theta)
    asked = Asked()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "CHOSEN", asked)
        CALLS[operator](x, v, theta)
    (key,) = asked.keys_asked
    choice = getattr(launch, key[0])(*key[1:])
    assert tuned.fault(key, choice) is None
    for _ in range(moves):
        if following := list(neighbors(key, choice)):
            choice = data.draw(st.sampled_from(following))
    with tuned.chosen({key: choice}):
        for one, other in zip(tree_leaves(CALLS[operator](x, v, theta)), tree_leaves(usual), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def file(folder: Path, *entries: dict[str, Any], **parts: Any) -> Path:
    path = folder / "tuned.json"
    path.write_text(json.dumps({"format": 1, "where": WHERE, "launches": list(entries)} | parts))
    return path


def test_launches_are_used_when_told_to(tmp_path: Path) -> None:
    x = torch.randn(2 * T, 8, 4, 4)
    arguments = x, torch.rand(2, 8, T), torch.rand(2, 8, K)
    usual, block = aggregate(*arguments, impl="triton"), launch.temporal_block(*ARGUMENTS.values())
    path = file(tmp_path, ENTRY, BAND)
    assert launch.temporal_block(*ARGUMENTS.values()) == block
    try:
        assert tuned.use(path) == 2
        assert launch.temporal_block(*ARGUMENTS.values()) == Block(64, 2, 1) != block
        assert launch.temporal_block(9, 16, False, 4) != Block(64, 2, 1)
        assert launch.band_tile(2, 8, 16, False, 4, 1) == Tile(**TILE)
        assert torch.equal(aggregate(*arguments, impl="triton"), usual)
        with pytest.raises(ValueError, match="expected a file"):
            tuned.use(file(tmp_path, {}))
        assert launch.temporal_block(*ARGUMENTS.values()) == Block(64, 2, 1)  # what is refused changes nothing
    finally:
        assert tuned.use(None) == 0
    assert launch.temporal_block(*ARGUMENTS.values()) == block


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    choices: dict[tuple[Any, ...], Block | Tile] = {
        ("temporal_block", 8, 16, False, 4): Block(64, 2, 1),
        ("band_tile", 2, 8, 16, False, 4, 1): Tile(**TILE),
    }
    tuned.write(path, tuned.Where(**WHERE), choices, {("temporal_block", 8, 16, False, 4): {"microseconds": 3.0}})
    assert tuned.read(path) == choices


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({**ENTRY, "rule": "frames_of_part"}, "rule: got 'frames_of_part', expected one of temporal_block"),
        ({**ENTRY, "rule": ["temporal_block"]}, r"rule: got \['temporal_block'\], expected one of temporal_block"),
        ({**ENTRY, "arguments": {"channels": 8}}, "arguments: got"),
        ({**ENTRY, "arguments": {**ARGUMENTS, "itemsize": 0}}, "arguments, itemsize: got 0"),
        ({**ENTRY, "arguments": {**ARGUMENTS, "channels_last": 0}}, "arguments, channels_last: got 0"),
        ({**ENTRY, "chosen": {**ENTRY["chosen"], "vectors": 64.0}}, r"chosen, vectors: got 64\.0"),
        ({**ENTRY, "chosen": {**ENTRY["chosen"], "vectors": 48}}, "vectors: got 48, expected a power of two"),
        ({**ENTRY, "chosen": {**ENTRY["chosen"], "vectors": 2**15}}, "16384 elements at most"),
        ({**ENTRY, "chosen": {**ENTRY["chosen"], "vector": 8}}, "vector: got 8, expected a power of two up to 4"),
        ({**ENTRY, "chosen": {**ENTRY["chosen"], "ahead": 0}}, "ahead: got 0, expected at least 1"),
        ({**BAND, "chosen": {**TILE, "pixels": 6}}, "got 2 × 6, expected powers of two"),
        ({**BAND, "chosen": {**TILE, "pixels": 1, "parts": 16}}, "vector: got 2, expected no more than the tile has"),
        ({**BAND, "chosen": {**TILE, "warps": 64}}, "warps: got 64"),
        ({**BAND, "chosen": {**TILE, "unroll": 2, "parts": 1}}, "and 1 of a band's"),
        ({**BAND, "chosen": {**TILE, "steps": 0}}, "got 0 steps of 1"),
        ({**BAND, "chosen": {**TILE, "parts": 1}}, "parts: got 1 of 1 tiles, expected as many as hold 2 tiles"),
        ({**BAND, "chosen": {**TILE, "parts": 3}}, "parts: got 3 of 1 tiles, expected as many as hold 2 tiles"),
    ],
)  # fmt: skip
def test_what_would_not_compute_the_same_is_refused(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tuned.use(file(tmp_path, entry))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"format": 2}, "format 2, expected 1"),
        ({"launches": 3}, "expected a file that `python -m bench tune` wrote"),
        ({"where": {}}, "expected a file that `python -m bench tune` wrote"),
        ({"where": {**WHERE, "multiprocessors": 108}}, "expected Where.*132, warp_size=32.*the GPU that is here"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tuned.use(file(tmp_path, **parts))
    with pytest.raises(FileNotFoundError):
        tuned.use(tmp_path / "none.json")
