"""Launch configurations tried one after another for the shapes of a network, and a file of those that are faster.

With a GPU each is checked against the usual one's results and timed, without one predicted as `bench predict` does. The
search goes from what the launch rule says to the best of its neighbors, whose blocks, warps, parts or loads ahead are
twice or half as many, and on from there. What one rule says of a shape holds for several kernels, whose times count
together. The library reads the file where it is told to, by `tam_triton.kernels.tuned.use(FILE)` or `--tuned FILE` of
`bench ops`, `model`, `train` and `profile`, and never else.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch.utils._pytree import tree_leaves

from bench import offline, predict
from bench.options import DType, Layout, check_least
from bench.predict import HERE, Predict, Target
from bench.shapes import Shape
from bench.sm import devices
from bench.static import CALLS
from tam_triton.kernels import launch, tuned
from tam_triton.kernels.launch import Block, Tile, ceil_div
from tam_triton.kernels.tuned import Choice, Key, Where

OPERATORS = (
    "squeeze", "activated_squeeze", "normalized_squeeze", "aggregate", "activated_aggregate", "normalized_aggregate",
    "weight_gradients", "normalized_gradients", "input_gradient", "normalized_input_gradient", "batch_statistics",
)  # fmt: skip
AGAIN = 3  # times that the best and the usual configuration are measured in turn, at the end


@dataclass(frozen=True)
class Tune:
    """TANet-50's TAMs by default, in bfloat16, on the GPU that is there, or else as predicted for an H100."""

    out: Path
    """The JSON file to write."""
    target: Target = HERE or "sm_90"
    """Compiled for an A100, H100 or B200."""
    dtypes: tuple[DType, ...] = ("bfloat16",)
    """Of X, V and Θ."""
    layouts: tuple[Layout, ...] = ("nchw", "channels_last")
    """Of X."""
    operators: tuple[str, ...] = OPERATORS
    """Whose times count, of those of `bench static`: name those that you run."""
    rules: tuple[str, ...] = tuple(tuned.RULES)
    """Whose answers are tried."""
    shapes: tuple[tuple[int, int], ...] = ()
    """Pairs of channels and height (= width); none: those of TANet-50 at 224 pixels."""
    clips: int = 8
    """Clips in X (N)."""
    segments: int = 8
    """Frames of a clip (T)."""
    kernel_size: int = 3
    """Taps of Θ (K)."""
    tries: int = 24
    """Configurations of each rule and shape, at most."""
    least: float = 0.02
    """A configuration is written if it is faster by this share at least."""
    measure: bool = HERE is not None
    """Time on this machine's GPU."""
    jobs: int = 2
    """Processes that compile at the same time; 1, as where a GPU is measured, compiles in this one."""

    def __post_init__(self) -> None:
        if self.target not in predict.sass_targets():
            raise ValueError(f"target: got {self.target}, of which no times are predicted, expected an NVIDIA GPU")
        if unknown := [rule for rule in self.rules if rule not in tuned.RULES]:
            raise ValueError(f"rules: got {', '.join(unknown)}, expected some of {', '.join(tuned.RULES)}")
        for name in ("dtypes", "layouts", "operators", "rules"):
            if not getattr(self, name):
                raise ValueError(f"{name}: got none, expected at least one")
        check_least(self, tries=1)
        if not 0 <= self.least < 1:
            raise ValueError(f"least: got {self.least}, expected a share from 0 to below 1")
        self.predicting()

    def predicting(self) -> Predict:
        """The same for `bench predict`, which refuses what cannot be predicted or measured."""
        return Predict(
            target=self.target, dtypes=self.dtypes, layouts=self.layouts, operators=self.operators, shapes=self.shapes,
            clips=self.clips, segments=self.segments, kernel_size=self.kernel_size, measure=self.measure,
            jobs=self.jobs,
        )  # fmt: skip

    @property
    def where(self) -> Where:
        """What the file will hold for."""
        target, device = offline.TARGETS[self.target], devices.DEVICES[self.target]
        return tuned.here() if self.measure else Where(
            f"{target.backend}:{target.arch}", device.multiprocessors, target.warp_size
        )  # fmt: skip


