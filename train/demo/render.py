"""The pictures of the synthetic tasks: sprites on a noisy background, whose classes no single frame tells apart.

**order**: three colored events one after the other, in one of 3! orders. A clip's events are drawn before its class is
looked at, and the class only arranges them, so every class holds the same frames: whatever judges frames one by one and
averages is at chance. Each event fills exactly two of eight equal segments, so this survives segment sampling too.

**motion**: four axes with two directions each. One direction is drawn as the other played backwards, so whatever judges
frames one by one can know the axis at best and is right in one case of two.
"""

from collections.abc import Callable
from itertools import permutations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Task = Literal["order", "motion"]
Frames = NDArray[np.uint8]
Image = NDArray[np.float32]

NUM_FRAMES, HEIGHT, WIDTH = 32, 64, 80
SEGMENT = NUM_FRAMES // 8
NOISE = 4.0  # standard deviation of the noise of each pixel and frame, in gray levels

EVENTS = {"red": (215, 45, 45), "green": (45, 200, 60), "blue": (60, 80, 225)}
ORDERS = tuple(permutations(range(len(EVENTS))))

CLASS_NAMES: dict[Task, tuple[str, ...]] = {
    "order": tuple(" then ".join(tuple(EVENTS)[event] for event in order) for order in ORDERS),
    "motion": (
        "moving right",
        "moving left",
        "moving down",
        "moving up",
        "circling clockwise",
        "circling counterclockwise",
        "growing",
        "shrinking",
    ),
}


def render(task: Task, label: int, rng: np.random.Generator) -> Frames:
    """Draw one clip of `task`, as RGB frames (32, 64, 80, 3).

    The same `rng` state with another label of "order" gives the same frames in another order, and with the other
    direction of an axis of "motion" the same frames backwards.
    """
    if task == "order":
        return _order_clip(label, rng)
    return _motion_clip(label, rng)


def _order_clip(label: int, rng: np.random.Generator) -> Frames:
    background = _background(rng)
    events = [_event(background, color, rng) for color in EVENTS.values()]
    opening, closing = _add_noise(np.stack([background] * 2 * SEGMENT), rng).reshape(2, SEGMENT, HEIGHT, WIDTH, 3)
    return np.concatenate([opening, *(events[event] for event in ORDERS[label]), closing])


def _event(background: Image, color: tuple[int, int, int], rng: np.random.Generator) -> Frames:
    """Two segments of frames (8, 64, 80, 3) in which a sprite of about `color` drifts past."""
    shade = np.clip(np.asarray(color) + rng.uniform(-30, 30, 3), 0, 255)
    shape, radius = _shape(rng), rng.uniform(8, 13)
    x, y = rng.uniform(WIDTH / 4, WIDTH * 3 / 4), rng.uniform(0, HEIGHT)  # hardly a crop loses it
    step_x, step_y = rng.uniform(-1.5, 1.5, 2)
    frames = [_paint(background, shape(x + i * step_x, y + i * step_y, radius), shade) for i in range(2 * SEGMENT)]
    return _add_noise(np.stack(frames), rng)


def _motion_clip(label: int, rng: np.random.Generator) -> Frames:
    axis, backwards = divmod(label, 2)
    background = _background(rng)
    shade = rng.uniform(150, 255, 3) if rng.random() < 0.5 else rng.uniform(0, 30, 3)
    shape, radius = _shape(rng), rng.uniform(7, 12)
    x, y, phase = rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT), rng.random()
    turns = rng.uniform(0.8, 1.3)  # how often the motion comes back to its start within the clip
    orbit = rng.uniform(14, 20)
    frames = []
    for turn in phase + turns * np.arange(NUM_FRAMES) / NUM_FRAMES:
        if axis == 0:
            mask = shape(x + turn * WIDTH, y, radius)
        elif axis == 1:
            mask = shape(x, y + turn * HEIGHT, radius)
        elif axis == 2:  # the y axis of an image points down, so a growing angle is clockwise
            angle = 2 * np.pi * turn
            mask = shape(WIDTH / 2 + orbit * np.cos(angle), HEIGHT / 2 + orbit * np.sin(angle), radius)
        else:
            mask = shape(x, y, 3 + 20 * (turn % 1))
        frames.append(_paint(background, mask, shade))
    clip = _add_noise(np.stack(frames), rng)
    return clip[::-1] if backwards else clip


def _background(rng: np.random.Generator) -> Image:
    """Blocks of 8 × 8 pixels in dim grays that lean a little to a color (64, 80, 3)."""
    blocks = rng.uniform(50, 130, (HEIGHT // 8, WIDTH // 8, 1)) + rng.uniform(-15, 15, (HEIGHT // 8, WIDTH // 8, 3))
    return np.kron(blocks, np.ones((8, 8, 1))).astype(np.float32)


def _shape(rng: np.random.Generator) -> Callable[[float, float, float], Image]:
    """A disc, a square or a diamond: a function of (x, y, radius) that gives its coverage (64, 80) on a torus."""
    norm = (
        lambda dx, dy: np.hypot(dx, dy),
        lambda dx, dy: np.maximum(dx, dy) * 1.1,
        lambda dx, dy: (dx + dy) * 0.8,
    )[rng.integers(3)]

    def coverage(x: float, y: float, radius: float) -> Image:
        dx = np.abs((np.arange(WIDTH) - x + WIDTH / 2) % WIDTH - WIDTH / 2)
        dy = np.abs((np.arange(HEIGHT) - y + HEIGHT / 2) % HEIGHT - HEIGHT / 2)
        return np.clip(radius - norm(dx[None, :], dy[:, None]) + 0.5, 0, 1).astype(np.float32)

    return coverage


def _paint(background: Image, coverage: Image, shade: NDArray[np.float64]) -> Image:
    return background + coverage[..., None] * (shade.astype(np.float32) - background)


def _add_noise(frames: NDArray[np.float32], rng: np.random.Generator) -> Frames:
    noise = rng.standard_normal(frames.shape, dtype=np.float32) * NOISE
    return np.clip(np.rint(frames + noise), 0, 255).astype(np.uint8)
