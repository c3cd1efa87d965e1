"""Recipes: everything that decides what a training run computes, in one frozen dataclass, and the published ones.

Where values come from: *paper* is section 4.1 of the paper (arXiv 2005.06803), *script* the training scripts of its
authors' code (liu-zhy/temporal-adaptive-module), *mmaction2* the other public implementation. Where paper and script
differ the field or the recipe says so. What changes only how fast a run computes, and where, is no part of a recipe.
"""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import tyro

from tam_triton.nets import list_backbones, list_models, list_options
from tam_triton.nets.backbones import check_backbone
from tam_triton.nets.slowfast import CONFIGS
from train.data.dataset import Views
from train.data.entries import Split
from train.data.reader import Decoder
from train.data.sampling import Sampling
from train.data.transforms import Augmentation
from train.errors import InputError
from train.fields import ADDED, check_types, from_plain, require, to_plain

T = TypeVar("T")

SMALL = "small"
"""The demo's backbone."""
if TYPE_CHECKING:
    System = str
    Backbone = str
else:  # so that the command line offers, and an error lists, what there is
    System = Literal[tuple(list_models())]
    Backbone = Literal[(*list_backbones(), SMALL)]


@dataclass(frozen=True)
class Data:
    """Which videos; `train` and `val` are needed."""

    train: Path | None = None
    """Index of the training videos, as `python -m train prepare` writes it."""
    val: Path | None = None
    """Index of the videos for validation and test."""
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
        if self.num_classes not in (None, len(split.class_names)):
            raise InputError(
                f"data.num_classes: got {self.num_classes}, but {split.name} has {len(split.class_names)} classes"
            )


FORMER_KINDS = {"formerly": "kind", "values": {"TANet": "tanet", "C2D": "c2d"}}
OPTIONS = ("kernel_size", "alpha", "beta")


@dataclass(frozen=True)
class Model:
    """Which network."""

    system: System = dataclasses.field(default="tanet", metadata=FORMER_KINDS)
    """TANet, or another of the paper's systems on the same backbone; c2d has no temporal modeling."""
    backbone: Backbone = "resnet50"
    """The 2D network below. The paper trains resnet50, and for Kinetics-400 101 and 152 too. small is the demo's.
    SlowFast has one of its own and takes resnet50 here alone."""
    weights: str | None = "IMAGENET1K_V1"
    """The backbone's weights at the start, by torchvision's name; None draws them. ImageNet's in paper and script; V1
    because it is the set that torchvision had when these were written. None for SlowFast."""
    dropout: float = 0.5
    """Probability of dropping a feature before fc. Script: 0.5, for Something-Something V1 0.6."""
    kernel_size: int = 3
    """K, taps of the adaptive kernel, or of what a system has in its place. Paper, table 1b."""
    alpha: int = 2
    """α, expansion of the global branch, for systems with one. Paper, table 1a."""
    beta: int = 4
    """β, reduction of the local branch, for systems with one. Paper, table 1a."""

    def __post_init__(self) -> None:
        check_types(self)
        if self.system in CONFIGS:
            for field, expected in (("backbone", "resnet50"), ("weights", None)):
                holds = getattr(self, field) == expected
                require(self, field, holds, f"{expected} for {self.system}, which has a backbone of its own")
        if self.backbone == SMALL:
            require(self, "weights", self.weights is None, "None for the small backbone")
        else:
            try:
                check_backbone(self.backbone, self.weights)
            except ValueError as error:
                raise InputError(f"model.{error}") from error
        require(self, "dropout", 0 <= self.dropout < 1, "at least 0 and below 1")
        require(self, "kernel_size", self.kernel_size > 0 and self.kernel_size % 2 == 1, "an odd number above 0")
        for field in ("alpha", "beta"):
            require(self, field, getattr(self, field) >= 1, "at least 1")
        known = list_options(self.system)
        for option in dataclasses.fields(self):
            if option.name in OPTIONS and option.name not in known:
                holds = getattr(self, option.name) == option.default
                require(self, option.name, holds, f"{option.default}, as {self.system} has no such option")

    @property
    def options(self) -> dict[str, Any]:
        """Those of its options that the system has."""
        return {name: getattr(self, name) for name in OPTIONS if name in list_options(self.system)}


