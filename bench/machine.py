"""What a figure was measured on: without it a time means nothing."""

import importlib.metadata
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Machine:
    """Device, threads, versions and commit.

    Attributes:
        device: the GPU's or the processor's own name.
        threads: torch.get_num_threads() when the figures were taken.
        vectors: the widest instruction set that torch uses on this processor.
        cuda: the CUDA version that torch was built for; None on the CPU.
        commit: of the working tree, marked "-dirty" if it was changed.
        keeps_memory: whether malloc was told to keep what tensors on the CPU free, for the next ones.
    """

    device: str
    threads: int
    vectors: str
    python: str
    torch: str
    triton: str
    torchvision: str
    cuda: str | None
    commit: str
    keeps_memory: bool = False

    def __str__(self) -> str:
        versions = f"torch {self.torch}, triton {self.triton}, torchvision {self.torchvision}, python {self.python}"
        cuda = f"CUDA {self.cuda}, " if self.cuda else ""
        memory = ", freed memory kept (mallopt)" if self.keeps_memory else ""
        return f"{self.device} ({self.vectors}), {self.threads} threads, {cuda}{versions}, commit {self.commit}{memory}"


def describe(device: str, threads: int, keeps_memory: bool = False) -> Machine:
    """The machine that this process runs on."""
    on_gpu = torch.device(device).type == "cuda"
    return Machine(
        device=torch.cuda.get_device_name(device) if on_gpu else cpu_name(),
        threads=threads,
        vectors=torch.backends.cpu.get_cpu_capability(),
        python=platform.python_version(),
        torch=torch.__version__,
        triton=version("triton"),
        torchvision=version("torchvision"),
        cuda=torch.version.cuda if on_gpu else None,
        commit=commit(),
        keeps_memory=keeps_memory,
    )


def cpu_name() -> str:
    """The processor's own name where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def version(package: str) -> str:
    """The installed version of a package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def commit() -> str:
    """The commit of the working tree, marked if it was changed; "unknown" outside a checkout."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return "unknown"
    return found.stdout.strip() or "unknown"
