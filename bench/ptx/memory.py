"""Global and shared memory that know who touched which byte.

Programs of a grid run in any order, and a kernel here never reads what it writes. So a byte of global memory that is
written once must not be read, or written again, in the same launch; only one instruction of one program may write a
byte from several lanes, if all write the same. Threads of a program are ordered by barriers, those of a warp by
`bar.warp.sync` too: what two threads do to one byte of shared memory without one between is a race.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Index = NDArray[np.int64]
Mask = NDArray[np.bool_]

WARP, SECTOR, BANKS = 32, 32, 32
MOST_WARPS = 32
NOBODY = np.iinfo(np.int16).max
GUARD = 4096
"""Bytes between tensors, so that what runs past one meets none."""


class KernelError(Exception):
    """What no kernel may do. `check` names the rule, `message` what broke it, and where, once that is known."""

    def __init__(self, check: str, message: str) -> None:
        super().__init__(check, message)  # both, so that it passes from one process to another
        self.check, self.message = check, message

    def __str__(self) -> str:
        return f"{self.check}: {self.message}"


@dataclass(frozen=True, eq=False)
class Region:
    """The bytes of a tensor argument.

    Attributes:
        name: of the parameter.
        address: `data_ptr()`, which decides what is aligned and which tensors are one.
        data: a writable view of everything from there to the last element that the strides reach.
    """

    name: str
    address: int
    data: Bytes


@dataclass
class Traffic:
    """Requests (one a warp and instruction), the 32-byte sectors that they touch, and the bytes that they use."""

    requests: int = 0
    sectors: int = 0
    bytes: int = 0


@dataclass
class Counts:
    """What a launch did.

    Attributes:
        instructions: executed by warps, by the opcode's first part.
        traffic: with global memory, by parameter and `load` or `store`.
        shared_requests: of warps to shared memory.
        shared_wavefronts: passes over its banks that these took; one for each 128 bytes if no two threads conflict.
    """

    instructions: Counter[str] = field(default_factory=Counter)
    traffic: dict[tuple[str, str], Traffic] = field(default_factory=lambda: defaultdict(Traffic))
    shared_requests: int = 0
    shared_wavefronts: int = 0

    def requested(self, *directions: str) -> Traffic:
        """The sums over all parameters, of `load`, `store` or both."""
        parts = [one for (_, direction), one in self.traffic.items() if direction in directions]
        return Traffic(*(sum(getattr(one, name) for one in parts) for name in ("requests", "sectors", "bytes")))


def aligned(address: Index, size: int) -> None:
    """Vectors start at multiples of their size."""
    if (wrong := address % size != 0).any():
        raise KernelError("alignment", f"{size} bytes at address {address[wrong][0]:#x}")


class GlobalMemory:
    """The tensors of one launch, apart from one another."""

    def __init__(self, regions: Sequence[Region], counts: Counts) -> None:
        self.counts = counts
        self.names: list[str] = []
        self.starts: list[int] = []
        self.tensors: list[Region] = []
        self.addresses: dict[Region, int] = {}
        end = GUARD
        for region in sorted(regions, key=lambda region: (region.address, -region.data.size)):
            first = self.tensors[-1] if self.tensors else None
            if first is not None and region.address < first.address + first.data.size:
                if region.address + region.data.size > first.address + first.data.size:
                    raise NotImplementedError(f"{first.name} and {region.name} overlap in part")
                self.names[-1] += f", {region.name}"
                self.addresses[region] = self.starts[-1] + region.address - first.address
                continue
            start = (end // GUARD + 2) * GUARD + region.address % GUARD
            end = start + region.data.size
            self.names.append(region.name)
            self.starts.append(start)
            self.tensors.append(region)
            self.addresses[region] = start
        self.bytes = np.zeros(end, np.uint8)
        self.owner = np.full(end, -1, np.int16)
        self.read, self.written = np.zeros(end, bool), np.zeros(end, bool)
        for i, (start, region) in enumerate(zip(self.starts, self.tensors, strict=True)):
            self.bytes[start : start + region.data.size] = region.data
            self.owner[start : start + region.data.size] = i

    def write_back(self) -> None:
        """Into the tensors."""
        for start, region in zip(self.starts, self.tensors, strict=True):
            region.data[:] = self.bytes[start : start + region.data.size]

    def load(self, address: Index, size: int, warp: Index) -> Bytes:
        """For every lane its bytes, `(lanes, size)`."""
        at = self.located("load", address, size, warp)
        if (written := self.written[at]).any():
            raise KernelError(
                "race in global memory", f"load of {self.describe(at[written][0])}, which the launch writes"
            )
        self.read[at] = True
        return self.bytes[at]

    def store(self, address: Index, data: Bytes, warp: Index, program: Index) -> None:
        """From every lane its bytes, `(lanes, size)`."""
        at = self.located("store", address, data.shape[1], warp)
        if (touched := self.written[at] | self.read[at]).any():
            raise KernelError(
                "race in global memory", f"store to {self.describe(at[touched][0])}, which was touched before"
            )
        order = np.argsort(address, kind="stable")
        meet = np.diff(address[order]) == 0
        if (meet & (np.diff(program[order]) != 0)).any():
            raise KernelError(
                "race in global memory", f"two programs write {self.describe(address[order][:-1][meet][0])}"
            )
        self.bytes[at], self.written[at] = data, True
        if (differs := self.bytes[at] != data).any():
            raise KernelError("replicated store", f"lanes write different values to {self.describe(at[differs][0])}")

    def located(self, kind: str, address: Index, size: int, warp: Index) -> Index:
        """Where each byte is; what is outside every tensor is refused, what is inside counted."""
        aligned(address, size)
        at = address[:, None] + np.arange(size)
        inside = (at >= 0) & (at < self.bytes.size)
        owner = np.where(inside, self.owner[np.where(inside, at, 0)], -1)
        if (outside := ((owner < 0) | (owner != owner[:, :1])).any(1)).any():
            raise KernelError("bounds", f"{kind} of {size} bytes from {self.describe(address[outside][0])}")
        for i in np.unique(owner[:, 0]):
            mine = owner[:, 0] == i
            traffic = self.counts.traffic[self.names[i], kind]
            traffic.requests += len(np.unique(warp[mine]))
            sectors = [warp[mine] * self.bytes.size + at[mine, byte] // SECTOR for byte in (0, size - 1)]
            traffic.sectors += len(np.unique(sectors))
            traffic.bytes += len(np.unique(address[mine])) * size
        return at

    def describe(self, address: int) -> str:
        """An address by the tensor before it."""
        i = max(int(np.searchsorted(self.starts, address, side="right")) - 1, 0)
        return f"byte {address - self.starts[i]} of {self.names[i]} ({self.tensors[i].data.size} bytes)"


class Touched:
    """By which threads each byte was touched since they were last ordered: the lowest and the highest of them."""

    def __init__(self, programs: int, size: int) -> None:
        self.threads, self.warps = self._nobody(programs, size), self._nobody(programs, size)

    @staticmethod
    def _nobody(programs: int, size: int) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
        return np.full((programs, size), NOBODY, np.int16), np.full((programs, size), -1, np.int16)

    def add(self, at: tuple[Index, Index], thread: Index) -> None:
        """A thread of each lane, at all bytes of the lane."""
        low, high = self.threads
        np.minimum.at(low, at, thread)
        np.maximum.at(high, at, thread)

    def by_others(self, at: tuple[Index, Index], thread: Index) -> Mask:
        """Whether a byte was touched by another thread than the lane's, with nothing between that orders the two."""
        return np.logical_or(*(
            (high[at] >= 0) & ((low[at] != one) | (high[at] != one))
            for (low, high), one in ((self.threads, thread), (self.warps, thread // WARP))
        ))  # fmt: skip

    def order_warps(self) -> None:
        """Threads of a warp have waited for one another."""
        (low, high), (low_warp, high_warp) = self.threads, self.warps
        touched = high >= 0
        low_warp[touched] = np.minimum(low_warp[touched], low[touched] // WARP)
        high_warp[touched] = np.maximum(high_warp[touched], high[touched] // WARP)
        low[touched], high[touched] = NOBODY, -1

    def order_programs(self, programs: Index) -> None:
        """So have all threads of these programs."""
        for low, high in (self.threads, self.warps):
            low[programs], high[programs] = NOBODY, -1


class SharedMemory:
    """That of some programs, side by side."""

    def __init__(self, programs: int, size: int, counts: Counts) -> None:
        self.size, self.counts = size, counts
        self.bytes = np.zeros((programs, size), np.uint8)
        self.defined, self.pending = np.zeros((programs, size), bool), np.zeros((programs, size), bool)
        self.reads, self.writes = Touched(programs, size), Touched(programs, size)

    def load(self, address: Index, size: int, slot: Index, thread: Index) -> tuple[Bytes, Mask]:
        """For every lane its bytes, `(lanes, size)`, and whether all of them were ever written."""
        at = self.located("load", address, size, slot, thread)
        if self.writes.by_others(at, thread[:, None]).any():
            raise KernelError("race in shared memory", "load of what another thread wrote, with no barrier between")
        self.reads.add(at, thread[:, None])
        return self.bytes[at], np.asarray(self.defined[at].all(1))

    def store(self, address: Index, data: Bytes, slot: Index, thread: Index) -> None:
        """From every lane its bytes, `(lanes, size)`."""
        at = self.located("store", address, data.shape[1], slot, thread)
        self.refuse_readers(at, thread)
        if (self.writes.by_others(at, thread[:, None]) & (self.bytes[at] != data)).any():
            raise KernelError("race in shared memory", "two threads write different values, with no barrier between")
        self.writes.add(at, thread[:, None])
        self.bytes[at], self.defined[at] = data, True
        if (self.bytes[at] != data).any():
            raise KernelError("replicated store", "lanes write different values to one byte of shared memory")

    def announce(self, address: Index, size: int, slot: Index, thread: Index) -> None:
        """An asynchronous copy begins: until it is waited for, its bytes are nobody's to touch."""
        at = self.located("copy", address, size, slot, thread)
        self.refuse_readers(at, thread)
        self.pending[at] = True

    def arrive(self, address: Index, data: Bytes, slot: Index, thread: Index) -> None:
        """It has been waited for."""
        self.pending[slot[:, None], address[:, None] + np.arange(data.shape[1])] = False
        self.store(address, data, slot, thread)

    def refuse_readers(self, at: tuple[Index, Index], thread: Index) -> None:
        """Nobody overwrites what another may still read."""
        if self.reads.by_others(at, thread[:, None]).any():
            raise KernelError("race in shared memory", "store to what another thread loaded, with no barrier between")

    def located(self, kind: str, address: Index, size: int, slot: Index, thread: Index) -> tuple[Index, Index]:
        """Where each byte is; passes over the banks are counted."""
        aligned(address, size)
        if (outside := (address < 0) | (address + size > self.size)).any():
            raise KernelError(
                "bounds", f"{kind} of {size} bytes at {address[outside][0]} of {self.size} in shared memory"
            )
        at = slot[:, None], address[:, None] + np.arange(size)
        if self.pending[at].any():
            raise KernelError("race in shared memory", f"{kind} of what an asynchronous copy has yet to bring")
        warp = slot * MOST_WARPS + thread // WARP
        lanes_a_pass = min(WARP, BANKS * 4 // size)
        phase = warp * WARP + thread % WARP // lanes_a_pass
        words = np.unique([phase * self.size + (address + byte) // 4 for byte in range(0, size, 4)])
        bank = np.stack([words // self.size, words % self.size % BANKS])
        _, in_bank = np.unique(bank, axis=1, return_counts=True)
        phases = np.unique(bank, axis=1)[0]
        self.counts.shared_requests += len(np.unique(warp))
        self.counts.shared_wavefronts += int(
            np.maximum.reduceat(in_bank, np.unique(phases, return_index=True)[1]).sum()
        )
        return at
