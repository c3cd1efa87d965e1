"""The way back to the names of the public implementations, which both loaded with strict=True."""

import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from tam_triton.nets import C2D, TANet, create_model, load_published, published_state, tanet50
from tests.library.test_checkpoints import CLASSES, LITERAL_AUTHORS, LITERAL_MMACTION2, NAMINGS, T, random_state


@pytest.mark.parametrize(
    ("form", "table", "naming"),
    [("authors", LITERAL_AUTHORS, "authors, parallel"), ("mmaction2", LITERAL_MMACTION2, "mmaction2")],
)
@pytest.mark.parametrize("tanet", [True, False])
def test_the_way_back(form, table, naming, tanet):
    network = (TANet if tanet else C2D)(ResNet(Bottleneck, [2, 2, 1, 1]), T, num_classes=CLASSES)
    state = random_state(network)
    load_published(network, state)
    published = published_state(network, form)
    assert list(published) == [NAMINGS[naming](key, tanet=tanet) for key in state]
    twin = type(network)(ResNet(Bottleneck, [2, 2, 1, 1]), T, num_classes=CLASSES)
    report = load_published(twin, published)
    assert (report.missing, report.unused) == ((), ())
    assert all(torch.equal(tensor, state[key]) for key, tensor in twin.state_dict().items())
    if tanet:
        rows = [line.split() for line in table.strip().splitlines()]
        shapes = {key: list(map(str, tensor.shape)) for key, tensor in published_state(tanet50(), form).items()}
        assert all(shapes[key] == shape for key, _, *shape in rows)


def test_without_dropout_the_authors_head_is_the_backbones():
    network = C2D(ResNet(BasicBlock, [1, 1, 1, 1]), T, num_classes=CLASSES, dropout=0)
    assert "module.base_model.fc.weight" in published_state(network, "authors")


@pytest.mark.parametrize(
    ("system", "options", "form", "message"),
    [
        ("tanet_c", {}, "mmaction2", "got one with TAM of its own, expected TANet's"),
        ("tsm", {}, "authors", "got one with TemporalShift of its own"),
        ("tanet", {"stages": ["res4", "res5"]}, "mmaction2", "got TAMs in 2 of 4 blocks, expected them in all"),
        ("tanet", {"alpha": 3}, "authors", r"got G\.0\.weight \(12, 4\) .*, expected \(8, 4\)"),
        ("tanet", {"beta": 8}, "authors", r"L\.0\.weight \(8, 64, 3\), expected .* \(16, 64, 3\) for authors"),
        ("tanet", {"kernel_size": 5}, "authors", r"L\.0\.weight \(16, 64, 3\), expected .* \(16, 64, 5\) for authors"),
        ("tanet", {}, "theirs", r"form: got 'theirs', expected one of \('authors', 'mmaction2'\)"),
    ],
)
def test_what_has_no_way_back(system, options, form, message):
    network = create_model(system, ResNet(Bottleneck, [1, 1, 1, 1]), CLASSES, T, **options)
    with pytest.raises(ValueError, match=message):
        published_state(network, form)


def test_no_way_back_from_other_networks():
    small = TANet(ResNet(BasicBlock, [1, 1, 1, 1]), T, num_classes=CLASSES)
    with pytest.raises(ValueError, match="got basic blocks with TAMs, expected bottlenecks for mmaction2"):
        published_state(small, "mmaction2")
    with pytest.raises(TypeError, match="network: got Linear, expected a TANet or a C2D"):
        published_state(nn.Linear(2, 2), "authors")
    with pytest.raises(TypeError, match="network: got dict"):
        published_state({}, "authors")  # type: ignore[arg-type]
