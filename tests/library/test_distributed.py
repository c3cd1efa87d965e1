"""DistributedDataParallel: two processes with half a batch each have the gradients of one process with all of it.

In evaluation mode: there BatchNorm is the same function on every process, so that equality is exact in principle. In
training each process normalises by its own clips, as everywhere in torch.
"""

import os
import warnings
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from tests.support.networks import small_tanet, videos

IMPLEMENTATIONS = ("triton", "torch")
TIMEOUT = timedelta(seconds=120)


def loss(logits: Tensor) -> Tensor:
    return logits.square().sum(1).mean()


def train(rank: int, folder: Path) -> None:
    """One process: forward and backward on its own clip, then the gradients to a file."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=TIMEOUT
    )
    results = {}
    for impl in IMPLEMENTATIONS:
        network = small_tanet(impl).double()
        replica = DistributedDataParallel(network)  # while it lives, gradients are exchanged
        loss(replica(videos(2).double()[rank : rank + 1])).backward()
        results[impl] = {name: parameter.grad for name, parameter in network.named_parameters()}
    torch.save(results, folder / f"gradients{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both processes have left their gradients. Each is a new interpreter that inherits TRITON_INTERPRET."""
    assert os.environ["TRITON_INTERPRET"] == "1"
    folder = tmp_path_factory.mktemp("distributed")
    context = multiprocessing.start_processes(train, (folder,), nprocs=2, join=False, start_method="spawn")
    try:
        assert context is not None
        deadline = TIMEOUT.total_seconds()
        while not context.join(timeout=1):
            deadline -= 1
            assert deadline > 0, "the processes did not end"
    finally:
        for process in context.processes if context else []:
            process.kill()
    return folder


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_gradients_of_the_joined_batch(impl: str, folder: Path) -> None:
    network = small_tanet(impl).double()
    loss(network(videos(2).double())).backward()
    expected = {name: parameter.grad for name, parameter in network.named_parameters()}
    for rank in range(2):
        torch.testing.assert_close(torch.load(folder / f"gradients{rank}.pt")[impl], expected, rtol=1e-9, atol=1e-12)
