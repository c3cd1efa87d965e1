"""Wrong kernels, each by one replacement in a copy of the source, and the property of the suite that must see it.

`python -m tests.properties.mutants` runs them all and prints which property killed which mutant. The properties draw
the same examples as in CI, but do not shrink what they find.
"""

import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack

from tests.properties.injection import Mutant, kill

JOBS = 2
NET = ExitStack()  # of a process that runs mutants; closed with it


REFERENCE = "test_values.test_equals_the_reference"
EDGES = "test_values.test_edges_of_blocks"
TRANSPOSE = "test_algebra.test_gradient_is_the_transpose"
SHIFT = "test_algebra.test_one_tap_is_a_shift"
MEMORY = "test_memory.test_writes_all_of_the_result_and_nothing_else"
BANDED, WEIGHTS, SQUEEZE = "kernels/banded.py", "kernels/weight_gradients.py", "kernels/squeeze.py"
NORM = "kernels/batch_norm.py"

MUTANTS = (
    Mutant(
        "halo mask dropped: frames before the clip are read", BANDED,
        "mask=inside & (WHOLE | ((t >= 0) & (t < T)))", "mask=inside & (WHOLE | (t < T))",
        REFERENCE, "aggregate", escapes=True,
    ),
    Mutant(
        "<= for <: the frame after the last is read", BANDED,
        "((t >= 0) & (t < T)))", "((t >= 0) & (t <= T)))",
        REFERENCE, "aggregate", escapes=True,
    ),
    Mutant(
        "taps in reverse order", BANDED,
        "(k if REVERSED else K - 1 - k) * step", "(K - 1 - k if REVERSED else k) * step",
        SHIFT,
    ),
    Mutant(
        "V of a frame K // 2 later than the frame read", BANDED,
        "t = first + i - (0 if V_OF_RESULT else BEFORE)", "t = first + i",
        REFERENCE, "aggregate",
    ),
    Mutant(
        "V left out of dX", BANDED,
        "y *= importances[0].to(ACC)", "y *= 1.0",
        TRANSPOSE, "input_gradient", ("dy",),
    ),
    Mutant(
        "the squeeze's gradient left out of dX", BANDED,
        "y += offsets[0].to(ACC)", "y += 0.0 * offsets[0].to(ACC)",
        REFERENCE, "input_gradient+d_squeezed",
    ),
    Mutant(
        "weights of channels past the last one", BANDED,
        "tl.minimum(start // P, C - 1)", "start // P",
        REFERENCE, "aggregate", escapes=True,
    ),
    Mutant(
        "mask of the ragged end dropped from the store", BANDED,
        "mask=inside & (WHOLE | (t < T)))", "mask=(inside | True) & (WHOLE | (t < T)))",
        MEMORY, "aggregate", escapes=True,
    ),
    Mutant(
        "float64 is summed in float32", BANDED,
        "ACC=launch.accumulator(x.dtype)", "ACC=tl.float32",
        REFERENCE, "aggregate",
    ),
    Mutant(
        "dY of the wrong neighbour in dV and dΘ", WEIGHTS,
        "dy[i + HALF + BEFORE - k].to(ACC)", "dy[i].to(ACC)",
        REFERENCE, "weight_gradients",
    ),
    Mutant(
        "dΘ without V", WEIGHTS,
        "term *= tl.load(", "term *= 1.0 + 0.0 * tl.load(",
        TRANSPOSE, "aggregate", ("kernel",),
    ),
    Mutant(
        "V of the frame read, though it comes after", BANDED,
        "importance is not None and transposed != after", "importance is not None and transposed",
        REFERENCE, "aggregate+after",
    ),
    Mutant(
        "every clip has a kernel of its own", BANDED,
        "(0 if SHARED else n * C * K)", "n * C * K",
        REFERENCE, "aggregate+shared", escapes=True,
    ),
    Mutant(
        "the gradient of a shared kernel lacks a clip", WEIGHTS,
        "(clips if shared else 1))", "(clips if shared else 1))[-clips:]",
        REFERENCE, "weight_gradients+shared", escapes=True,
    ),
    Mutant(
        "taps in order, though V comes after", WEIGHTS,
        "(K - 1 - k if REVERSED else k) * stride", "k * stride",
        REFERENCE, "weight_gradients+after",
    ),
    Mutant(
        "the gradient of a shared kernel is that of each clip", "plain/operators.py",
        "sum(2 if kernel.dim() == 3 else (0, 2))", "sum(2).mean(0)",
        REFERENCE, "weight_gradients+shared",
    ),
    Mutant(
        "every part is the first pixels", WEIGHTS,
        "part // time_parts * steps", "part // time_parts * 0",
        EDGES, "weight_gradients",
    ),
    Mutant(
        "one partial sum skipped", "kernels/parts.py",
        "for first in range(0, parts, PARTS):", "for first in range(1, parts, PARTS):",
        REFERENCE, "weight_gradients+shared",
    ),
    Mutant(
        "sums in half precision", SQUEEZE,
        "tl.sum(total, axis=1)", "tl.sum(total.to(tl.float16), axis=1)",
        REFERENCE, "squeeze",
    ),
    Mutant(
        "the last channel is never written", SQUEEZE,
        "mask=c < C)", "mask=c < C - 1)",
        MEMORY, "squeeze",
    ),
    Mutant(
        "pixels past the end count as ReLU(BN(0))", SQUEEZE,
        "x = tl.where(p + (step * UNROLL + i) * BLOCK_P < P, relu(x * scale + shift), 0.0)",
        "x = relu(x * scale + shift)",
        REFERENCE, "activated_squeeze",
    ),
    Mutant(
        "<= for <: a row takes the first pixel of the next", SQUEEZE,
        "(q < P)", "(q <= P)",
        EDGES, "squeeze", escapes=True,
    ),
    Mutant(
        "the convolution's padding is not zero", "kernels/branches.py",
        "& (s >= 0) & (s < T)", "& (s < T)",
        REFERENCE, "branches", escapes=True,
    ),
    Mutant(
        "nor are the windows'", "kernels/projections.py",
        "& (s >= 0) & (s < T)", "& (s < T)",
        REFERENCE, "branch_gradients", escapes=True,
    ),
    Mutant(
        "the statistics are those of one part", "kernels/projections.py",
        "tl.sum(means * share + 0.0, axis=1)", "tl.max(tl.where(part == 0, means, float('-inf')), axis=1)",
        REFERENCE, "training_branches",
    ),
    Mutant(
        "the spread of the parts' means left out of the variance", "kernels/projections.py",
        "(variances + off * off) * share", "variances * share",
        REFERENCE, "training_branches",
    ),
    Mutant(
        "variance by the number of values where one less divides", "kernels/branches.py",
        "variance * (total / (total - 1))", "variance",
        REFERENCE, "training_branches",
    ),
    Mutant(
        "BatchNorm's mean gradient left out", "kernels/branch_gradients.py",
        "(sum_d[:, None] + normalized", "(0.0 * sum_d[:, None] + normalized",
        REFERENCE, "branch_gradients",
    ),
    Mutant(
        "BatchNorm's projection left out", "kernels/branch_gradients.py",
        "normalized * sum_dn[:, None]", "0.0 * normalized * sum_dn[:, None]",
        REFERENCE, "branch_gradients",
    ),
    Mutant(
        "BatchNorm's projection left out of dW₁", "kernels/branch_gradients.py",
        "sum_d * sum_x + sum_dn * sum_nx", "sum_d * sum_x",
        REFERENCE, "branch_gradients",
    ),
    Mutant(
        "dX̂ by way of Θ left out", "kernels/branch_gradients.py",
        "product(tl.trans(d_wide), first, total)", "product(0.0 * tl.trans(d_wide), first, total)",
        REFERENCE, "branch_gradients",
    ),
    Mutant(
        "the mean of a part is the value near it", NORM,
        "means += tl.load(", "means += 0.0 * tl.load(",
        REFERENCE, "batch_statistics",
    ),
    Mutant(
        "the spread of a part's places left out of the variance", NORM,
        "+ tl.sum(count * off * off + 0.0, axis=1)", "",
        REFERENCE, "batch_statistics",
    ),
    Mutant(
        "places past the last pixel count", NORM,
        "tl.where(last, ends.to(ACC), 0.0)", "ends.to(ACC)",
        REFERENCE, "batch_statistics",
    ),
    Mutant(
        "Σ m counts what the ReLU holds back", SQUEEZE,
        "tl.where(mask, 1.0, tl.zeros_like(x))", "tl.where(mask | True, 1.0, tl.zeros_like(x))",
        REFERENCE, "normalized_squeeze",
    ),
    Mutant(
        "B′ left out of the band", WEIGHTS,
        "(sums * scale + passed * shift)", "(sums * scale)",
        REFERENCE, "normalized_gradients",
    ),
    Mutant(
        "B′ left out of dΘ", WEIGHTS,
        "(band[i * K + k] * scale + of_mask[i * K + k] * shift)", "(band[i * K + k] * scale)",
        REFERENCE, "normalized_gradients",
    ),
    Mutant(
        "B′ where the ReLU holds back", WEIGHTS,
        "within_vectors(tl.where(blocked, 0.0, d)", "within_vectors(d",
        REFERENCE, "normalized_gradients",
    ),
    Mutant(
        "dX̂ left out of β's gradient", NORM,
        "+ spread * passed", "+ 0.0 * passed",
        REFERENCE, "batch_norm_gradients",
    ),
    Mutant(
        "dX̂ left out of γ's gradient", NORM,
        "+ spread * projected", "+ 0.0 * projected",
        REFERENCE, "batch_norm_gradients",
    ),
    Mutant(
        "β's gradient left out of dx", BANDED,
        "less * slope + level", "less * slope",
        REFERENCE, "normalized_input_gradient",
    ),
    Mutant(
        "γ's gradient left out of dx", BANDED,
        "less * slope + level", "level",
        REFERENCE, "normalized_input_gradient",
    ),
    Mutant(
        "dx passes where the ReLU holds back", BANDED,
        "y = tl.where(less * scale + shift <= 0, 0.0, y * scale)", "y *= scale",
        REFERENCE, "normalized_input_gradient+frozen",
    ),
    Mutant(
        "dX̂ left out of both sums", "plain/normalized.py",
        "d_sums + widened(d_squeezed) / pixels * sums", "d_sums",
        REFERENCE, "batch_norm_gradients",
    ),
    Mutant(
        "taps in reverse order", "plain/views.py",
        "(k, k - kernel_size // 2)", "(k, kernel_size // 2 - k)",
        SHIFT,
    ),
    Mutant(
        "dX̂ not divided by P", "plain/operators.py",
        "d_squeezed.to(accumulator(dy)) / (dy.shape[2] * dy.shape[3])", "d_squeezed.to(accumulator(dy))",
        REFERENCE, "input_gradient+d_squeezed",
    ),
    Mutant(
        "<= for <: a tap past the clip's end", "plain/views.py",
        "(frame >= 0) & (frame < length)", "(frame >= 0) & (frame <= length)",
        REFERENCE, "weight_gradients",
    ),
    Mutant(
        "one piece of the pixels skipped", "plain/in_cache.py",
        "zip(map(widened, dclips), map(widened, clips), strict=True)",
        "zip(map(widened, dclips[1:]), map(widened, clips[1:]), strict=True)",
        "test_mutants.test_pieces_of_pixels_add_up",
    ),
)  # fmt: skip


