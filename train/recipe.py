"""A recipe: everything that decides what a training run computes, in one frozen dataclass.

Where values come from: *paper* is section 4.1 of the paper (arXiv 2005.06803), *script* the training scripts of its
authors' code (liu-zhy/temporal-adaptive-module), *mmaction2* the other public implementation. Where paper and script
differ the field or the recipe says so. SlowFast's values are those of its authors' configurations
(facebookresearch/SlowFast, configs/Kinetics/SLOWFAST_*_R50.yaml) and of section 4.1 of arXiv 1812.03982. What changes
only how fast a run computes, and where, is no part of a recipe.
"""

import dataclasses
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import tyro

from tam_triton.nets import list_models, list_options
from tam_triton.nets.slowfast_config import CONFIGS
from tam_triton.nets.small_resnet import SMALL
from tam_triton.nets.systems import SYSTEMS
from train.data.dataset import Views
from train.data.entries import Split
from train.data.reader import Decoder
from train.data.sampling import Sampling
from train.data.transforms import Augmentation
from train.errors import InputError
from train.fields import ADDED, check_types, from_plain, parse_json, require, to_plain

T = TypeVar("T")

if TYPE_CHECKING:
    System = str
else:  # so that the command line offers, and an error lists, what there is
    System = Literal[tuple(list_models())]

MOST_BYTES = 2**40
"""Of the clips of a step, or of the views of a video; more are refused before anything is read."""
USUAL = (("resnet50", "IMAGENET1K_V1"), ("resnet50", None))
"""Backbones and weights that need no check: only torchvision can list the others, and takes a second to import."""


