"""`tam-triton CHECKPOINT VIDEO …`: what is in videos, where the library alone is installed."""

import argparse
import sys
from collections.abc import Sequence

from tam_triton.classifier import load


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the most probable classes of each video; 1 is returned where one, or the checkpoint, cannot be read."""
    parser = argparse.ArgumentParser(prog="tam-triton", description="Name what is in videos.")
    parser.add_argument("checkpoint", help="of a training run, such as runs/own/checkpoints/best.pt")
    parser.add_argument("videos", nargs="+", help="video files, of any format and size")
    parser.add_argument("--top", type=int, default=5, help="how many classes to show (default: 5)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, … (default: cpu)")
    given = parser.parse_args(arguments)
    if given.top < 1:
        parser.error(f"--top: got {given.top}, expected at least 1")
    try:
        model = load(given.checkpoint, device=given.device)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    failed = 0
    for video in given.videos:
        try:
            predictions = model.predict(video, top=given.top)
        except (OSError, ValueError, ImportError) as error:
            failed += 1
            print(f"error: {error}", file=sys.stderr)
            continue
        print(video)
        for class_name, probability in predictions:
            print(f"{probability:7.2%}  {class_name}")
    return 1 if failed else 0
