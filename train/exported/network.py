"""Exported files at work: read as a checkpoint is, and refused by name where they cannot do what is asked for."""

import logging
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from tam_triton.nets.archive import damaged_part
from train.checkpoint import TrainedNetwork, load_checkpoint
from train.data.dataset import Views
from train.errors import InputError
from train.exported.settings import CLIPS, LOGITS, PART, Kind, Settings, machine
from train.precision import Precision, TakesBytes

Run = Callable[[Tensor], Tensor]

_ONNX = re.compile(rb"\x08[\x03-\x3f][\x12\x1a\x22\x28\x32\x3a\x42\x72]")
"""How a model of ONNX begins: the version of its format, in one byte, and the tag of another field."""
_MOST_TEXT = 2**24
"""Bytes of settings; more are not JSON that was written here."""


class ExportedNetwork(TakesBytes):
    """An exported file, loaded: logits float32 (N, classes) of clips uint8 (N, T, S, S, 3), as `settings` has them."""

    def __init__(self, path: Path, settings: Settings, run: Run) -> None:
        super().__init__()
        self.path, self.settings = path, settings
        self._run = run

    def forward(self, clips: Tensor) -> Tensor:
        """Raises ValueError for other clips, at which what is compiled would not look, InputError for other logits."""
        if clips.dtype != torch.uint8 or clips.shape[1:] != self.settings.clip_shape:
            kind = f"{clips.dtype} {tuple(clips.shape)}"
            raise ValueError(f"clips: got {kind}, expected torch.uint8 (N, {str(self.settings.clip_shape)[1:]}")
        logits = self._run(clips.contiguous())
        if logits.shape != (expected := (len(clips), len(self.settings.class_names))):
            raise InputError(f"{self.path}: gives logits {tuple(logits.shape)}, expected {expected} by its classes")
        return logits

    def check_asked(self, views: Views, precision: Precision, channels_last: bool = True) -> None:
        """Raises InputError for what the file, being finished, cannot follow."""
        fixed = {
            "views.crop_size": (views.crop_size, self.settings.clip_shape[1]),
            "precision": (precision, "fp32"),
            "channels_last": (channels_last, True),
        }
        for option, (got, expected) in fixed.items():
            if got != expected:
                raise InputError(f"{option}: got {got}, expected {expected}, as {self.path} was exported")


def kind_of(path: Path) -> Kind | None:
    """As what the file at `path` was exported; None for any other file, and for what is none."""
    try:
        with path.open("rb") as file:
            if _ONNX.match(file.read(3)):
                return "onnx"
            names = zipfile.ZipFile(file).namelist()
    except (OSError, ValueError, zipfile.BadZipFile):
        return None
    if not any(name.endswith("/archive_format") for name in names):
        return None
    return "aoti" if any("/data/aotinductor/" in name for name in names) else "pt2"


def refuse_exported(path: Path) -> None:
    """Raise InputError if `path` is an exported file, where a network is to be looked into."""
    if kind := kind_of(path):
        raise InputError(
            f"{path}: is exported ({kind}) and gives nothing but logits; expected the checkpoint that it was made of"
        )


def load_trained(path: Path, device: torch.device, threads: int | None = None) -> TrainedNetwork:
    """A checkpoint, on the CPU, or an exported file, on `device`. Raises InputError."""
    return load_exported(path, device, threads) if kind_of(path) else load_checkpoint(path)


def load_exported(path: Path, device: torch.device, threads: int | None = None) -> TrainedNetwork:
    """The exported file at `path`, its checksums verified, where it has any (ONNX has none).

    A pt2 may hold pickles, and an aoti holds machine code: what such a file says is done.

    Args:
        path: of the file, whatever it is called.
        device: where clips are computed.
        threads: that ONNX Runtime takes on a CPU; None takes torch's.

    Raises:
        InputError: no such file; damaged; of another program or version; for another device or kind of machine; or what
            runs it is not installed.
    """
    kind = kind_of(path)
    if kind is None:
        raise InputError(f"{path}: is no exported file, expected one of pt2, onnx or aoti")
    settings, run = _open_onnx(path, device, threads) if kind == "onnx" else _open_archive(path, kind, device)
    return TrainedNetwork(ExportedNetwork(path, settings, run), settings.recipe, settings.class_names)