def prepare() -> None:
    """What the suite's conftest does, in a process that runs mutants."""
    os.environ["TRITON_INTERPRET"] = "1"
    import torch
    from hypothesis import HealthCheck, Phase, settings

    from bench.interpreted import checking

    settings.register_profile(
        "mutants",
        derandomize=True, deadline=None, max_examples=25, database=None, report_multiple_bugs=False,
        phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    settings.load_profile("mutants")
    torch.set_num_threads(1)
    NET.enter_context(checking())


def timed(mutant: Mutant) -> tuple[str, float]:
    start = time.perf_counter()
    return kill(mutant), time.perf_counter() - start


def main() -> int:
    """Prints the table; returns how many mutants survive."""
    survivors = 0
    print(f"{'file':<28} {'fault':<52} {'seconds':>7} {'error':<15} property")
    with ProcessPoolExecutor(JOBS, multiprocessing.get_context("spawn"), initializer=prepare) as pool:
        for mutant, (error, seconds) in zip(MUTANTS, pool.map(timed, MUTANTS), strict=True):
            survivors += not error
            print(
                f"{mutant.file:<28} {mutant.fault:<52} {seconds:>7.1f} {error or 'SURVIVES':<15} {mutant.killer}",
                flush=True,
            )
    print(f"{len(MUTANTS)} mutants, {survivors} survive")
    return survivors


if __name__ == "__main__":
    sys.exit(main())