@dataclass(frozen=True)
class Data:
    """Which videos; `train` and `val` are needed."""

    train: Path | None = None
    """Index of the training videos, as `python -m train prepare` writes it."""
    val: Path | None = None
    """Index of the videos for validation and test."""
    train_root: Path | None = dataclasses.field(default=None, metadata=ADDED)
    """Folder of the training videos, where they are no longer in the one that the index was written for."""
    val_root: Path | None = dataclasses.field(default=None, metadata=ADDED)
    """The same of the videos for validation and test."""
    num_classes: int | None = None
    """How many classes the data set must have; None takes what the index says. 400 for Kinetics-400, 174 for
    Something-Something."""
    max_bad_share: float = 0.05
    """The largest share of the training videos, from 0 to 1, that may turn out to be unreadable during a run; beyond it
    the run ends. This project's choice: what `prepare` found to be bad is not in the index and does not count."""
    balanced: bool = dataclasses.field(default=False, metadata=ADDED)
    """Whether an epoch has as many clips of each class: videos of rare ones come several times, each time with other
    frames and crops, of frequent ones a part does. By default every video comes once."""
    decoder: Decoder = "auto"
    """What decodes video files. auto: PyAV, which decodes no more than a clip needs where that is exact. decord,
    torchcodec: these, where they are exact too. pyav: all of a file, always."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self, "num_classes", self.num_classes is None or self.num_classes >= 2, "at least 2")
        require(self, "max_bad_share", 0 <= self.max_bad_share <= 1, "a share from 0 to 1")

    def check_split(self, split: Split) -> None:
        """Raise InputError if `split` has no videos, or another number of classes than this says."""
        if len(split.entries) == 0:
            raise InputError(f"{split.name}: the split holds no videos")
        if len(split.class_names) == 1:
            raise InputError(f"{split.name}: all is of one class, {split.class_names[0]!r}; expected two or more")
        if self.num_classes not in (None, len(split.class_names)):
            raise InputError(
                f"data.num_classes: got {self.num_classes}, but {split.name} has {len(split.class_names)} classes; "
                "--data.num-classes None takes as many as there are"
            )


FORMER_KINDS = {"formerly": "kind", "values": {"TANet": "tanet", "C2D": "c2d"}}
OPTIONS = ("kernel_size", "alpha", "beta", "local_kernel_size")
BALANCED = "balanced"
"""Of class weights: as the training videos have it, and no file."""


@dataclass(frozen=True)
class Model:
    """Which network."""

    system: System = dataclasses.field(default="tanet", metadata=FORMER_KINDS)
    """TANet, or another of the paper's systems on the same backbone; c2d has no temporal modeling."""
    backbone: str = "resnet50"
    """The 2D network below: torchvision's, any of the families of ResNet, ResNeXt, RegNet, MobileNet, ShuffleNet V2,
    EfficientNet, ConvNeXt and Inception V3 (a name that there is not lists them); timm's, such as timm/convnext_tiny,
    where it is installed; small, the demo's. The paper trains resnet50, and for Kinetics-400 101 and 152 too. SlowFast
    has its own and takes resnet50 here alone."""
    weights: str | None = "IMAGENET1K_V1"
    """The backbone's weights at the start, by torchvision's name or timm's tag, or DEFAULT; None draws them. ImageNet's
    in paper and script; V1 because it is the set that torchvision had when these were written. None for SlowFast. Or a
    file, which has a dot or a slash in its name: a video checkpoint of this program, of the authors' code or of
    mmaction2, or 2D weights."""
    weights_segments: Literal["interpolate", "draw"] | None = dataclasses.field(default=None, metadata=ADDED)
    """Where that file is of another number of frames: make TAM's global branches of it, or draw them; None refuses."""
    weights_average: bool = dataclasses.field(default=False, metadata=ADDED)
    """Take the moving average (EMA) that lies beside the weights in that file."""
    dropout: float = 0.5
    """Probability of dropping a feature before fc. Script: 0.5, for Something-Something V1 0.6."""
    kernel_size: int = 3
    """K, taps of the adaptive kernel, or of what a system has in its place. Paper, table 1b."""
    alpha: int = 2
    """α, expansion of the global branch, for systems with one. Paper, table 1a."""
    beta: int = 4
    """β, reduction of the local branch, for systems with one. Paper, table 1a."""
    local_kernel_size: int = dataclasses.field(default=3, metadata=ADDED)
    """Taps of the local branch's first Conv1d. Paper and mmaction2; the script's are as many as kernel_size."""
    stages: tuple[Literal["res2", "res3", "res4", "res5"], ...] | None = dataclasses.field(default=None, metadata=ADDED)
    """Stages of a ResNet that have the temporal module; None: all. Paper, table 5b: all. None for systems whose module
    has places of its own, such as tsm."""

    def __post_init__(self) -> None:
        check_types(self)
        if not self.starts_from_file:
            for field, default in (("weights_segments", None), ("weights_average", False)):
                require(self, field, getattr(self, field) == default, f"{default} where weights is no file")
        if self.system in CONFIGS:
            for field, expected in (("backbone", "resnet50"), ("weights", None)):
                holds = getattr(self, field) == expected or (field == "weights" and self.starts_from_file)
                require(self, field, holds, f"{expected} for {self.system}, which has a backbone of its own")
        if self.backbone == SMALL:
            require(self, "weights", self.pretrained is None, "None, or a file, for the small backbone")
        elif (self.backbone, self.pretrained) not in USUAL:
            self._check_backbone()
        require(self, "dropout", 0 <= self.dropout < 1, "at least 0 and below 1")
        for field in ("kernel_size", "local_kernel_size"):
            require(self, field, getattr(self, field) > 0 and getattr(self, field) % 2 == 1, "an odd number above 0")
        for field in ("alpha", "beta"):
            require(self, field, getattr(self, field) >= 1, "at least 1")
        stages, row = self.stages, SYSTEMS.get(self.system)
        if stages is not None:
            expected = "one or more different stages, or None"
            require(self, "stages", len(set(stages)) == len(stages) > 0, expected)
            holds = row is not None and row.style is not None
            require(self, "stages", holds, f"None, as the places of {self.system} are its own")
        known = list_options(self.system)
        for option in dataclasses.fields(self):
            if option.name in OPTIONS and option.name not in known:
                holds = getattr(self, option.name) == option.default
                require(self, option.name, holds, f"{option.default}, as {self.system} has no such option")

    def _check_backbone(self) -> None:
        from tam_triton.nets.backbones import TIMM, check_backbone, list_backbones

        known = (*list_backbones(), SMALL)
        expected = f"one of {', '.join(map(repr, known))}, or one of timm's: '{TIMM}…'"
        require(self, "backbone", self.backbone in known or self.backbone.startswith(TIMM), expected)
        try:
            check_backbone(self.backbone, self.pretrained)
        except ValueError as error:
            raise InputError(f"model.{error}") from error
        except ImportError as error:
            raise InputError(f"model.backbone: got {self.backbone!r}, but {error}") from error

    @property
    def starts_from_file(self) -> bool:
        """Whether `weights` is a file; neither torchvision's names nor timm's have dots or slashes."""
        return self.weights is not None and any(sign in self.weights for sign in "./\\")

    @property
    def pretrained(self) -> str | None:
        """The name of the backbone's published weights."""
        return None if self.starts_from_file else self.weights

    @property
    def options(self) -> dict[str, Any]:
        """Those of its options that the system has, and the stages, where not all have it."""
        options = {name: getattr(self, name) for name in OPTIONS if name in list_options(self.system)}
        return options if self.stages is None else options | {"stages": self.stages}