def _open_archive(path: Path, kind: Kind, device: torch.device) -> tuple[Settings, Run]:
    with path.open("rb") as file:
        try:
            damaged = damaged_part(file)
        except Exception as error:  # a directory of which bits have flipped can raise anything
            raise InputError(f"{path}: is damaged") from error
        if damaged is not None:
            raise InputError(f"{path}: is damaged: the checksum of its part {damaged} is not that of what it holds")
        with zipfile.ZipFile(file) as archive:
            parts = [name for name in archive.namelist() if name.endswith(f"/extra/{PART}")]
            text = archive.open(parts[0]).read(_MOST_TEXT).decode(errors="replace") if parts else None
    settings = Settings.from_text(text, path, kind)
    if kind == "aoti":
        _check_machine(path, settings, device)
    with _reporting(path, settings):
        return settings, (_load_aoti if kind == "aoti" else _load_pt2)(path, settings, device)


def _check_machine(path: Path, settings: Settings, device: torch.device) -> None:
    if device.type != settings.device:
        raise InputError(f"device: got {device.type}, expected {settings.device}, for which {path} was compiled")
    if (here := machine(device)) != settings.machine:
        raise InputError(f"{path}: was compiled for {settings.machine}, but this is {here}; export it here")


def _load_pt2(path: Path, settings: Settings, device: torch.device) -> Run:
    from torch.export.passes import move_to_device_pass

    with path.open("rb") as file:
        program = torch.export.load(file)
    if device.type != settings.device or device.index:
        program = move_to_device_pass(program, str(device))
    return partial(program.module())  # and no module, as which it would be put into evaluation mode, and cannot be


def _load_aoti(path: Path, settings: Settings, device: torch.device) -> Run:
    index = -1 if device.index is None else device.index
    with tempfile.TemporaryDirectory() as folder:  # torch takes files of one suffix alone, and unpacks them
        link = Path(folder, "network.pt2")
        link.symlink_to(path.absolute())
        loaded: Run = torch._inductor.aoti_load_package(link, device_index=index)
    return loaded


def _open_onnx(path: Path, device: torch.device, threads: int | None) -> tuple[Settings, Run]:
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(f"{path}: needs onnxruntime, which is not installed: pip install onnxruntime") from error
    provider = f"{device.type.upper()}ExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise InputError(f"device: got {device.type}, for which the installed onnxruntime has no {provider}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3  # what is wrong is raised as well
    chosen = (provider, {"device_id": device.index or 0}) if device.type == "cuda" else provider
    try:
        session = onnxruntime.InferenceSession(path, options, providers=[chosen])
    except Exception as error:  # onnxruntime's errors have nothing else in common
        version = f"onnxruntime {onnxruntime.__version__}"
        raise InputError(f"{path}: cannot be loaded by {version}: {reason_of(error)}") from error
    names = [[value.name for value in values] for values in (session.get_inputs(), session.get_outputs())]
    settings = Settings.from_text(session.get_modelmeta().custom_metadata_map.get(PART), path, "onnx")
    if names != [[CLIPS], [LOGITS]]:
        raise InputError(f"{path}: takes and gives {names}, expected [[{CLIPS!r}], [{LOGITS!r}]]")

    def run(clips: Tensor) -> Tensor:
        (logits,) = session.run([LOGITS], {CLIPS: clips.cpu().numpy()})
        return torch.from_numpy(logits)

    return settings, run


@contextmanager
def _reporting(path: Path, settings: Settings) -> Iterator[None]:
    """Say in one line what torch cannot load, and nothing of what it tries meanwhile."""
    logger = logging.getLogger("torch.export")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    except Exception as error:  # a program of another version can raise anything
        raise InputError(
            f"{path}: cannot be loaded by torch {torch.__version__} ({reason_of(error)}); it was exported by "
            f"{settings.made_by}"
        ) from error
    finally:
        logger.setLevel(before)


def reason_of(error: Exception) -> str:
    """What `error` says, in a line: of a compiler's output, which begins with the command, the first error."""
    text = str(error)
    found = re.search(r"^.*\berror: .*$", text, re.MULTILINE)
    return " ".join((found[0] if found else text).split())[:300]
