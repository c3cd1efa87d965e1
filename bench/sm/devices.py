"""GPUs as the model of a multiprocessor sees them: figures of data sheets, and the assumptions beside them."""

from dataclasses import dataclass, replace

import torch

from bench.offline import MULTIPROCESSORS

PARTITIONS = 4  # of a multiprocessor, each of which issues one instruction a cycle


@dataclass(frozen=True)
class Device:
    """A GPU as the model sees it.

    Attributes:
        target: what kernels are compiled for.
        name: of a product.
        multiprocessors: how many.
        gigahertz: the clock, while it works.
        bandwidth: of DRAM by the data sheet, bytes a second.
        l2_bandwidth: between L2 and all multiprocessors, bytes a second.
        fma_pipes: of 16 lanes in a partition, for float32.
        reached: share of `bandwidth` that a copy reaches.
        dram, l2, l1: latencies of a load, in cycles, from the load-store unit to the register.
        launch: cycles until a program's first instruction.
        overhead: microseconds of a launch beyond what the multiprocessor does.
    """

    target: str
    name: str
    multiprocessors: int
    gigahertz: float
    bandwidth: float
    l2_bandwidth: float
    fma_pipes: int = 2
    reached: float = 0.93
    dram: float = 800
    l2: float = 280
    l1: float = 38
    launch: float = 100
    overhead: float = 2.2

    @property
    def copied(self) -> float:
        """Bytes a second of a copy."""
        return self.bandwidth * self.reached

    @property
    def needed_in_flight(self) -> float:
        """Bytes that each multiprocessor must have asked for at any time to use all of it: latency × bandwidth."""
        return self.copied * self.dram / (self.gigahertz * 1e9) / self.multiprocessors

    @property
    def issue_rate(self) -> float:
        """Instructions of warps a second, at most."""
        return self.multiprocessors * PARTITIONS * self.gigahertz * 1e9


# Clocks and bandwidth: data sheets and white papers of the A100 (80 GB, SXM), H100 (SXM), B200 and
# MI300X. L1's and L2's latencies: microbenchmarks by Luo et al., "Benchmarking and Dissecting the Nvidia Hopper GPU
# Architecture" (2024), rounded, for all of NVIDIA's. L2's rate and DRAM's latency, that of memory under load, are
# assumptions. `overhead` is what launches measured on an H100 took beyond the model: see bench/README.md.
DEVICES = {
    device.target: device
    for device in (
        Device("sm_80", "A100", MULTIPROCESSORS["sm_80"], 1.41, 2.039e12, 4.0e12, fma_pipes=1),
        Device("sm_90", "H100", MULTIPROCESSORS["sm_90"], 1.755, 3.35e12, 5.5e12),
        Device("sm_100", "B200", MULTIPROCESSORS["sm_100"], 1.85, 8.0e12, 10e12),
        Device("gfx942", "MI300X", MULTIPROCESSORS["gfx942"], 2.1, 5.3e12, 17e12, dram=1600),
    )
}


def present(index: int = 0) -> Device:
    """The GPU with this number, by its own figures where torch tells them.

    Raises:
        ValueError: it is of a kind that is not in `DEVICES`.
    """
    properties = torch.cuda.get_device_properties(index)
    target = f"sm_{properties.major}{properties.minor}"
    if torch.version.hip is not None or target not in DEVICES:
        raise ValueError(f"device: got {properties.name} ({target}), expected one of {', '.join(DEVICES)}")
    known = DEVICES[target]
    clock, bus = (getattr(properties, name, 0) for name in ("memory_clock_rate", "memory_bus_width"))
    bandwidth = 2e3 * clock * bus / 8 or known.bandwidth  # two transfers a cycle of so many kHz
    return replace(known, name=properties.name, multiprocessors=properties.multi_processor_count, bandwidth=bandwidth)


def here() -> str | None:
    """The target of this machine's GPU, if it has one and a model is of that."""
    try:
        return present().target if torch.cuda.is_available() else None
    except ValueError:
        return None


def varied(device: Device, name: str, factor: float) -> Device:
    """The same with one of its figures another: "latency", "L1" or "bandwidth"."""
    changed = {"latency": ("dram", "l2"), "L1": ("l1",), "bandwidth": ("bandwidth", "l2_bandwidth")}[name]
    return replace(device, **{one: getattr(device, one) * factor for one in changed})
