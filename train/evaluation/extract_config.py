"""What `python -m train extract` is asked for, apart from what does it, so that its help is there at once."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from train.evaluation.network_config import NetworkConfig
from train.evaluation.view_changes import ViewChanges
from train.fields import require


@dataclass(frozen=True)
class ExtractConfig(NetworkConfig):
    """Write what a trained network makes of videos on the way to its answer: a file of features for each.

    By the one view of a validation, or by several.
    """

    out: Path = Path("runs/features")
    """Folder for the files: each at its video's path below the current folder, or from the root, and the format's
    suffix. Files that are there by the same settings are kept."""
    per_segment: bool = False
    """Features (T, D), of each frame of a clip, and not their mean (D,)."""
    maps: tuple[str, ...] = ()
    """Names of layers, such as layer3, whose feature maps (T, C, H, W) are written beside, as maps.layer3."""
    protocol: Literal["validation", "recipe", "10x3", "4x3", "2x3", "1x1"] = "validation"
    """As how many views a video is seen, as for `predict`. Of several each has its own row: features (V, D) or
    (V, T, D), maps (V, T, C, H, W), crops of a clip in a row."""
    views: ViewChanges = field(default_factory=ViewChanges)
    batch_size: int = 8
    """Views computed at a time."""
    format: Literal["safetensors", "npz"] = "safetensors"
    """npz is NumPy's; it has what made the file as JSON in the array `metadata`."""
    overwrite: bool = False
    """Make files anew that are there by other settings, or of another video."""
    workers: int = 1
    """Processes that read videos. With 0 this one does, and a decoder that hangs or crashes takes it with it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "batch_size", self.batch_size >= 1, "at least 1")
        require(self, "workers", self.workers >= 0, "at least 0")
        require(self, "maps", len(set(self.maps)) == len(self.maps), "names of layers, each once")
