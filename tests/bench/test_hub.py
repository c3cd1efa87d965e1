"""The build for the Hub: loaded beside the library, it computes what the library does; it says what it holds."""

import base64
import hashlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tam_triton
from bench.__main__ import main
from bench.hub.sources import relative, sources
from tests.support.networks import FRAMES, feature_maps, small_tam, small_tanet, videos
from tests.support.pages import blocks, run_block

BUILDS = ("torch-cpu", "torch-cuda")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hub") / "new"
    assert main(["hub", "--out", str(out), "--version", "3"]) == 0
    return out


def metadata(folder: Path, build: str) -> dict[str, Any]:
    return json.loads((folder / "build" / build / "metadata.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Iterator[dict[str, ModuleType]]:
    """Both builds, imported as `kernels` imports them: by file, under the name in their metadata."""
    modules = {}
    for build in BUILDS:
        name = metadata(folder, build)["id"]
        spec = importlib.util.spec_from_file_location(name, folder / "build" / build / "__init__.py")
        assert spec is not None
        assert spec.loader is not None
        modules[build] = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(modules[build])
    yield modules
    for module in modules.values():
        for name in [name for name in sys.modules if name.partition(".")[0] == module.__name__]:
            sys.modules.pop(name)


def test_nothing_is_imported_from_the_library(folder: Path) -> None:
    """Where it is not installed, the build runs; what it needs are torch and Triton."""
    name, build = metadata(folder, "torch-cpu")["id"], folder / "build" / "torch-cpu"
    program = f"""
import importlib.util, sys
sys.modules["tam_triton"] = sys.modules["bench"] = None
spec = importlib.util.spec_from_file_location({name!r}, {str(build / "__init__.py")!r})
module = sys.modules[{name!r}] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
import torch
module.TAM(8, 4)(torch.ones(4, 8, 2, 2)).sum().backward()
print([name for name in sys.modules if name.startswith(("torchvision", "tam_triton."))])
"""
    done = subprocess.run([sys.executable, "-c", program], cwd="/", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


@pytest.mark.parametrize("impl", ["triton", "torch"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_it_computes_what_the_library_does(loaded: dict[str, ModuleType], training: bool, impl: str) -> None:
    """To the bit, forward and backward, with kernels and operators of its own."""
    ours, module, x = small_tam(impl, training), loaded["torch-cpu"], feature_maps(2)
    theirs = module.TAM(ours.channels, ours.num_segments, impl=impl).train(training)
    assert type(theirs).__module__.startswith(module.__name__)
    theirs.load_state_dict(ours.state_dict())
    for got, expected in zip(results(theirs, x), results(ours, x), strict=True):
        assert torch.equal(got, expected)
    assert torch.equal(module.squeeze(x, FRAMES, impl=impl), tam_triton.squeeze(x, FRAMES, impl=impl))


def results(call: Any, x: Tensor) -> list[Tensor]:
    leaf = x.clone().requires_grad_()
    y = call(leaf)
    (dx,) = torch.autograd.grad(y.square().sum(), leaf)
    with torch.no_grad():
        return [y.detach(), dx, call(x)]


def test_operators_have_names_of_their_own(folder: Path, loaded: dict[str, ModuleType]) -> None:
    names = {metadata(folder, build)["id"] for build in BUILDS}
    assert len(names) == 2
    for build, module in loaded.items():
        name = metadata(folder, build)["id"]
        operators = getattr(torch.ops, name)
        helpers = sys.modules[f"{name}._ops"]
        assert helpers.ops is operators
        assert helpers.add_op_namespace_prefix("squeeze") == f"{name}::squeeze"
        assert operators.squeeze is not torch.ops.tam_triton.squeeze
        x = feature_maps(1)
        assert torch.equal(operators.squeeze(x, FRAMES), torch.ops.tam_triton.squeeze(x, FRAMES))
        assert sorted(module.__all__) == ["TAM", "aggregate", "layers", "squeeze", "squeeze_and_aggregate"]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_the_layer_lends_its_forward(loaded: dict[str, ModuleType], training: bool) -> None:
    """To this library's TAM, alone and in a network, and to any module with the same members."""
    layer = loaded["torch-cpu"].layers.TAM
    x = feature_maps(2)
    lent, own = small_tam("torch", training), small_tam("torch", training)
    lend(layer, lent)
    for got, expected in zip(results(lent, x), results(own, x), strict=True):
        assert torch.equal(got, expected)
    torch.testing.assert_close(dict(lent.state_dict()), dict(own.state_dict()), rtol=0, atol=0)

    other = nn.Module().train(training)
    again = small_tam("torch", training)
    other.G, other.L = again.G, again.L
    vars(other)["num_segments"] = FRAMES
    assert torch.equal(layer.forward(other, x), small_tam("torch", training)(x))

    network = small_tanet("torch", training)
    for module in network.modules():
        if isinstance(module, tam_triton.TAM):
            lend(layer, module)
    assert torch.equal(network(videos(2)), small_tanet("torch", training)(videos(2)))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_the_layer_takes_the_kernels_of_the_branches(
    loaded: dict[str, ModuleType], training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: those of this library's TAM, in training and in evaluation, to the bit."""
    build = loaded["torch-cpu"]
    monkeypatch.setattr(build.layers.functional, "choose", lambda impl, x: "triton")
    lent, x = small_tam("torch", training), feature_maps(2)
    lend(build.layers.TAM, lent)
    called: list[nn.Module] = []

    def call(layer: nn.Module, y: Tensor) -> Tensor:
        called.append(layer)
        return nn.Module.__call__(layer, y)

    monkeypatch.setattr(nn.Linear, "__call__", call)
    own = small_tam("triton", training)
    for got, expected in zip(results(lent, x), results(own, x), strict=True):
        assert torch.equal(got, expected)
    torch.testing.assert_close(dict(lent.state_dict()), dict(own.state_dict()), rtol=0, atol=0)
    assert called.count(lent.get_submodule("G.0")) == (0 if training else 1)  # with gradients, evaluation is by layers


def lend(layer: Any, module: nn.Module) -> None:
    """As `kernelize` does."""
    vars(module)["forward"] = layer.forward.__get__(module)


def test_the_layer_is_pure(loaded: dict[str, ModuleType]) -> None:
    """What `kernels` asks of a layer that it puts in another's place."""
    for module in loaded.values():
        layer = module.layers.TAM
        assert issubclass(layer, nn.Module)
        assert layer.__init__ is nn.Module.__init__
        assert set(dir(layer)) - set(dir(nn.Module)) == {"has_backward", "can_torch_compile"}
        with pytest.raises(TypeError, match="G: got Sequential without a Linear"):
            module.layers.adapt(feature_maps(1), nn.Sequential(), nn.Sequential(), FRAMES, True)
        with pytest.raises(ValueError, match="num_segments"):
            module.layers.adapt(feature_maps(1), nn.Sequential(), nn.Sequential(), 2, True)


def test_the_layer_compiles(loaded: dict[str, ModuleType]) -> None:
    """In one graph, as it says."""
    torch.compiler.reset()
    lent = small_tam("torch", training=True)
    lend(loaded["torch-cpu"].layers.TAM, lent)
    compiled = torch.compile(lent, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(feature_maps(2)), small_tam("torch", training=True)(feature_maps(2)))
    torch.compiler.reset()


def test_metadata(folder: Path) -> None:
    """Every file has its checksum, and the name is that of the content."""
    for build in BUILDS:
        said, place = metadata(folder, build), folder / "build" / build
        there = {path.relative_to(place).as_posix() for path in place.rglob("*.py")}
        assert said["digest"]["files"].keys() == there
        for name, digest in said["digest"]["files"].items():
            assert base64.b64decode(digest) == hashlib.sha256((place / name).read_bytes()).digest()
        assert (said["name"], said["version"], f"torch-{said['backend']['type']}") == ("tam-triton", 3, build)
        assert said["id"].isidentifier()
    assert not [text for text in sources().values() if "from tam_triton" in text or "import tam_triton" in text]
    assert "version = 3\n" in (folder / "build.toml").read_text(encoding="utf-8")


def test_the_folder_for_older_releases(folder: Path, loaded: dict[str, ModuleType]) -> None:
    path = folder / "build" / "torch-cpu" / "tam_triton" / "__init__.py"
    spec = importlib.util.spec_from_file_location("inside", path)
    assert spec is not None
    assert spec.loader is not None
    inside = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(inside)
    assert inside.TAM is loaded["torch-cpu"].TAM


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import tam_triton.ops\n", "line 1: got `import tam_triton.ops`"),
        ("x = 1\nfrom tam_triton \\\n    import ops\n", "line 2"),
    ],
)
def test_what_cannot_be_made_relative(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        relative(text, "a/b.py")
    with pytest.raises(ValueError, match="no line 'NAMESPACE"):
        relative("", "ops.py")


def test_imports_are_made_relative() -> None:
    text = "def f():\n    '×'; from tam_triton.plain.views import taps\nfrom tam_triton import ops\nimport torch\n"
    expected = "def f():\n    '×'; from ..plain.views import taps\nfrom .. import ops\nimport torch\n"
    assert relative(text, "a/b.py") == expected


def test_it_writes_over_nothing(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for out in (folder, tmp_path / "file", tmp_path / "file" / "inside"):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit):
            main(["hub", "--out", str(out)])
        assert "error: out: " in capsys.readouterr().err
        assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(SystemExit):
        main(["hub", "--out", str(tmp_path / "new"), "--version", "-1"])


@pytest.mark.filterwarnings("default")  # of `kernels`, and of what it imports
def test_the_loader_of_kernels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package itself loads the build and puts its layer into a network; as on the page."""
    kernels = pytest.importorskip("kernels", reason="the package `kernels` is not installed")
    monkeypatch.chdir(folder.parent)
    folder.rename(folder.with_name("hub"))
    names: dict[str, Any] = {}
    (block,) = (block for block in blocks("docs/neighbors.md", "python") if block.reason)
    try:
        run_block(block, names)
        module, mapping = names["tam"], {"TAM": {"cpu": names["layer"]}}
        assert names["y"].shape == (16, 64, 8, 8)
        for training, mode in ((True, kernels.Mode.TRAINING), (False, kernels.Mode.INFERENCE)):
            network, expected = small_tanet("torch", training), small_tanet("torch", training)
            with kernels.use_kernel_mapping(mapping):
                kernels.kernelize(network, mode=mode, device="cpu", use_fallback=False)
            for net in (network, names["network"]):
                tams: list[Any] = [each for each in net.modules() if isinstance(each, tam_triton.TAM)]
                assert tams
                assert all(each.forward.__func__ is module.layers.TAM.forward for each in tams)
            for got, wanted in zip(results(network, videos(2)), results(expected, videos(2)), strict=True):
                assert torch.equal(got, wanted)
    finally:
        folder.with_name("hub").rename(folder)
        del tam_triton.TAM.kernel_layer_name  # type: ignore[attr-defined]
