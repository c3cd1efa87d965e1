"""DistributedDataParallel: two processes with half a batch each have the gradients of one process with all of it.

In evaluation mode: there BatchNorm is the same function on every process, so that equality is exact in principle. In
training each process normalises by its own clips, as everywhere in torch: there kernels that stand for BatchNorm, ReLU
and TAM are compared with the layers, as one network learns in two processes.
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
    results: dict[str, object] = {}
    for impl in IMPLEMENTATIONS:
        network = small_tanet(impl).double()
        replica = DistributedDataParallel(network)  # while it lives, gradients are exchanged
        loss(replica(videos(2).double()[rank : rank + 1])).backward()
        results[impl] = {name: parameter.grad for name, parameter in network.named_parameters()}
        results[f"{impl} learned"] = learned(impl, rank)
    torch.save(results, folder / f"gradients{rank}.pt")
    distributed.destroy_process_group()


def learned(impl: str, rank: int) -> dict[str, Tensor]:
    """Weights and statistics after two steps on a clip a process."""
    network = small_tanet(impl, training=True, stages=["res5"]).double()
    replica = DistributedDataParallel(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    for clips in videos(4).double()[rank::2].split(1):
        optimizer.zero_grad()
        loss(replica(clips)).backward()
        optimizer.step()
    return network.state_dict()


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


def test_learns_as_the_layers_do(folder: Path) -> None:
    """The same weights on both processes, and statistics of each one's own clips."""
    ranks = [torch.load(folder / f"gradients{rank}.pt") for rank in range(2)]
    for rank in ranks:
        torch.testing.assert_close(rank["triton learned"], rank["torch learned"], rtol=1e-9, atol=1e-12)
    first, second = (rank["triton learned"] for rank in ranks)
    apart = {name for name in first if not torch.equal(first[name], second[name])}
    assert apart == {name for name in first if name.endswith(("running_mean", "running_var"))}
