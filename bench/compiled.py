"""What can be read off a compiled kernel: its resources, its accesses to every tensor, the occupancy they allow.

An access is attributed to a tensor by following its address back to the kernel's arguments, in the optimised LLVM IR
that both backends print. There, vector width is final: on NVIDIA the IR holds the PTX instructions themselves
(`ld.global.v4.b32`), on AMD a load or store becomes the instruction of its own size and alignment
(`buffer_load_dwordx4`, `global_store_dwordx4`). No count of bytes is needed, and loops and masks cannot mislead it.
"""

import re
import subprocess
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from triton import knobs
from triton.compiler import CompiledKernel


@dataclass(frozen=True)
class Multiprocessor:
    """What limits the warps (wavefronts) resident on one multiprocessor (compute unit), of four partitions each.

    Attributes:
        warps: in all.
        single: blocks of one warp.
        blocks: blocks of more than one.
        shared: bytes of shared memory (LDS).
        shared_unit: bytes in which it is allocated.
        shared_reserved: bytes that the system takes of each block.
    """

    warps: int
    single: int
    blocks: int
    shared: int
    shared_unit: int
    shared_reserved: int

    def occupancy(self, registers: int, shared: int, warps: int) -> float:
        """Share of `self.warps` that are resident, for blocks of `warps` warps.

        On either vendor's devices a lane of a partition has 512 registers, allocated in eights.
        """
        by_registers = 4 * (512 // round_up(max(registers, 1), 8))
        per_block = round_up(shared + self.shared_reserved, self.shared_unit)
        blocks = min(
            self.single if warps == 1 else self.blocks,
            min(by_registers, self.warps) // warps,
            self.shared // per_block if per_block else self.warps,
        )
        return blocks * warps / self.warps


# NVIDIA: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"; allocation units from the
# CUDA Occupancy Calculator. AMD: "AMD Instinct MI300" and "CDNA 4" Instruction Set Architecture reference guides, and
# "User Guide for AMDGPU Backend" of LLVM. Scalar registers never bring it below 7 of 8 and are left out.
MULTIPROCESSORS = {
    "sm_80": Multiprocessor(64, 32, 32, 164 * 1024, 128, 1024),
    "sm_90": Multiprocessor(64, 32, 32, 228 * 1024, 128, 1024),
    "sm_100": Multiprocessor(64, 32, 32, 228 * 1024, 128, 1024),
    "sm_120": Multiprocessor(48, 24, 24, 100 * 1024, 128, 1024),
    "gfx942": Multiprocessor(32, 32, 16, 64 * 1024, 512, 0),
    "gfx950": Multiprocessor(32, 32, 16, 160 * 1024, 1280, 0),
}


@dataclass(frozen=True)
class Resources:
    """What one thread, or one block, takes.

    Attributes:
        registers: vector registers of a thread; on AMD the accumulation registers among them.
        accumulation: on AMD, registers of the second file (AGPRs), where the compiler parks values it has no room for.
        spills: registers that were spilled. ptxas gives no count: on NVIDIA the words of the stack frame.
        local_bytes: stack and local (scratch) memory of a thread.
        shared_bytes: of a block.
    """

    registers: int
    accumulation: int
    spills: int
    local_bytes: int
    shared_bytes: int


def resources(compiled: CompiledKernel) -> Resources:
    """From `cuobjdump -res-usage` for NVIDIA, from the metadata of the code object for AMD."""
    if "cubin" in compiled.asm:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
            usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        figures = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
        local = figures["STACK"] + figures["LOCAL"]
        return Resources(figures["REG"], 0, local // 4, local, compiled.metadata.shared)
    found = re.findall(r"^\s*\.(\w+): +(\d+)$", compiled.asm["amdgcn"], re.MULTILINE)
    figures = {key: int(value) for key, value in found}
    return Resources(
        figures["vgpr_count"],
        figures.get("agpr_count", 0),
        figures["vgpr_spill_count"] + figures["sgpr_spill_count"],
        figures["private_segment_fixed_size"],
        max(figures["group_segment_fixed_size"], compiled.metadata.shared),
    )


def access_bytes(compiled: CompiledKernel) -> dict[str, Counter[int]]:
    """For every tensor argument, by name: how many load and store instructions of how many bytes a thread.

    One that is to one tensor in some programs and to another in others counts for both.
    """
    text = compiled.asm["llir"]
    body = text[text.index("\ndefine ") + 1 :]
    body = body[: body.index("\n}")]
    pointers = re.findall(r"ptr addrspace\(1\)[^%,]*(%[\w.]+)", body[: body.index("\n")])
    names = dict(zip(pointers, pointer_arguments(compiled), strict=False))  # scratch buffers follow the arguments
    values = Values(body)
    found: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for size, pointer in instructions(body):
        reached = {names[value] for value in values.behind(pointer) if value in names}
        if not reached:
            raise ValueError(f"{compiled.name}: {pointer} leads to no argument, expected one")
        for name in reached:
            found[name][size] += 1
    return dict(found)


def has_int64_base(compiled: CompiledKernel, name: str) -> bool:
    """Whether every address in the tensor `name` contains a 64-bit product, as the offset of a frame or clip must."""
    text = compiled.asm["ttir"]
    values = Values(text)
    found = False
    for pointer in re.findall(r"tt\.(?:load|store) (%[\w#]+)", text):
        behind = values.behind(pointer)
        if f"%{name}" in behind:
            found = True
            products = (values.definitions.get(value, "") for value in behind)
            if not any(re.match(r"arith\.muli .*(: |x)i64\b", product) for product in products):
                return False
    return found


def pointer_arguments(compiled: CompiledKernel) -> list[str]:
    """Names of the tensors in the kernel's signature."""
    signature = next(line for line in compiled.asm["ttir"].splitlines() if "tt.func public" in line)
    return re.findall(r"%([\w.]+): !tt\.ptr", signature)


class Values:
    """The definitions in a text in SSA form."""

    def __init__(self, text: str) -> None:
        self.definitions = dict(re.findall(r"^\s*(%[\w.]+)(?::\d+)? = (.*)$", text, re.MULTILINE))
        for carried in re.findall(r"iter_args\(([^)]*)\)", text):
            self.definitions |= dict(re.findall(r"(%\w+) = (%[\w#]+)", carried))

    def behind(self, value: str) -> set[str]:
        """All values that `value` is computed from, itself included, up to what is read from memory."""
        seen: set[str] = set()
        open_ends = [value]
        while open_ends:
            name = open_ends.pop().split("#")[0]
            if name in seen:
                continue
            seen.add(name)
            definition = self.definitions.get(name, "")
            if not re.search(r"\bload\b|\bld\.", definition):  # in `tt.load`, `buffer.load` and PTX alike
                open_ends += re.findall(r"%[\w.#]+", definition)
        return seen


ADDRESS = r"ptr addrspace\((?:1|8)\)[^%,]* (?P<address>%[\w.]+)"
# How the IR writes an access to global memory: a vector's length and bits, or bytes, or a type and an alignment. The
# first three stand before the address or behind it; copies straight into shared memory are among them.
ACCESSES = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?<![a-z])(?:ld|st)\.global[\w.:]*?(?:\.v(?P<count>\d))?\.b(?P<bits>\d+) .*?" + ADDRESS,
        r"\.buffer\.(?:load|store)\.(?:v(?P<count>\d))?[a-z]+(?P<bits>\d+)\(.*?" + ADDRESS,
        r"\bcp\.async\.\w+\.shared\.global \[.*?\], \[.*?\], 0x(?P<hexadecimal>\w+).*?" + ADDRESS,
        r"\.load\.(?:async\.)?(?:to\.)?lds[\w.]*\(" + ADDRESS + r", ptr addrspace\(3\) [^,]+, i32 (?P<bytes>\d+)",
        r"= load (?P<type>.+?), " + ADDRESS + r".*?, align (?P<align>\d+)",
        r"\bstore (?P<type><.+?>|\w+) .*, " + ADDRESS + r".*?, align (?P<align>\d+)",
    )
)
ANY_USE = re.compile(r"(\basm\b|\bcall\b|\bload\b|\bstore\b|atomicrmw|cmpxchg).*addrspace\((1|8)\)")
NO_ACCESS = re.compile(r"make\.buffer\.rsrc|llvm\.assume")