@dataclass(frozen=True)
class Optimization:
    """SGD on the cross-entropy of logits averaged over frames; BatchNorm trains along, there is no warm-up (script).

    Paper: arXiv 2005.06803; script: its authors' training scripts; mmaction2: OpenMMLab's implementation.
    """

    batch_size: int = 64
    """Clips of one step, over all processes and accumulated parts. Paper; the script agrees but for Something-Something
    V2 (128)."""
    lr: float = 0.01
    """Learning rate at the start. Paper; the script agrees but for Something-Something V2 (0.02 at 128 clips)."""
    scale_lr: bool = False
    """Multiply `lr` by batch_size / lr_batch_size."""
    lr_batch_size: int = 64
    """The number of clips a step that `lr` is meant for."""
    epochs: int = 100
    """Paper and script: 100 for Kinetics-400, 50 for Something-Something."""
    schedule: Literal["step", "cosine"] = "step"
    """step divides the learning rate after each of `milestones` (paper); cosine lets it fall to zero (the demo)."""
    milestones: tuple[int, ...] = (50, 75, 90)
    """After how many epochs the learning rate is divided. Paper and script: 50 75 90 and 30 40 45."""
    lr_divisor: float = 10.0
    """By what. Paper."""
    warmup_epochs: float = 0.0
    """Over how many epochs the learning rate rises to where it starts. None in paper and script."""
    momentum: float = 0.9
    """Paper."""
    weight_decay: float = 1e-4
    """Paper: 1e-4 for Kinetics-400, 1e-3 for Something-Something. Script: the same, but 5e-4 for V2."""
    max_grad_norm: float | None = 20.0
    """Gradients are scaled down to this norm; None leaves them. Script."""
    groups: bool = True
    """The script's groups of parameters, after TSN: biases learn twice as fast and do not decay, BatchNorm does not
    decay, the last fc's weight learns five times as fast, its bias ten times and without decay. Without: one group."""
    fast_kernels: bool = False
    """Let the Linears of TAM's global branch learn five times as fast. The authors' code does, by a rule meant for fc;
    mmaction2's does not, and the paper says nothing of it, so neither does this."""

    def __post_init__(self) -> None:
        check_types(self)
        for field in ("batch_size", "lr_batch_size", "epochs"):
            require(self, field, getattr(self, field) >= 1, "at least 1")
        require(self, "lr", self.lr > 0, "a number above 0")
        require(self, "lr_divisor", self.lr_divisor >= 1, "at least 1")
        require(self, "warmup_epochs", 0 <= self.warmup_epochs <= self.epochs, f"from 0 to epochs ({self.epochs})")
        if self.schedule == "step":
            rising = self.milestones == tuple(sorted(set(self.milestones)))
            fit = rising and all(1 <= milestone < self.epochs for milestone in self.milestones)
            require(self, "milestones", fit, f"numbers that rise, from 1 to below epochs ({self.epochs})")
        require(self, "momentum", 0 <= self.momentum < 1, "at least 0 and below 1")
        require(self, "weight_decay", self.weight_decay >= 0, "at least 0")
        require(self, "max_grad_norm", self.max_grad_norm is None or self.max_grad_norm > 0, "a number above 0")

    @property
    def scaled_lr(self) -> float:
        """The learning rate that a run starts with."""
        return self.lr * self.batch_size / self.lr_batch_size if self.scale_lr else self.lr


