"""2D backbones by name: torchvision's, and timm's where it is installed."""

from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torchvision.models import WeightsEnum, get_model, get_model_weights, list_models

from tam_triton.nets.archive import check_download
from tam_triton.nets.systems import as_people_count

TIMM = "timm/"
_FAMILIES = (
    "resnet*", "resnext*", "wide_resnet*", "shufflenet_v2_*", "mobilenet_v*", "inception_v3", "convnext_*",
    "efficientnet_*", "regnet_*",
)  # fmt: skip


def list_backbones(pattern: str = "*") -> list[str]:
    """The backbones whose names match, as file names are matched, sorted as people count.

    timm's are asked for as such ("timm/resnet*") and need timm.

    Raises:
        TypeError: the pattern is no string.
        ImportError: timm's are asked for and it is not installed.
    """
    if not isinstance(pattern, str):
        raise TypeError(f"pattern: got {type(pattern).__name__}, expected a str")
    if pattern.startswith(TIMM):
        return as_people_count(TIMM + name for name in _timm().list_models(pattern.removeprefix(TIMM)))
    known = {name for family in _FAMILIES for name in list_models(include=family) if not name.startswith("quantized")}
    return as_people_count(name for name in known if fnmatchcase(name, pattern))


def check_backbone(name: str, weights: WeightsEnum | str | None = None) -> WeightsEnum | str | None:
    """The weights as `build_backbone` takes them; raises as it does, with nothing built or downloaded."""
    if not isinstance(name, str):
        raise TypeError(f"backbone: got {type(name).__name__}, expected a name such as 'resnet50'")
    if name.startswith(TIMM):
        return _check_timm(name.removeprefix(TIMM), weights)
    if name not in (known := list_backbones()):
        raise ValueError(f"backbone: got {name!r}, expected one of {', '.join(known)}, or one of timm's: 'timm/…'")
    members = get_model_weights(name)
    if isinstance(weights, str) and weights.removeprefix(f"{members.__name__}.") not in members.__members__:
        raise ValueError(f"weights: got {weights!r}, expected one of {tuple(members.__members__)} for {name}")
    if weights is not None and not isinstance(weights, str | members):
        raise TypeError(f"weights: got {weights!r}, expected a member of {members.__name__}, its name or None")
    return members[weights.removeprefix(f"{members.__name__}.")] if isinstance(weights, str) else weights


def build_backbone(name: str, weights: WeightsEnum | str | None = None) -> nn.Module:
    """A 2D network.

    Args:
        name: of `list_backbones`: torchvision's, or timm's after "timm/".
        weights: torchvision's for this network, by member or by name ("IMAGENET1K_V1", "DEFAULT"); for timm "DEFAULT"
            or the tag of others. They are downloaded where the cache lacks them. None leaves the network as it starts.

    Raises:
        TypeError, ValueError: an unknown name, or one of timm's with a tag, which is for `weights`; weights of another
            network or damaged in torch's cache.
        ImportError: timm is needed and not installed.
    """
    weights = check_backbone(name, weights)
    if name.startswith(TIMM):
        tag = f".{weights}" if weights not in (None, "DEFAULT") else ""
        return _timm().create_model(name.removeprefix(TIMM) + tag, pretrained=weights is not None)
    if weights is not None:
        assert not isinstance(weights, str)
        check_download(weights)
    if name != "inception_v3":
        return get_model(name, weights=weights)
    options = {"init_weights": True, "aux_logits": False} if weights is None else {}
    network = get_model(name, weights=weights, **options)
    network.aux_logits, network.AuxLogits = False, None  # in training it would give two results
    # As torchvision has it with weights: else one that is built without, to load what was saved, sees other frames.
    network.transform_input = True
    return network


def _check_timm(name: str, weights: WeightsEnum | str | None) -> str | None:
    timm, (model, _, tag) = _timm(), name.partition(".")
    if not timm.is_model(model):
        raise ValueError(f"backbone: got {TIMM + name!r}, which timm does not have; see list_backbones('timm/*')")
    if tag:
        raise ValueError(
            f"backbone: got {TIMM + name!r}, expected {TIMM + model!r}, and the tag {tag!r} for its weights"
        )
    if weights is not None and not isinstance(weights, str):
        raise TypeError(f"weights: got {weights!r}, expected 'DEFAULT', a tag of timm's or None")
    tags = tuple(full.partition(".")[2] for full in timm.list_pretrained(model))
    if weights is not None and weights not in (known := ("DEFAULT", *tags) if tags else ()):
        raise ValueError(f"weights: got {weights!r}, expected one of {known} or None for {TIMM + model}")
    return weights


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ImportError("timm's backbones need timm: pip install 'tam-triton[timm]'") from error
    return timm
