"""The whole module: squeeze, the two branches (equations 2 and 3), excitation and aggregation; forward and backward.

Parameters come as a mapping from the names of the published checkpoints to arrays of torch's shapes, so the state_dict
of a module serves after `.numpy()` on each tensor. G is the global branch, L the local one. The two
`num_batches_tracked` are allowed and ignored: at a fixed momentum nothing depends on them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy.typing as npt

from reference.arrays import Array, check_odd, shaped
from reference.layers import (
    batch_norm,
    batch_norm_backward,
    conv1d,
    conv1d_backward,
    linear,
    linear_backward,
    relu,
    relu_backward,
    sigmoid,
    sigmoid_backward,
    softmax,
    softmax_backward,
)
from reference.operators import excite_and_aggregate, excite_and_aggregate_backward, squeeze, squeeze_backward

Parameters = dict[str, Array]

BATCH_NORM = ("weight", "bias", "running_mean", "running_var")
AXES = {
    "G.0.weight": ("αT", "T"),
    **{f"G.1.{name}": ("αT",) for name in BATCH_NORM},
    "G.3.weight": ("K", "αT"),
    "L.0.weight": ("C//β", "C", "taps"),
    **{f"L.1.{name}": ("C//β",) for name in BATCH_NORM},
    "L.3.weight": ("C", "C//β", "tap"),
}
IGNORED = {"G.1.num_batches_tracked", "L.1.num_batches_tracked"}


@dataclass(frozen=True)
class Branch:
    """What a branch computed: its output, its running statistics after the call, and what its backward needs."""

    output: Array
    running_mean: Array
    running_var: Array
    entered: Array  # into the first projection
    projected: Array  # by it, and into the batch normalisation
    activated: Array  # by the ReLU, and into the second projection
    training: bool


@dataclass(frozen=True)
class TAMForward:
    """The module's output `y`, (N, T, C, H, W), what it passed through, and what `tam_backward` needs."""

    y: Array
    x: Array
    local_branch: Branch
    global_branch: Branch
    parameters: Parameters

    @property
    def importance(self) -> Array:
        """V, (N, C, T)."""
        return self.local_branch.output

    @property
    def kernel(self) -> Array:
        """Θ, (N, C, K)."""
        return self.global_branch.output

    @property
    def running_statistics(self) -> Parameters:
        """Both branches' `running_mean` and `running_var` after the call, by name; evaluation leaves them as given."""
        return {
            "G.1.running_mean": self.global_branch.running_mean,
            "G.1.running_var": self.global_branch.running_var,
            "L.1.running_mean": self.local_branch.running_mean,
            "L.1.running_var": self.local_branch.running_var,
        }


def tam_forward(x: npt.ArrayLike, parameters: Mapping[str, npt.ArrayLike], *, training: bool) -> TAMForward:
    """Apply the module to clips x, (N, T, C, H, W).

    Args:
        x: the clips, of any real dtype. Those in float64 are kept for the backward as they are, not copied.
        parameters: by name `G.0.weight` (αT, T), `G.3.weight` (K, αT), `L.0.weight` (C//β, C, taps), `L.3.weight`
            (C, C//β, 1), and `weight`, `bias`, `running_mean`, `running_var` of `G.1` (αT,) and of `L.1` (C//β,). α, β,
            and the odd K and taps are whatever the shapes say.
        training: whether batch normalisation uses the batch's statistics.

    Raises:
        TypeError: an argument does not hold real numbers.
        ValueError: a parameter is missing or unknown, shapes disagree, K or taps is even, or training leaves a batch
            normalisation a single value per channel (N·C = 1 for the global branch, N·T = 1 for the local one).
    """
    x = shaped("x", x, N=None, T=None, C=None, H=None, W=None)
    checked = _check_parameters(parameters, T=x.shape[1], C=x.shape[2])
    squeezed = squeeze(x)
    local_branch = importance_map(squeezed, checked, training=training)
    global_branch = adaptive_kernel(squeezed, checked, training=training)
    y = excite_and_aggregate(x, local_branch.output, global_branch.output)
    return TAMForward(y, x, local_branch, global_branch, checked)


def tam_backward(dy: npt.ArrayLike, forward: TAMForward) -> tuple[Array, Parameters]:
    """Return `dX`, (N, T, C, H, W), and the gradient of every learned parameter by its name.

    x acts both as what is aggregated and through the squeeze: `dX[t] = V[t] · dZ[t] + dX̂[t] / P`.
    """
    x, parameters = forward.x, forward.parameters
    dx, d_importance, d_kernel = excite_and_aggregate_backward(dy, x, forward.importance, forward.kernel)
    d_squeezed_local, local_gradients = importance_map_backward(d_importance, forward.local_branch, parameters)
    d_squeezed_global, global_gradients = adaptive_kernel_backward(d_kernel, forward.global_branch, parameters)
    dx = dx + squeeze_backward(d_squeezed_local + d_squeezed_global, x.shape)
    return dx, global_gradients | local_gradients