@dataclass(frozen=True)
class Recipe:
    """One training run, and how what it gives is tested."""

    name: tyro.conf.Suppress[str]
    data: Data
    model: Model
    sampling: Sampling
    augmentation: Augmentation
    optimization: Optimization = dataclasses.field(metadata={"formerly": "optimisation"})
    validation: Views
    """How the network is scored while it is trained."""
    test: Views
    """The protocol that published figures are measured by."""
    seed: int = 0
    """Of the weights that are not loaded, of the order of the videos and of all augmentation."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self, "seed", self.seed >= 0, "at least 0")
        if self.model.system in CONFIGS:
            expected = CONFIGS[self.model.system].num_segments
            fits = self.sampling.num_segments == expected
            require(
                self.sampling, "num_segments", fits, f"{expected} for {self.model.system}, its fast pathway's frames"
            )

    def resolve(self) -> "Recipe":
        """The recipe as a run saves it, with nothing left to be worked out: learning rate scaled, paths absolute."""
        optimization = replace(self.optimization, lr=self.optimization.scaled_lr, scale_lr=False)
        train, val = (path and path.absolute() for path in (self.data.train, self.data.val))
        return replace(self, optimization=optimization, data=replace(self.data, train=train, val=val))

    def to_json(self) -> str:
        """The recipe as a JSON object; `from_json` gives an equal one back."""
        return json.dumps(to_plain(self), indent=1)

    @staticmethod
    def from_json(text: str) -> "Recipe":
        """The recipe that `to_json` wrote. InputError names a field that is missing, unknown or of a wrong value."""
        try:
            plain: Any = json.loads(text)
        except ValueError as error:
            raise InputError(f"recipe: is not JSON: {error}") from error
        return from_plain(Recipe, plain, "recipe")


CENTER = Views(placement="middle", clips=1, crops=1, short_side=256, crop_size=224)
# Paper, section 4.1, for all three; the script for Something-Something agrees.
CLIPS_10_CROPS_3 = Views(placement="spread", clips=10, crops=3, short_side=256, crop_size=256)
CLIPS_4_CROPS_3 = replace(CLIPS_10_CROPS_3, clips=4)
CLIPS_2_CROPS_3 = replace(CLIPS_10_CROPS_3, clips=2)

KINETICS = Recipe(
    name="k400-8f",
    data=Data(num_classes=400),
    model=Model(),
    sampling=Sampling("dense", num_segments=8),
    augmentation=Augmentation(flip=0.5),
    optimization=Optimization(),
    validation=CENTER,
    test=CLIPS_10_CROPS_3,
)

# The script does not flip V1 (labels that swap under a flip gain 1.5 % elsewhere): the published 46.5 and 47.6 % are
# without. `--augmentation.flip 0.5` flips, and swaps the labels.
SOMETHING_V1 = Recipe(
    name="ssv1-8f",
    data=Data(num_classes=174),
    model=Model(dropout=0.6),
    sampling=Sampling("segments", num_segments=8),
    augmentation=Augmentation(flip=0.0),
    optimization=Optimization(epochs=50, milestones=(30, 40, 45), weight_decay=1e-3),
    validation=CENTER,
    test=replace(CENTER, placement="spread"),
)

# Paper and script differ: 64 clips, lr 0.01 and weight decay 1e-3 against 128, 0.02 and 5e-4. The script's are
# taken, as they were used together and for V2 alone; the paper names one weight decay for V1 and V2 in one sentence.
SOMETHING_V2 = Recipe(
    name="ssv2-8f",
    data=Data(num_classes=174),
    model=Model(dropout=0.5),
    sampling=Sampling("segments", num_segments=8),
    augmentation=Augmentation(flip=0.5),
    optimization=Optimization(
        batch_size=128, lr=0.02, lr_batch_size=128, epochs=50, milestones=(30, 40, 45), weight_decay=5e-4
    ),
    validation=CENTER,
    test=CLIPS_2_CROPS_3,
)

# This project's own: small frames, a network that starts from random weights, minutes on two CPU cores.
DEMO = Recipe(
    name="demo",
    data=Data(),
    model=Model(backbone="small", weights=None, dropout=0.0),
    sampling=Sampling("segments", num_segments=8),
    augmentation=Augmentation(crop_size=64, scales=(1.0,), positions="any", flip=0.5),
    optimization=Optimization(
        batch_size=16, lr=0.1, lr_batch_size=16, epochs=8, schedule="cosine", milestones=(), groups=False
    ),
    validation=Views(placement="middle", short_side=64, crop_size=64),
    test=Views(placement="middle", short_side=64, crop_size=64),
)


def _with_16_frames(recipe: Recipe, test: Views) -> Recipe:
    name = recipe.name.replace("8f", "16f")
    return replace(recipe, name=name, sampling=replace(recipe.sampling, num_segments=16), test=test)


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        KINETICS,
        _with_16_frames(KINETICS, CLIPS_4_CROPS_3),
        SOMETHING_V1,
        _with_16_frames(SOMETHING_V1, SOMETHING_V1.test),
        SOMETHING_V2,
        _with_16_frames(SOMETHING_V2, SOMETHING_V2.test),
        DEMO,
    )
}

# Top-1 and top-5 that the authors report for the recipe's own test protocol.
SUMMARIES: dict[str, str] = {
    "k400-8f": "Kinetics-400, ResNet-50, 8 frames. Published: 76.1 / 92.3 % with 10 clips × 3 crops.",
    "k400-16f": "Kinetics-400, ResNet-50, 16 frames. Published: 76.9 / 92.9 % with 4 clips × 3 crops.",
    "ssv1-8f": "Something-Something V1, ResNet-50, 8 frames. Published: 46.5 / 75.8 % with 1 clip, center crop.",
    "ssv1-16f": "Something-Something V1, ResNet-50, 16 frames. Published: 47.6 / 77.7 % with 1 clip, center crop.",
    "ssv2-8f": "Something-Something V2, ResNet-50, 8 frames. Published: 62.7 / 88.0 % with 2 clips × 3 crops.",
    "ssv2-16f": "Something-Something V2, ResNet-50, 16 frames. Published: 64.6 / 89.5 % with 2 clips × 3 crops.",
    "demo": "A network of 0.3 M parameters on frames of 64 pixels, for the demo's synthetic videos.",
}


def recipe_subcommands(make: Callable[[Recipe], T]) -> Any:
    """A type for tyro with a subcommand for each recipe: `make` gives the configuration that the recipe begins with.

    A field of type Recipe in that configuration, marked `tyro.conf.arg(name="")`, has its options without a prefix, as
    in `fit k400-8f --optimization.lr 0.02 --model.backbone resnet101`.
    """
    configurations = {name: make(recipe) for name, recipe in RECIPES.items()}
    return tyro.extras.subcommand_type_from_defaults(configurations, SUMMARIES, prefix_names=False)