@dataclass(frozen=True)
class Found:
    """The best configuration for one rule and shape.

    Attributes:
        key: the rule's name and arguments.
        operators: whose times are summed.
        usual, best: configurations.
        usual_time, best_time: µs, with what a launch takes beside.
        tried: configurations.
        refused: of these, such as gave other results, did not compile or could not be predicted, and why.
    """

    key: Key
    operators: tuple[str, ...]
    usual: Choice
    best: Choice
    usual_time: float
    best_time: float
    tried: int
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def gain(self) -> float:
        """Share of the usual time."""
        return 1 - self.best_time / self.usual_time

    def __str__(self) -> str:
        text = (
            f"{self.key[0]:>15} {'×'.join(map(str, self.key[1:])):<28} {self.usual_time:8.2f} → {self.best_time:8.2f} "
            f"µs {-self.gain:+7.1%} of {self.tried} {changes(self.usual, self.best)}"
        )
        return text + "".join(f"\n    refused {name}: {why}" for name, why in self.refused.items())


Call = Callable[[], object]


def run(options: Tune) -> list[Found]:
    """Prints each rule and shape while it is tuned, and writes what is faster of those that were.

    Raises:
        RuntimeError: TRITON_INTERPRET is set, or there is no C compiler.
    """
    options.out.parent.mkdir(parents=True, exist_ok=True)
    how = "MEASURED" if options.measure else "PREDICTED"
    print(f"{how} for {options.where}, compiled by triton {triton.__version__}; µs of all operators of a rule together")
    parts = [(options, *site) for site in options.predicting().sites()]
    found: list[Found] = []
    faster = 0
    for some in predict.in_parallel(of_part, parts, 1 if options.measure else options.jobs):
        found += some
        print(*some, sep="\n", flush=True)
        faster = written(options, found)  # after each shape, as all of them may take an hour
    print(f"wrote {options.out}: {faster} of {len(found)} launches, faster by more than {options.least:.0%}")
    return found


def written(options: Tune, found: list[Found]) -> int:
    """How many launches are faster, and in the file now."""
    faster = [one for one in found if one.gain > options.least]
    notes = {one.key: note(one, "measured" if options.measure else "predicted") for one in faster}
    tuned.write(options.out, options.where, {one.key: one.best for one in faster}, notes)
    return len(faster)


def note(found: Found, how: str) -> dict[str, Any]:
    """What the file says of a launch beside itself."""
    return {
        "operators": found.operators, "times": how, "triton": triton.__version__,
        "microseconds": round(found.best_time, 3), "usual_microseconds": round(found.usual_time, 3),
    }  # fmt: skip


def changes(usual: Choice, best: Choice) -> str:
    """What differs between the two."""
    names = [name for name, value in vars(usual).items() if getattr(best, name) != value]
    return ", ".join(f"{name} {getattr(usual, name)} → {getattr(best, name)}" for name in names) or "as it is"


def of_part(options: Tune, dtype: DType, layout: Layout, shape: Shape) -> list[Found]:
    """All rules at one shape."""
    site = Site.of(options, dtype, layout, shape)
    calls: dict[Key, list[str]] = {}
    for operator in options.operators:
        for key in site.asked(operator):
            calls.setdefault(key, []).append(operator)
    with nullcontext() if options.measure else offline.absent(options.target):
        return [best(site, key, operators) for key, operators in calls.items() if key[0] in options.rules]


@dataclass(frozen=True)
class Site:
    """One shape, dtype and layout: tensors and what is done with them."""

    options: Predict
    tries: int
    x: torch.Tensor
    v: torch.Tensor
    theta: torch.Tensor

    @classmethod
    def of(cls, options: Tune, dtype: DType, layout: Layout, shape: Shape) -> "Site":
        """Without a GPU the tensors' memory is never touched; with one X is random and channels differ in V and Θ."""
        predicting = options.predicting()
        operands = predicting.operands(dtype, layout, shape)
        for tensor in operands if options.measure else ():
            tensor.uniform_()
        return cls(predicting, options.tries, *operands)

    def call(self, operator: str) -> Call:
        """The operator's launcher."""
        return partial(CALLS[operator], self.x, self.v, self.theta)

    def asked(self, operator: str) -> list[Key]:
        """Which rules it asks, of what."""
        asked = Asked()
        with mock.patch.object(launch, "CHOSEN", asked):
            list(predict.launches(self.options, self.call(operator)))
        return asked.keys_asked

    def time(self, operator: str) -> float:
        """µs of all that it launches, as configured now."""
        total = 0.0
        for launched, again in predict.launches(self.options, self.call(operator)):
            if again is not None:
                total += predict.microseconds(launched.kernel, again)
                continue
            predicted = predict.described(launched, self.options.device, self.x.nbytes).launched
            assert predicted is not None
            total += predicted
        return total

    def require_agreement(self, operator: str, usual: object) -> None:
        """Raises AssertionError if the operator's results, configured as now, are others than the usual."""
        if not self.options.measure:
            return
        tolerance = max(4 * torch.finfo(self.x.dtype).eps, 1e-5)  # sums are in float32, results in X's dtype
        for one, other in zip(tree_leaves(self.call(operator)()), tree_leaves(usual), strict=True):
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * float(other.abs().max()))


