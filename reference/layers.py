"""The layers of the two branches and their gradients, each as torch.nn.functional defines it.

Arguments may be of any real dtype and are promoted to float64. A gradient `dy` has the shape of the layer's output;
backward functions return the gradient of the input first, then those of the parameters in the order of the forward's
arguments. ValueError and TypeError name the argument that does not fit.
"""

import numpy as np
import numpy.typing as npt

from reference.arrays import Array, check_odd, promote, shaped, windows

# torch's defaults, which the published networks keep.
MOMENTUM = 0.1
EPSILON = 1e-5


def linear(x: npt.ArrayLike, weight: npt.ArrayLike) -> Array:
    """Return `x · weightᵀ`, (rows, outputs), for x (rows, inputs) and weight (outputs, inputs). There is no bias."""
    x = shaped("x", x, rows=None, inputs=None)
    return x @ shaped("weight", weight, outputs=None, inputs=x.shape[1]).T


def linear_backward(dy: npt.ArrayLike, x: npt.ArrayLike, weight: npt.ArrayLike) -> tuple[Array, Array]:
    """Return `(dx, dweight)` of `linear`."""
    x = shaped("x", x, rows=None, inputs=None)
    weight = shaped("weight", weight, outputs=None, inputs=x.shape[1])
    dy = shaped("dy", dy, rows=x.shape[0], outputs=weight.shape[0])
    return dy @ weight, dy.T @ x


def conv1d(x: npt.ArrayLike, weight: npt.ArrayLike) -> Array:
    """Cross-correlate over time with zeros outside, keeping T: `y[n,o,t] = Σ_{c,k} weight[o,c,k] · x[n,c,t+k−taps//2]`.

    x is (N, inputs, T), weight (outputs, inputs, taps) with an odd number of taps, y (N, outputs, T). There is no bias.
    """
    x = shaped("x", x, N=None, inputs=None, T=None)
    weight = _conv1d_weight(weight, x)
    return np.einsum("ock,nctk->not", weight, windows(x, weight.shape[2], axis=2))


def conv1d_backward(dy: npt.ArrayLike, x: npt.ArrayLike, weight: npt.ArrayLike) -> tuple[Array, Array]:
    """Return `(dx, dweight)` of `conv1d`; dx is itself one, with inputs and outputs swapped and the taps in reverse."""
    x = shaped("x", x, N=None, inputs=None, T=None)
    weight = _conv1d_weight(weight, x)
    dy = shaped("dy", dy, N=x.shape[0], outputs=weight.shape[0], T=x.shape[2])
    dx = conv1d(dy, weight.swapaxes(0, 1)[:, :, ::-1])
    dweight = np.einsum("not,nctk->ock", dy, windows(x, weight.shape[2], axis=2))
    return dx, dweight


def batch_norm(
    x: npt.ArrayLike,
    weight: npt.ArrayLike,
    bias: npt.ArrayLike,
    running_mean: npt.ArrayLike,
    running_var: npt.ArrayLike,
    *,
    training: bool,
) -> tuple[Array, Array, Array]:
    """Normalise every channel over all the other axes, then scale and shift it.

    Training normalises by the batch's mean and biased variance, and moves the running statistics towards its mean and
    unbiased variance. Evaluation normalises by the running statistics and leaves them.

    Args:
        x: (rows, channels) or (N, channels, T).
        weight, bias, running_mean, running_var: (channels,).
        training: which of the two.

    Returns:
        `(y, running_mean, running_var)`, the statistics being those after the call. The arguments are not changed.

    Raises:
        ValueError: shapes disagree, or training has a single value per channel, whose variance is undefined.
    """
    x = _batch_norm_input(x, training)
    weight, bias = _channels_of(x, weight=weight, bias=bias)
    running_mean, running_var = _channels_of(x, running_mean=running_mean, running_var=running_var)
    if training:
        count = x.size // x.shape[1]
        mean, variance = _batch_statistics(x)
        new_mean = (1 - MOMENTUM) * running_mean + MOMENTUM * mean
        new_var = (1 - MOMENTUM) * running_var + MOMENTUM * variance * count / (count - 1)
    else:
        mean, variance = new_mean, new_var = running_mean, running_var
    y = _along(x, weight) * _normalise(x, mean, variance) + _along(x, bias)
    return y, new_mean, new_var


