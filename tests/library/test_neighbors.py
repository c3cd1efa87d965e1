"""docs/neighbors.md does what it says."""

from tam_triton.nets.registry import config_of
from tests.support.pages import run_page


def test_the_page() -> None:
    """Its blocks, one after the other."""
    names = run_page("docs/neighbors.md")
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