class Asked(dict[Key, Choice]):
    """Stands in for `launch.CHOSEN` and keeps what is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.keys_asked: list[Key] = []

    def __bool__(self) -> bool:
        return True

    def get(self, key: Key, default: Any = None) -> Any:
        """Nothing is chosen."""
        if key not in self.keys_asked:
            self.keys_asked.append(key)
        return default


def best(site: Site, key: Key, operators: list[str]) -> Found:
    """The best of one rule's configurations at one shape."""
    usual: Choice = getattr(launch, key[0])(*key[1:])
    results = {name: site.call(name)() for name in operators} if site.options.measure else {}
    refused: dict[str, str] = {}

    def cost(choice: Choice) -> float:
        with tuned.chosen({key: choice}):
            for name, result in results.items():
                site.require_agreement(name, result)
            return sum(map(site.time, operators))

    def tried(choice: Choice) -> float:
        try:
            return cost(choice)
        except (AssertionError, RuntimeError, ValueError, triton.TritonError) as error:  # ValueError: not predictable
            refused[str(choice)] = str(error).strip().splitlines()[0]
            return float("inf")

    costs = climb(key, usual, {usual: cost(usual)}, tried, site.tries)
    fastest = min(costs, key=costs.__getitem__)
    usual_time, fastest_time = costs[usual], costs[fastest]
    if results and fastest != usual:
        pairs = [(cost(usual), cost(fastest)) for _ in range(AGAIN)]
        usual_time, fastest_time = (statistics.median(times) for times in zip(*pairs, strict=True))
    return Found(key, tuple(operators), usual, fastest, usual_time, fastest_time, len(costs), refused)


def climb(
    key: Key, start: Choice, costs: Mapping[Choice, float], cost: Callable[[Choice], float], tries: int
) -> dict[Choice, float]:
    """The costs of all that were tried: from `start` to the best neighbour, until none is better."""
    costs, at = dict(costs), start
    while True:
        for choice in neighbors(key, at):
            if choice not in costs and len(costs) < tries:
                costs[choice] = cost(choice)
        fastest = min(costs, key=costs.__getitem__)
        if fastest == at or len(costs) >= tries:
            return costs
        at = fastest


def neighbors(key: Key, choice: Choice) -> Iterator[Choice]:
    """Twice or half of one number, or of two against one another; such as compute what they should."""
    if isinstance(choice, Block):
        single, against = ("ahead", "vectors", "vector"), (("vectors", "vector"),)
    else:
        names = ("warps", "parts", "channels", "pixels", "vector", *(() if key[0] == "band_tile" else ("unroll",)))
        single, against = names, (("channels", "pixels"),)
    numbers = vars(choice)
    steps = [{name: doubled} for name in single for doubled in (2 * numbers[name], numbers[name] // 2)]
    for one, other in against:
        steps += [
            {one: 2 * numbers[one], other: numbers[other] // 2},
            {one: numbers[one] // 2, other: 2 * numbers[other]},
        ]
    for step in steps:
        if min(step.values()) > 0:
            changed = replace(choice, **step)
            if isinstance(changed, Tile):
                changed = whole(key, changed)
            if changed != choice and tuned.fault(key, changed) is None:
                yield changed


def whole(key: Key, tile: Tile) -> Tile:
    """The tile with as many steps as its parts need to hold all pixels, and no idle part."""
    total = tuned.tiles(key, tile)
    steps = ceil_div(total, tile.parts * tile.unroll)
    return replace(tile, steps=steps, parts=ceil_div(total, steps * tile.unroll))