@dataclass(frozen=True)
class Optimization:
    """SGD on the cross-entropy of a clip's logits; BatchNorm trains along. There is no warm-up in paper and script.

    Paper: arXiv 2005.06803; script: its authors' training scripts; mmaction2: OpenMMLab's implementation.
    """

    batch_size: int | None = 64
    """Clips of one step, over all processes and accumulated parts. Paper; the script agrees but for Something-Something
    V2 (128). None: as many as the machine bears when the run begins, up to lr_batch_size, with `lr` scaled."""
    lr: float = 0.01
    """Learning rate at the start. Paper; the script agrees but for Something-Something V2 (0.02 at 128 clips)."""
    scale_lr: bool = False
    """Multiply `lr` by batch_size / lr_batch_size."""
    lr_batch_size: int = 64
    """The number of clips a step that `lr` is meant for."""
    epochs: int = 100
    """Paper and script: 100 for Kinetics-400, 50 for Something-Something."""
    schedule: Literal["step", "cosine"] = "step"
    """step divides the learning rate after each of `milestones` (paper); cosine lets it fall to zero (SlowFast)."""
    milestones: tuple[float, ...] = (0.5, 0.75, 0.9)
    """After how many epochs the learning rate is divided; below 1, after what share of them. Paper and script: after
    50, 75 and 90 of 100 epochs for Kinetics-400, after 30, 40 and 45 of 50 for Something-Something."""
    lr_divisor: float = 10.0
    """By what. Paper."""
    warmup_epochs: float = 0.0
    """Over how many epochs the learning rate rises to where it starts. None in paper and script; 34 for SlowFast."""
    warmup_start: float | None = dataclasses.field(default=None, metadata=ADDED)
    """The share of `lr` that it rises from, in a straight line to where `schedule` is at the end of the rise (SlowFast:
    0.1). None: it rises from next to nothing, and what `schedule` says meanwhile is multiplied by the rise."""
    momentum: float = 0.9
    """Paper."""
    nesterov: bool = dataclasses.field(default=False, metadata=ADDED)
    """Nesterov's momentum, as SlowFast's authors have it."""
    weight_decay: float = 1e-4
    """Paper: 1e-4 for Kinetics-400, 1e-3 for Something-Something. Script: the same, but 5e-4 for V2."""
    max_grad_norm: float | None = 20.0
    """Gradients are scaled down to this norm; None leaves them. Script."""
    groups: bool = True
    """The script's groups of parameters, after TSN: biases learn twice as fast and do not decay, BatchNorm does not
    decay, the last fc's weight learns five times as fast, its bias ten times and without decay. Without: one group,
    which `norm_decay` may take BatchNorm out of."""
    norm_decay: bool = dataclasses.field(default=True, metadata=ADDED)
    """Let BatchNorm decay where there are no `groups`. SlowFast's authors do not."""
    fast_kernels: bool = False
    """Let the Linears of TAM's global branch learn five times as fast. The authors' code does, by a rule meant for fc;
    mmaction2's does not, and the paper says nothing of it, so neither does this."""
    label_smoothing: float = dataclasses.field(default=0.0, metadata=ADDED)
    """ε, the share of a label that goes to all classes alike, such as 0.1. In no recipe; arXiv 1512.00567, section 7.
    """
    class_weights: str | None = dataclasses.field(default=None, metadata=ADDED)
    """What a clip's loss is multiplied by. balanced: the more, the fewer training videos its class has, 1 on average
    over the videos. Or a file: JSON, {"class": weight}, or CSV, a line `class,weight` for each. In no recipe."""

    def __post_init__(self) -> None:
        check_types(self)
        for field in ("batch_size", "lr_batch_size", "epochs"):
            require(self, field, getattr(self, field) is None or getattr(self, field) >= 1, "at least 1")
        require(self, "lr", self.lr > 0, "a number above 0")
        require(self, "lr_divisor", self.lr_divisor >= 1, "at least 1")
        require(self, "warmup_epochs", 0 <= self.warmup_epochs <= self.epochs, f"from 0 to epochs ({self.epochs})")
        start = self.warmup_start
        require(self, "warmup_start", start is None or 0 <= start <= 1, "a share of lr from 0 to 1, or None")
        if self.schedule == "step":
            ends = self.milestone_epochs
            fit = ends == tuple(sorted(set(ends))) and all(0 < end < self.epochs for end in ends)
            expected = f"numbers that rise: of epochs, below {self.epochs}, or shares of them, below 1"
            require(self, "milestones", fit, expected)
        require(self, "momentum", 0 <= self.momentum < 1, "at least 0 and below 1")
        require(self, "nesterov", not self.nesterov or self.momentum > 0, "False where momentum is 0")
        require(self, "weight_decay", self.weight_decay >= 0, "at least 0")
        require(self, "max_grad_norm", self.max_grad_norm is None or self.max_grad_norm > 0, "a number above 0")
        require(self, "label_smoothing", 0 <= self.label_smoothing < 1, "at least 0 and below 1")
        require(self, "class_weights", self.class_weights != "", "balanced, a file, or None")

    @property
    def milestone_epochs(self) -> tuple[float, ...]:
        """The milestones, all in epochs."""
        return tuple(round(m * self.epochs, 6) if m < 1 else m for m in self.milestones)

    @property
    def scaled_lr(self) -> float:
        """The learning rate that a run starts with; before its batch is chosen, `lr`."""
        if self.batch_size is None or not self.scale_lr:
            return self.lr
        return self.lr * self.batch_size / self.lr_batch_size


