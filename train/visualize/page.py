"""The page: one HTML file that needs no network and no server, to look around in what was collected."""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from train.atomic import write_text
from train.evaluation.places import spread
from train.visualize.collect import Collected
from train.visualize.filters import Filters
from train.visualize.pictures import label, offsets

_HERE = Path(__file__).parent
_BINS = 60


def write_page(
    path: Path,
    seen: Collected,
    filters: Mapping[str, Filters],
    made_of: Mapping[str, Any],
    figures: Mapping[Path, str],
    shown: int,
) -> None:
    """Write the page.

    Args:
        path: where to.
        seen: what there is to show.
        filters: I3D's, by the TAM that they stand beside; may be none.
        made_of: what it is of, by names for people.
        figures: PNGs, with what each shows; the page holds copies.
        shown: how many videos it shows one by one, spread over all.

    Raises OSError.
    """
    numbers = spread(len(seen.videos), shown)
    content = {
        "made": [[name, _text(value)] for name, value in made_of.items()],
        "segments": seen.num_segments,
        "sets": list(seen.data_sets),
        "videos": [
            {
                "name": seen.name_of(video),
                "path": str(video.path),
                "set": video.data_set,
                "about": video.about,
                "motion": round(video.motion, 3),
                "strip": _base64(video.strip) if number in numbers else None,
            }
            for number, video in enumerate(seen.videos)
        ],
        "shown": numbers,
        "blocks": [_block(seen, name, numbers, filters.get(name)) for name in seen.weights],
    }
    # A name of a file may hold anything, "</script>" too.
    data = json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
    pictures = "".join(
        f'<figure><img alt="{html.escape(text)}" src="data:image/png;base64,{_base64(figure.read_bytes())}">'
        f"<figcaption>{html.escape(text)}</figcaption></figure>\n"
        for figure, text in figures.items()
    )
    parts = {"STYLE": _part("page.css"), "PICTURES": pictures, "DATA": data, "SCRIPT": _part("page.js")}
    before, *rest = _part("page.html").split("{{")
    pieces = [(parts[name], after) for name, _, after in (piece.partition("}}") for piece in rest)]
    write_text(path, before + "".join(part + after for part, after in pieces))


def _block(seen: Collected, name: str, numbers: Sequence[int], filters: Filters | None) -> dict[str, Any]:
    importance, kernel = seen.weights[name]
    central = kernel[:, :, kernel.shape[2] // 2].mean(1)
    high = float(kernel.max())
    edges = np.linspace(min(0.0, float(kernel.min())), high if high > 0 else 1.0, _BINS + 1)
    return {
        "name": name,
        "label": label(name),
        "channels": kernel.shape[1],
        "frames": None if importance is None else importance.shape[2],
        "offsets": offsets(kernel.shape[2]),
        "importance": None if importance is None else _floats(importance[numbers]),
        "kernel": _floats(kernel[numbers]),
        "central": [round(float(value), 5) for value in central],
        "edges": [float(edges[0]), float(edges[-1])],
        "all": {set_name: _shares(kernel[videos], edges) for set_name, videos in seen.data_sets.items()},
        "i3d": None if filters is None else _filters(filters),
    }


def _shares(kernel: Tensor, edges: NDArray[np.float64]) -> list[list[float]]:
    """What share of clips and channels has which weight, for each tap: (K, bins)."""
    columns = kernel.flatten(0, 1).T.double().numpy()
    return [[round(count / len(column), 6) for count in np.histogram(column, edges)[0].tolist()] for column in columns]


def _filters(filters: Filters) -> dict[str, Any]:
    """The filters' name and, for each tap, least value, quartiles and greatest value."""
    columns = filters.taps.double().numpy().T
    return {"name": filters.name, "taps": [np.quantile(column, (0, 0.25, 0.5, 0.75, 1)).tolist() for column in columns]}


def _floats(values: Tensor) -> str:
    """Little-endian float32, as the page reads them."""
    return _base64(values.contiguous().numpy().astype("<f4").tobytes())


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _part(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
