"""docs/neighbors.md does what it says."""

import re
from pathlib import Path
from typing import Any

import tam_triton
from tam_triton.nets.registry import config_of

PAGE = Path(tam_triton.__file__).parents[1] / "docs" / "neighbors.md"


def test_the_page() -> None:
    """Its blocks, one after the other."""
    names: dict[str, Any] = {}
    for block in re.findall(
        r"^```python\n(?!# with the package)(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    ):
        exec(block, names)
    assert [tuple(names[name].shape) for name in ("clips", "maps", "features")] == [
        (2, 4, 3, 64, 64),
        (8, 512, 2, 2),
        (2, 512),
    ]
    assert [maps.shape[1] for maps in names["stages"]] == [64, 64, 128, 256, 512]
    assert names["sizes"]["input_size"] == (3, 224, 224)
    assert not any(weight.requires_grad for weight in names["network"].layer1.parameters())
    assert len({group["lr_scale"] for group in names["optimizer"].param_groups}) > 4
    assert {"tanet_resnet18", "tsm_resnet50", "slowfast_8x8"} <= set(names["names"])
    assert config_of(names["model"])["dropout"] == 0.3