@dataclass(frozen=True)
class Recipe:
    """One training run, and how what it gives is tested."""

    name: tyro.conf.Suppress[str]
    data: Data
    optimization: Optimization = dataclasses.field(metadata={"formerly": "optimisation"})
    model: Model
    sampling: Sampling
    augmentation: Augmentation
    validation: Views
    """How the network is scored while it is trained."""
    test: Views
    """The protocol that published figures are measured by."""
    seed: int = 0
    """Of the weights that are not loaded, of the order of the videos and of all augmentation."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self, "seed", self.seed >= 0, "at least 0")
        row = 3 * self.sampling.num_segments  # bytes of one pixel in all frames of a clip
        step = (self.optimization.batch_size or 1) * row * self.augmentation.crop_size**2
        require(self.optimization, "batch_size", step <= MOST_BYTES, "so many clips that a step's take at most 1 TiB")
        for views in (self.validation, self.test):
            fits = views.per_video * row * views.crop_size**2 <= MOST_BYTES
            require(views, "clips", fits, "so many that a video's views take at most 1 TiB")
        twice = self.data.balanced and self.optimization.class_weights == BALANCED
        require(
            self.optimization, "class_weights", not twice, "None or a file where data.balanced evens the classes out"
        )
        if self.model.system in CONFIGS:
            expected = CONFIGS[self.model.system].num_segments
            fits = self.sampling.num_segments == expected
            require(
                self.sampling, "num_segments", fits, f"{expected} for {self.model.system}, its fast pathway's frames"
            )

    def resolve(self, batch_size: int | None = None) -> "Recipe":
        """The recipe as a run saves it, with nothing left to be worked out: learning rate scaled, paths absolute.

        `batch_size` is what the machine bears, where that is asked for; without it that alone is left open.
        """
        optimization = self.optimization
        if optimization.batch_size is None:
            optimization = replace(optimization, batch_size=batch_size, scale_lr=True)
        if optimization.batch_size is not None:
            optimization = replace(optimization, lr=optimization.scaled_lr, scale_lr=False)
        if optimization.class_weights not in (None, BALANCED):
            optimization = replace(optimization, class_weights=str(Path(str(optimization.class_weights)).absolute()))
        paths = {name: getattr(self.data, name) for name in ("train", "val", "train_root", "val_root")}
        data = replace(self.data, **{name: path and path.absolute() for name, path in paths.items()})
        mirrored = self.augmentation.mirrored
        augmentation = replace(self.augmentation, mirrored=mirrored and mirrored.absolute())
        model = self.model
        if model.starts_from_file:
            model = replace(model, weights=str(Path(str(model.weights)).absolute()))
        return replace(self, optimization=optimization, data=data, augmentation=augmentation, model=model)

    def to_json(self) -> str:
        """The recipe as a JSON object; `from_json` gives an equal one back."""
        return json.dumps(to_plain(self), indent=1)

    @staticmethod
    def from_json(text: str) -> "Recipe":
        """The recipe that `to_json` wrote. InputError names a field that is missing, unknown or of a wrong value."""
        try:
            plain = parse_json(text)
        except InputError as error:
            raise InputError(f"recipe: {error}") from error
        return from_plain(Recipe, plain, "recipe")
