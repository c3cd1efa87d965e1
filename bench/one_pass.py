"""`python -m bench.one_pass`: each kernel once a shape, between the marks of a profiler that counts a GPU's events."""

import sys

import torch
from torch import Tensor

from bench.shapes import LAYOUTS, Shape
from tam_triton import TAM

SITES = (Shape(64, 56), Shape(256, 28), Shape(256, 14), Shape(512, 7))
SEGMENTS = 8


def train_and_evaluate(module: TAM, x: Tensor, dy: Tensor) -> None:
    """A step in training, then a call in evaluation, in bfloat16."""
    with torch.autocast(x.device.type, torch.bfloat16):
        module.train()(x).backward(dy)
        with torch.no_grad():
            module.eval()(x)


def main(device: str) -> None:
    """On a GPU, only the second time of each shape lies between the marks, when everything is compiled."""
    on_gpu = torch.device(device).type == "cuda"
    clips, sites = (8, SITES) if on_gpu else (1, SITES[-1:])
    for layout, memory_format in LAYOUTS.items():
        for site in sites:
            module = TAM(site.channels, SEGMENTS).to(device)
            x = torch.randn(clips * SEGMENTS, site.channels, site.size, site.size, device=device, dtype=torch.bfloat16)
            x = x.contiguous(memory_format=memory_format).requires_grad_()
            dy = torch.randn_like(x)
            train_and_evaluate(module, x, dy)
            print("#", site, layout, flush=True)
            if on_gpu:
                torch.cuda.synchronize(device)
                torch.cuda.profiler.start()
                train_and_evaluate(module, x, dy)
                torch.cuda.synchronize(device)
                torch.cuda.profiler.stop()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cuda")
