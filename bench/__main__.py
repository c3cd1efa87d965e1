"""The command line of `python -m bench`: one instrument a subcommand, imported only when it is named."""

import importlib
import os
import sys
from collections.abc import Sequence

import tyro

COMMANDS = {
    "ops": ("Ops", "operators and the whole TAM, against the eager formulation, torch.compile and a copy"),
    "model": ("Model", "whole networks: C2D, TANet, and TANet as its public implementations run it"),
    "train": ("Train", "a training step of TANet, taken apart: forward, backward, optimizer, share of TAM"),
    "profile": (
        "Profile",
        "an operator, a network or a step by kernel: time, bytes, GB/s; memory over time",
    ),
    "stream": ("Stream", "what a new frame of a stream costs, beside the window that it completes"),
    "data": ("Data", "clips a second from video files to batches, against the usual pipeline; memory over many opens"),
    "static": ("Static", "the compiled kernels without a GPU: registers, spills, vector widths, occupancy"),
    "predict": ("Predict", "the compiled kernels' time on a GPU, predicted by a model of one multiprocessor"),
    "tune": ("Tune", "launch configurations tried, by measurement or prediction, and a file of those that are faster"),
    "execute": ("Execute", "the compiled kernels executed on the CPU: instructions, sectors a request, bank conflicts"),
    "device": ("Device", "one GPU in a few minutes: tests, operators, networks, counters, predictions; one page"),
    "cost": ("Cost", "parameters, MACs and activations of every system on every backbone, beside published figures"),
    "saved": ("Saved", "bytes that a training step holds for its backward, by network, counted without memory"),
    "compare": ("Compare", "two files of results of one command: what differs by more than their noise"),
    "hub": ("Hub", "no measurement: lays the kernels out as Hugging Face's `kernels` package loads them"),
    "traffic": ("Traffic", "bytes that the kernels ask of memory, counted in passes over X"),
}


def usage() -> str:
    """The subcommands, one a line."""
    lines = [f"  {name:<8} {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(["usage: python -m bench COMMAND [options]; COMMAND --help lists its options", *lines])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand; returns the exit status. A wrong option ends in a message that names it, and status 2."""
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name not in COMMANDS:
        print(f"error: got command {name!r}\n{usage()}", file=sys.stderr)
        return 2
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler else reports every start and stop; read once
    module = importlib.import_module(f"bench.{name}")
    options = tyro.cli(
        getattr(module, COMMANDS[name][0]), prog=f"python -m bench {name}", description=module.__doc__, args=rest
    )
    module.run(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
