"""Evaluation where a wrapper of torch holds the weights: FSDP of both kinds, torch.jit.trace, stacked states."""

import copy
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.testing._internal.two_tensor import TwoTensor

from tam_triton import TAM
from tests.support.networks import CHANNELS, FRAMES, feature_maps, normal, small_tam

each_impl = pytest.mark.parametrize("impl", ["triton", "torch"])


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A group of one process."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def sharded_layers(module: TAM) -> nn.Module:
    mesh = init_device_mesh("cpu", (1,))
    for layer in (module.G[0], module.G[3], module.L[0]):
        fully_shard(layer, mesh=mesh)
    return module


def sharded_whole(module: TAM) -> nn.Module:
    fully_shard(module, mesh=init_device_mesh("cpu", (1,)))
    return module


def flat(module: TAM) -> nn.Module:
    return FullyShardedDataParallel(module, device_id=torch.device("cpu"))


def flat_with_original_parameters(module: TAM) -> nn.Module:
    return FullyShardedDataParallel(module, device_id=torch.device("cpu"), use_orig_params=True)


@each_impl
@pytest.mark.filterwarnings("ignore")  # torch's own, about a group of one
@pytest.mark.parametrize("wrap", [sharded_layers, sharded_whole, flat, flat_with_original_parameters])
def test_sharded(wrap: Callable[[TAM], nn.Module], impl: str, group: None) -> None:
    module, x = small_tam(impl), feature_maps(2)
    wrapped = wrap(copy.deepcopy(module))
    with torch.no_grad():
        torch.testing.assert_close(wrapped(x), module(x))
    torch.testing.assert_close(wrapped(x), module(x))


@each_impl
@pytest.mark.parametrize(
    ("gradients", "memory_format"), [(False, torch.channels_last), (True, torch.contiguous_format)]
)
@pytest.mark.filterwarnings("ignore")  # torch's own, about torch.jit
def test_traced(gradients: bool, memory_format: torch.memory_format, impl: str) -> None:
    """A trace is for clips of all sizes, can be saved, and trains."""
    module, x = small_tam(impl), feature_maps(2, memory_format)
    others = normal(FRAMES, CHANNELS, 1, 5).contiguous(memory_format=memory_format)
    with torch.set_grad_enabled(gradients):
        traced = torch.jit.trace(module, (x.requires_grad_(gradients),), check_trace=False)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    with torch.no_grad():
        for run, clips in ((traced, x + 1), (traced, others), (torch.jit.load(file), others)):
            torch.testing.assert_close(run(clips), module(clips))
    if gradients:
        for leaf in (others.requires_grad_(), x):
            results = [
                torch.autograd.grad(run(leaf).square().sum(), [leaf, *module.parameters()]) for run in (traced, module)
            ]
            torch.testing.assert_close(*results)


@each_impl
@pytest.mark.filterwarnings("ignore")
def test_a_tam_alone_is_traced_for_its_weights(impl: str) -> None:
    module, x = small_tam(impl), feature_maps(2)
    traced = torch.jit.trace(module, (x,), check_trace=False)
    torch.testing.assert_close(traced(feature_maps(3)), module(feature_maps(3)))


@pytest.mark.parametrize("compiled", [False, True])
def test_weights_of_a_tensor_subclass(compiled: bool) -> None:
    """As quantised weights are: only their own operations know what they mean."""
    torch.compiler.reset()
    module, x = small_tam("triton"), feature_maps(2)
    weight = module.get_parameter("G.0.weight").detach()
    module.G[0].weight = nn.Parameter(TwoTensor(weight, 2 * weight), requires_grad=False)
    run = torch.compile(module, fullgraph=True, backend="aot_eager") if compiled else module
    with torch.no_grad():
        y = run(x)
        assert isinstance(y, TwoTensor)
        torch.testing.assert_close(y.a, small_tam("triton")(x))
        doubled = small_tam("triton")
        doubled.get_parameter("G.0.weight").mul_(2)
        torch.testing.assert_close(y.b, doubled(x))


def test_an_ensemble_of_stacked_states() -> None:
    """Without gradients, on Triton: vmap follows the layers."""
    modules, x = [small_tam("triton"), small_tam("triton")], feature_maps(2)
    modules[1].load_state_dict({name: 1.2 * tensor for name, tensor in modules[0].state_dict().items()})
    state = torch.func.stack_module_state(list[nn.Module](modules))
    with torch.no_grad():
        results = torch.vmap(lambda one: torch.func.functional_call(modules[0], one, (x,)))(state)
        for module, result in zip(modules, results, strict=True):
            torch.testing.assert_close(result, module(x))
