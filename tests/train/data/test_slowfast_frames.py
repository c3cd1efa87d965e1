"""Which frames of a video SlowFast's two pathways see, from the recipe to their first convolutions."""

import numpy as np
import pytest
import torch

from train.networks import build_network
from train.precision import logits_of
from train.recipes import RECIPES


@pytest.fixture(
    scope="module", params=[("k400-slowfast-4x16", 8), ("k400-slowfast-8x8", 4)], ids=lambda param: param[0]
)
def slowfast(request):
    """(a recipe, its network, α)."""
    name, alpha = request.param
    recipe = RECIPES[name]
    return recipe, build_network(recipe.model, 4, recipe.sampling.num_segments).eval(), alpha


class _SeenError(Exception):
    """Ends a forward pass behind the stems."""


def pathway_frames(network, indices):
    """The numbers of the frames that reach the slow and the fast stem when a clip's frames are `indices`."""
    seen = []

    def see(_, arguments):
        seen.append(255 * (arguments[0][:, 1, 0, 0] * 0.224 + 0.456))
        if len(seen) == 2:
            raise _SeenError

    hooks = [
        network.get_submodule(f"{path}.conv1").register_forward_pre_hook(see) for path in ("slow_path", "fast_path")
    ]
    pictures = torch.as_tensor(indices, dtype=torch.uint8)[None, :, None, None, None].expand(1, -1, 32, 32, 3)
    with torch.inference_mode(), pytest.raises(_SeenError):
        logits_of(network, pictures, torch.device("cpu"))
    for hook in hooks:
        hook.remove()
    return [values.round().int().tolist() for values in seen]


@pytest.mark.parametrize("n", [40, 64, 65, 200])
def test_frames_of_both_pathways(slowfast, n):
    """The paper's αT frames, τ/α apart, and every α-th of them; as mmaction2: SampleFrames(clip_len=32,
    frame_interval=2, out_of_bound_opt="loop"), then `resample_rate` α by the nearest frame from the first on."""
    recipe, network, alpha = slowfast
    sampling, rng = recipe.sampling, np.random.default_rng(n)
    for indices in (sampling.train(n, rng), sampling.validate(n), sampling.test(n, 10)[9]):
        start = int(indices[0])
        slow, fast = pathway_frames(network, indices)
        assert fast == [(start + 2 * i) % n for i in range(32)]
        assert slow == [(start + 2 * alpha * i) % n for i in range(32 // alpha)]
    assert start == max(0, n - 64)  # the last clip of a test ends with the video


def test_what_differs_in_the_authors_code():
    """It spreads a clip over 64 frames from the first to the last, and the slow frames over these 32, both cut to
    integers: at most one frame away in the fast pathway, up to 15 in the slow one."""
    ours = RECIPES["k400-slowfast-4x16"].sampling.validate(64)
    fast = torch.linspace(0, 63, 32).long()
    slow = fast[torch.linspace(0, 31, 4).long()]
    assert np.abs(fast.numpy() - ours).max() == 1
    assert slow.tolist() == [0, 20, 40, 63]
    assert ours[::8].tolist() == [0, 16, 32, 48]