def importance_map(squeezed: npt.ArrayLike, parameters: Mapping[str, npt.ArrayLike], *, training: bool) -> Branch:
    """Compute V, (N, C, T), in the local branch (equation 2): `V = σ(W₄ * δ(BN(W₃ * X̂)))`."""
    squeezed = shaped("squeezed", squeezed, N=None, C=None, T=None)
    projected = conv1d(squeezed, parameters["L.0.weight"])
    normalised, mean, var = batch_norm(projected, *_batch_norm_arguments(parameters, "L.1"), training=training)
    activated = relu(normalised)
    output = sigmoid(conv1d(activated, parameters["L.3.weight"]))
    return Branch(output, mean, var, squeezed, projected, activated, training)


def importance_map_backward(
    d_importance: npt.ArrayLike, branch: Branch, parameters: Mapping[str, npt.ArrayLike]
) -> tuple[Array, Parameters]:
    """Return dX̂, (N, C, T), and the gradients of the local branch's parameters (equation 2)."""
    d_logits = sigmoid_backward(d_importance, branch.output)
    d_activated, d_last = conv1d_backward(d_logits, branch.activated, parameters["L.3.weight"])
    d_projected, d_weight, d_bias = _normalise_and_activate_backward(d_activated, branch, parameters, "L.1")
    d_squeezed, d_first = conv1d_backward(d_projected, branch.entered, parameters["L.0.weight"])
    return d_squeezed, {"L.0.weight": d_first, "L.1.weight": d_weight, "L.1.bias": d_bias, "L.3.weight": d_last}


def adaptive_kernel(squeezed: npt.ArrayLike, parameters: Mapping[str, npt.ArrayLike], *, training: bool) -> Branch:
    """Compute Θ, (N, C, K), in the global branch (equation 3): `Θ[n,c,:] = softmax(F(W₂, δ(BN(F(W₁, X̂[n,c,:])))))`.

    Every channel of every clip is a row of its own, so the batch normalisation sees N·C of them.
    """
    squeezed = shaped("squeezed", squeezed, N=None, C=None, T=None)
    N, C, T = squeezed.shape
    rows = squeezed.reshape(N * C, T)
    projected = linear(rows, parameters["G.0.weight"])
    normalised, mean, var = batch_norm(projected, *_batch_norm_arguments(parameters, "G.1"), training=training)
    activated = relu(normalised)
    output = softmax(linear(activated, parameters["G.3.weight"])).reshape(N, C, -1)
    return Branch(output, mean, var, rows, projected, activated, training)


def adaptive_kernel_backward(
    d_kernel: npt.ArrayLike, branch: Branch, parameters: Mapping[str, npt.ArrayLike]
) -> tuple[Array, Parameters]:
    """Return dX̂, (N, C, T), and the gradients of the global branch's parameters (equation 3)."""
    N, C, K = branch.output.shape
    d_logits = softmax_backward(d_kernel, branch.output).reshape(N * C, K)
    d_activated, d_last = linear_backward(d_logits, branch.activated, parameters["G.3.weight"])
    d_projected, d_weight, d_bias = _normalise_and_activate_backward(d_activated, branch, parameters, "G.1")
    d_rows, d_first = linear_backward(d_projected, branch.entered, parameters["G.0.weight"])
    gradients = {"G.0.weight": d_first, "G.1.weight": d_weight, "G.1.bias": d_bias, "G.3.weight": d_last}
    return d_rows.reshape(N, C, -1), gradients


def _batch_norm_arguments(parameters: Mapping[str, npt.ArrayLike], layer: str) -> list[npt.ArrayLike]:
    return [parameters[f"{layer}.{name}"] for name in BATCH_NORM]


def _normalise_and_activate_backward(
    d_activated: Array, branch: Branch, parameters: Mapping[str, npt.ArrayLike], layer: str
) -> tuple[Array, Array, Array]:
    weight, _, running_mean, running_var = _batch_norm_arguments(parameters, layer)
    d_normalised = relu_backward(d_activated, branch.activated)
    return batch_norm_backward(
        d_normalised, branch.projected, weight, running_mean, running_var, training=branch.training
    )


def _check_parameters(parameters: Mapping[str, npt.ArrayLike], *, T: int, C: int) -> Parameters:
    given = parameters.keys() - IGNORED
    missing, unknown = sorted(AXES.keys() - given), sorted(given - AXES.keys())
    if missing or unknown:
        raise ValueError(f"parameters must be those of TAM: missing {missing}, unknown {unknown}")
    checked: Parameters = {}
    extents = {"T": T, "C": C, "tap": 1}
    for name, axes in AXES.items():
        # Whichever parameter first has an axis, such as a branch's width, settles its extent for the others.
        values = shaped(name, parameters[name], **{axis: extents.get(axis) for axis in axes})
        extents |= zip(axes, values.shape, strict=True)
        # A tensor's `.numpy()` shares the memory that an optimiser writes to before the backward is asked for.
        checked[name] = values.copy()
    check_odd("G.3.weight", extents["K"])
    check_odd("L.0.weight", extents["taps"])
    return checked