def batch_norm_backward(
    dy: npt.ArrayLike,
    x: npt.ArrayLike,
    weight: npt.ArrayLike,
    running_mean: npt.ArrayLike,
    running_var: npt.ArrayLike,
    *,
    training: bool,
) -> tuple[Array, Array, Array]:
    """Return `(dx, dweight, dbias)` of `batch_norm`, whose arguments these are; the running statistics have none.

    With `x̂` the normalised input and `dx̂ = weight · dy`, evaluation has `dx = dx̂ / std`. In training x moves the
    statistics too, which takes out of dx̂ its mean and its projection on x̂:
    `dx = (dx̂ − mean(dx̂) − x̂ · mean(x̂ · dx̂)) / std`.
    """
    x = _batch_norm_input(x, training)
    dy = promote("dy", dy, like=x)
    (weight,) = _channels_of(x, weight=weight)
    running_mean, running_var = _channels_of(x, running_mean=running_mean, running_var=running_var)
    mean, variance = _batch_statistics(x) if training else (running_mean, running_var)
    normalised = _normalise(x, mean, variance)
    d_normalised = _along(x, weight) * dy
    d_centred = d_normalised
    if training:
        mean_gradient = d_normalised.mean(axis=_all_but_channels(x))
        projection = (normalised * d_normalised).mean(axis=_all_but_channels(x))
        d_centred = d_normalised - _along(x, mean_gradient) - normalised * _along(x, projection)
    dx = d_centred / _along(x, np.sqrt(variance + EPSILON))
    dweight = (normalised * dy).sum(axis=_all_but_channels(x))
    dbias = dy.sum(axis=_all_but_channels(x))
    return dx, dweight, dbias


def relu(x: npt.ArrayLike) -> Array:
    """Return `max(x, 0)`, for any shape."""
    return np.maximum(promote("x", x), 0)


def relu_backward(dy: npt.ArrayLike, y: npt.ArrayLike) -> Array:
    """Return dx of `y = relu(x)`; it is 0 where x is 0."""
    y = promote("y", y)
    return promote("dy", dy, like=y) * (y > 0)


def sigmoid(x: npt.ArrayLike) -> Array:
    """Return `1 / (1 + exp(−x))`, for any shape, without overflow at either end."""
    x = promote("x", x)
    decay = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, decay) / (1 + decay)


def sigmoid_backward(dy: npt.ArrayLike, y: npt.ArrayLike) -> Array:
    """Return dx of `y = sigmoid(x)`, which is `y · (1 − y) · dy`."""
    y = promote("y", y)
    return y * (1 - y) * promote("dy", dy, like=y)


def softmax(x: npt.ArrayLike) -> Array:
    """Return `exp(x) / Σ exp(x)` over the last axis, without overflow."""
    x = promote("x", x)
    exponentials = np.exp(x - x.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def softmax_backward(dy: npt.ArrayLike, y: npt.ArrayLike) -> Array:
    """Return dx of `y = softmax(x)`, which is `y · (dy − Σ y · dy)`."""
    y = promote("y", y)
    dy = promote("dy", dy, like=y)
    return y * (dy - (y * dy).sum(axis=-1, keepdims=True))


def _conv1d_weight(weight: npt.ArrayLike, x: Array) -> Array:
    weight = shaped("weight", weight, outputs=None, inputs=x.shape[1], taps=None)
    check_odd("weight", weight.shape[2])
    return weight


def _batch_norm_input(x: npt.ArrayLike, training: bool) -> Array:
    x = promote("x", x)
    if x.ndim not in (2, 3) or x.size == 0:
        raise ValueError(f"x must have shape (rows, channels) or (N, channels, T), not empty; got {x.shape}")
    if training and x.size == x.shape[1]:
        raise ValueError(f"x must have more than 1 value per channel in training, got shape {x.shape}")
    return x


def _channels_of(x: Array, **vectors: npt.ArrayLike) -> list[Array]:
    return [shaped(name, values, channels=x.shape[1]) for name, values in vectors.items()]


def _all_but_channels(x: Array) -> tuple[int, ...]:
    return tuple(axis for axis in range(x.ndim) if axis != 1)


def _along(x: Array, per_channel: Array) -> Array:
    return np.expand_dims(per_channel, _all_but_channels(x))


def _batch_statistics(x: Array) -> tuple[Array, Array]:
    return x.mean(axis=_all_but_channels(x)), x.var(axis=_all_but_channels(x))


def _normalise(x: Array, mean: Array, variance: Array) -> Array:
    return (x - _along(x, mean)) / _along(x, np.sqrt(variance + EPSILON))
