"""The real `torchrun`: two nodes that find each other, here both on one machine, with a process each."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from tests.support.fit_runs import Videos, equal_bits, final_bits
from tests.train.evaluation.test_testing import TWO_PROCESSES
from train.evaluation.scores import VideoScores

SMALL = """
    --optimization.epochs 2 --optimization.batch-size 4 --sampling.num-segments 4 --augmentation.crop-size 32
    --validation.short-side 36 --validation.crop-size 32 --test.short-side 36 --test.crop-size 32
    --loading.workers 0 --device cpu --threads 1
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def on_two_nodes(*command):
    """Run `python -m train …` on both; their output, the first node's first."""
    endpoint = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--rdzv-id", "nodes"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", *endpoint]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    nodes = [
        subprocess.Popen(
            [*torchrun, "-m", "train", *command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        said = [node.communicate(timeout=200)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], said
    return said


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return Videos.make(folder).written(folder)


def test_two_nodes_train_and_test_as_two_processes_do(tmp_path, inputs):
    fit = ["fit", "demo", *inputs, *SMALL.split()]
    said = on_two_nodes(*fit, "--out", str(tmp_path / "nodes"))
    assert sorted("epoch 2/2" in text for text in said) == [False, True]  # one of all processes speaks
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    forked = [sys.executable, "-c", TWO_PROCESSES, *fit, "--out", str(tmp_path / "forked")]
    subprocess.run(forked, env=os.environ | address, check=True, capture_output=True, timeout=120)
    assert equal_bits(final_bits(tmp_path / "nodes"), final_bits(tmp_path / "forked"))

    test = ["test", str(tmp_path / "nodes/checkpoints/best.pt"), "--loading.workers", "0", "--device", "cpu"]
    on_two_nodes(*test, "--threads", "1", "--out", str(tmp_path / "scores"))
    scores = VideoScores.load(tmp_path / "scores" / "scores.npz")
    assert len(scores.videos) == len(set(scores.videos)) == 7
    assert np.isfinite(scores.scores).all()
