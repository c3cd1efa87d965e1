"""DistributedDataParallel: two processes with half a batch each have the gradients of one process with all of it.

In evaluation mode: there BatchNorm is the same function on every process, so that equality is exact in principle. In
training each process normalises by its own clips, as everywhere in torch: there kernels that stand for BatchNorm, ReLU
and TAM are compared with the layers, as one network learns in two processes. With SyncBatchNorm, which those kernels do
not stand for, two processes learn what one does on all clips, by the kernels.
"""

import os
import warnings
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.models.resnet import BasicBlock

from tam_triton import TAM
from tam_triton.nets import TABlock
from tests.library.test_training_norm import counting
from tests.support.networks import normal, randomised, small_tanet, videos
from tests.support.synchronised import on_cpus

IMPLEMENTATIONS = ("triton", "torch")
TIMEOUT = timedelta(seconds=120)
CLIPS, FRAMES, CHANNELS, STEPS = 2, 3, 8, 10
NORMS = 4  # of a TA-Block: its own two, and one in each branch of its TAM


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
    results["synchronised"], results["fused"] = synchronised(rank)
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


def ta_block() -> nn.Module:
    """One in training, from frames `(N·T, 3, 4, 4)` to six numbers each."""
    block = TABlock(BasicBlock(CHANNELS, CHANNELS), TAM(CHANNELS, FRAMES, impl="triton"))
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 6)]
    return randomised(nn.Sequential(nn.Conv2d(3, CHANNELS, 3), block, *head)).double()


def take_ten_steps(network: nn.Module, clips: slice) -> None:
    """Trains on some of every step's clips."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for batch in normal(STEPS, CLIPS, FRAMES, 3, 4, 4).double():
        optimizer.zero_grad()
        loss(network(batch[clips].flatten(0, 1))).backward()
        optimizer.step()


def synchronised(rank: int) -> tuple[dict[str, Tensor], int]:
    """What is learned from half of the clips a process, and how often kernels stood for a BatchNorm and its ReLU."""
    replica = DistributedDataParallel(ta_block())  # before: it refuses SyncBatchNorms on CPUs itself
    network = nn.SyncBatchNorm.convert_sync_batchnorm(replica.module)
    assert sum(isinstance(part, nn.SyncBatchNorm) for part in replica.modules()) == NORMS
    with on_cpus(), counting() as calls:
        take_ten_steps(replica, slice(rank, None, 2))
    return network.state_dict(), len(calls)


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


def test_synchronised_halves_learn_what_one_process_learns_from_all(folder: Path) -> None:
    """Weights and running statistics, those of the branches too."""
    network = ta_block()
    with counting() as calls:
        take_ten_steps(network, slice(None))
    assert len(calls) == STEPS
    for rank in range(2):
        results = torch.load(folder / f"gradients{rank}.pt")
        assert results["fused"] == 0
        torch.testing.assert_close(results["synchronised"], network.state_dict(), rtol=1e-9, atol=1e-12)
