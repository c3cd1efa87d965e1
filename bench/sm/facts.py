"""What a walk shows without a model: instructions that a vector of X takes, bytes that a warp asks for ahead."""

from collections import Counter
from dataclasses import dataclass

from bench.offline import Launch
from bench.sm.devices import Device
from bench.sm.model import SHUFFLES, dram_shares, pipe, resident, waited_group
from bench.sm.sass import SCOREBOARDS
from bench.sm.walk import LOADS, SECTOR, SHARED, Step, Walk

VECTOR_BYTES, LANES = 16, 32


@dataclass(frozen=True)
class Facts:
    """Of one launch; a vector is 16 bytes a lane that are loaded of tensors of X's size.

    Attributes:
        instructions: of a warp, a vector.
        mix: the same by pipe.
        shuffles, barriers, shared: of these kinds, a vector.
        passes: over the banks of shared memory, a vector: more than accesses where lanes conflict, or load vectors.
        in_flight: bytes of tensors of X's size that the resident warps of a multiprocessor have asked for when they
            wait for the first of them.
        ceiling: bytes a second of these tensors, if every slot for instructions were used.
        sectors: of each 128-byte line of these tensors that an access touches, how many it uses; four at most.
    """

    instructions: float
    mix: dict[str, float]
    shuffles: float
    barriers: float
    shared: float
    passes: float | None
    in_flight: float
    ceiling: float | None
    sectors: float | None


def facts(walk: Walk, launch: Launch, device: Device, large: set[str]) -> Facts | None:
    """None where the launch has no tensor of X's size (`large` names those) to load."""
    steps = [one for warp in walk.warps for one in warp]
    touches = [(one, access) for one, access in steps if access is not None and access.tensor in large]
    loaded = sum(access.fresh * SECTOR for one, access in touches if one.name in LOADS)
    if not loaded:
        return None
    vectors = loaded / (VECTOR_BYTES * LANES)
    names = Counter(one.name for one, _ in steps)
    mix = Counter(pipe(one) for one, _ in steps)
    shares = dram_shares(walk, launch)
    moved = sum(min(1.0, shares[access.tensor]) * access.fresh * SECTOR for _, access in touches)
    return Facts(
        instructions=len(steps) / vectors,
        mix={kind: count / vectors for kind, count in mix.items()},
        shuffles=sum(names[name] for name in SHUFFLES) / vectors,
        barriers=names["BAR"] / vectors,
        shared=sum(names[name] for name in SHARED) / vectors,
        passes=sum(access.lines for one, access in steps if access is not None and one.name in SHARED) / vectors,
        in_flight=resident(launch, device) * sum(asked_ahead(warp, large) for warp in walk.warps),
        ceiling=moved / len(steps) * device.issue_rate,
        sectors=sum(access.sectors for _, access in touches) / sum(access.lines for _, access in touches),
    )


def asked_ahead(warp: list[Step], large: set[str]) -> float:
    """Bytes that a warp's loads have asked for when it waits for one of them, on average, if none came before."""
    boards: list[list[int]] = [[] for _ in range(SCOREBOARDS)]
    group = 0
    seen: list[int] = []
    for one, access in warp:
        kept = [0 if one.wait >> board & 1 else len(boards[board]) for board in range(SCOREBOARDS)]
        if one.name == "DEPBAR":
            board, keep = waited_group(one)
            kept[board] = min(kept[board], keep)
        if any(sum(sizes[: len(sizes) - keep]) for sizes, keep in zip(boards, kept, strict=True)):
            seen.append(group + sum(map(sum, boards)))
        boards = [sizes[len(sizes) - keep :] for sizes, keep in zip(boards, kept, strict=True)]
        size = access.fresh * SECTOR if access and access.tensor in large and one.name in LOADS else 0
        if one.name == "LDGSTS":
            group += size
        elif one.write < SCOREBOARDS and (size or one.name == "LDGDEPBAR"):
            boards[one.write].append(size or group)
            group = group if size else 0
    return sum(seen) / len(seen) if seen else 0.0