def instructions(body: str) -> Iterator[tuple[int, str]]:
    """Bytes and address of every access to global memory in the LLVM IR of a kernel.

    Raises ValueError for one in a form that is not known, rather than leave it out.
    """
    for line in body.splitlines()[1:]:
        if not ANY_USE.search(line) or NO_ACCESS.search(line):
            continue
        match = next((match for pattern in ACCESSES if (match := pattern.search(line))), None)
        if match is None:
            raise ValueError(f"an access to global memory in an unknown form: {line.strip()}")
        yield access_size(match.groupdict()), match["address"]


def access_size(found: dict[str, str | None]) -> int:
    """Bytes of an access, in any of the forms of `ACCESSES`."""
    if bits := found.get("bits"):
        return int(found.get("count") or 1) * int(bits) // 8
    if hexadecimal := found.get("hexadecimal"):
        return int(hexadecimal, 16)
    if size := found.get("bytes"):
        return int(size)
    return min(type_bytes(str(found["type"])), int(str(found["align"])))


def type_bytes(name: str) -> int:
    """The size of an LLVM type: `float`, `i16`, `<8 x bfloat>`."""
    count, scalar = re.fullmatch(r"(?:<(\d+) x )?(\w+)>?", name).groups()  # type: ignore[union-attr]
    bits = {"half": 16, "bfloat": 16, "float": 32, "double": 64}
    return int(count or 1) * (bits.get(scalar) or int(scalar.removeprefix("i"))) // 8


def round_up(n: int, unit: int) -> int:
    """The smallest multiple of `unit` that is not below `n`."""
    return -(-n // unit) * unit
