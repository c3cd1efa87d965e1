"""What a network is fed with: which frames of a video, which part of them, and how their pixels are scaled.

Frames stay uint8 (T, H, W, 3), as they are decoded, until they are where the network is.
"""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

# Of ImageNet's training images, in the units of [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def middle_frames(num_frames: int, num_segments: int, reach: int | None = None) -> list[int]:
    """The T = `num_segments` frames of the one clip that stands for a video of n = `num_frames`.

    Of segments (TSN; Something-Something) the middles, int(n/T/2 + i·n/T) mod n. With `reach` (Kinetics), T frames with
    a stride of reach // T from the middle of the places where such a clip fits, going round where the video is shorter.
    Index for index the rules of the paper's public code. Raises ValueError if a number is below 1, or reach below T.
    """
    n, T = num_frames, num_segments
    if min(n, T) < 1 or (reach is not None and reach < T):
        raise ValueError(f"frames: got {n} in the video, {T} in a clip, reach {reach}, expected 1 or more, reach ≥ T")
    if reach is None:
        return [int(n / T / 2 + n / T * i) % n for i in range(T)]
    stride = reach // T
    start = max(1, 1 + n - stride * T) // 2
    return [(start + i * stride) % n for i in range(T)]


def resize(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize uint8 (T, H, W, 3) to `size`, height and width; bilinear, antialiased, as the published pipelines do."""
    if tuple(frames.shape[1:3]) == size:
        return frames
    resized = interpolate(frames.permute(0, 3, 1, 2), size=size, mode="bilinear", antialias=True)
    return resized.permute(0, 2, 3, 1)


def resize_short_side(frames: Tensor, size: int) -> Tensor:
    """Resize uint8 (T, H, W, 3) so that the shorter side has `size` pixels, in proportion."""
    height, width = frames.shape[1:3]
    scale = size / min(height, width)
    return resize(frames, (max(size, round(height * scale)), max(size, round(width * scale))))


def slide_crops(frames: Tensor, size: int, count: int) -> list[Tensor]:
    """`count` squares of `size` pixels, side by side from end to end of the long side, in the middle of the short one.

    One is the center crop; three of 256 pixels cover frames with a short side of 256 up to a ratio of 3. (The authors'
    code slides along the width whatever the format; mmaction2's, like this, along the longer side.) Raises ValueError
    for frames (T, H, W, 3) smaller than the crop.
    """
    height, width = frames.shape[1:3]
    if min(height, width) < size:
        raise ValueError(f"size: got {size}, expected at most the short side of frames of {height} × {width} pixels")
    center = ((height - size) // 2, (width - size) // 2)
    places = [center]
    if count > 1:
        along = [i * (max(height, width) - size) // (count - 1) for i in range(count)]
        places = [(place, center[1]) if height > width else (center[0], place) for place in along]
    return [frames[:, top : top + size, left : left + size] for top, left in places]


def normalize(clips: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 frames (N, T, H, W, 3) → (N, T, 3, H, W) with ImageNet's mean and deviation, computed in float32.

    Runs where the clips are, and should be on the network's device: bytes are a quarter of what floats are to send.
    The frames are channels_last, as they were before.
    """
    mean, deviation = _imagenet(clips.device)
    return clips.to(torch.float32).sub_(mean).div_(deviation).to(dtype).movedim(-1, 2)


_KEPT: dict[torch.device, tuple[Tensor, Tensor]] = {}


def _imagenet(device: torch.device) -> tuple[Tensor, Tensor]:
    """Kept for each device: to send them with every batch would wait for it. Not where a program is made of the calls:
    its tensors have no numbers, and whoever came later would compute with them.
    """
    if torch.compiler.is_compiling():
        return _scales(device)
    if (kept := _KEPT.get(device)) is None:
        kept = _scales(device)
        if type(kept[0]) is Tensor:
            _KEPT[device] = kept
    return kept


def _scales(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation, of pixels from 0 to 255."""
    with torch.inference_mode(False):
        mean, deviation = (
            torch.tensor(values, dtype=torch.float32, device=device) * 255 for values in (IMAGENET_MEAN, IMAGENET_STD)
        )
    return mean, deviation
