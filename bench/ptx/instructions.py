"""Every instruction that Triton emits for these kernels, by the forms in which it does."""

from collections.abc import Callable

import numpy as np

from bench.ptx import arithmetic
from bench.ptx.arithmetic import ALLOWED, Array, bfloat16, flushed
from bench.ptx.machine import Handler, Instruction, Known, Lanes, Machine, all_known, chosen
from bench.ptx.memory import WARP, Index, KernelError, Mask

Active = Mask | None

COMPARISONS = {
    "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "eq": np.equal, "ne": np.not_equal,
}  # fmt: skip
BINARY = {
    "add": np.add, "sub": np.subtract, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    "min": np.fmin, "max": np.fmax,
}  # fmt: skip
BINARY_NAN = {"min": np.minimum, "max": np.maximum}
UNARY = {"neg": np.negative, "abs": np.abs, "not": np.invert}
APPROXIMATE: dict[str, Callable[[Array], Array]] = {
    "ex2": np.exp2,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "rcp": lambda x: 1 / x,
}


def elementwise(machine: Machine, lanes: Lanes, instruction: Instruction, active: Active) -> None:
    """Results that depend on the operands of the same lane alone, all of one type."""
    name, *_, kind = opcode = instruction.opcode
    destination, *sources = instruction.operands
    operands = [machine.read(lanes, source, kind) for source in sources]
    values = [value for value, _ in operands]
    known = all_known(*(known for _, known in operands))
    if name in BINARY:
        result = (BINARY_NAN if "NaN" in opcode else BINARY)[name](*values)
        if kind == "bf16":
            result = bfloat16(result)  # of float32, whose own rounding of such a sum does no harm
    elif name in UNARY:
        result = UNARY[name](*map(flushed, values) if "ftz" in opcode else values)
    elif kind[0] == "f":
        result = floating(machine, name, values, "ftz" in opcode, "rn" in opcode)
    else:
        if name in ("div", "rem") and (chosen(values[1], lanes, active) == 0).any():
            raise KernelError("arithmetic", "an integer is divided by zero")
        quotient = arithmetic.quotient(*values[:2]) if name in ("div", "rem") else values[0]
        result = quotient if name == "div" else values[0] - quotient * values[1]
    machine.write(lanes, destination, result, known, active)


def floating(machine: Machine, name: str, values: list[Array], flush: bool, rounded_exactly: bool) -> Array:
    """One float32 operation, rounded once."""
    if flush:
        values = [flushed(value) for value in values]
    if name == "mul":
        result = np.multiply(*values)
    elif name == "fma":
        result = arithmetic.fused(*values)
    elif name in ("div", "sqrt") and rounded_exactly:
        result = (np.divide if name == "div" else np.sqrt)(*values)
    elif name == "div":
        result = arithmetic.approximate(name, np.divide(*(v.astype(np.float64) for v in values)), machine.error)
    else:
        result = arithmetic.approximate(name, APPROXIMATE[name](values[0].astype(np.float64)), machine.error)
    return flushed(result) if flush else result


def multiply(machine: Machine, lanes: Lanes, instruction: Instruction, active: Active) -> None:
    """Integers: a half of a product or all of it, and what is added to it."""
    name, half, kind = instruction.opcode
    a, b, *addend = instruction.operands[1:]
    (left, known_left), (right, known_right) = machine.read(lanes, a, kind), machine.read(lanes, b, kind)
    result, known = arithmetic.product(left, right, kind, half), all_known(known_left, known_right)
    if name == "mad":
        added, known_added = machine.read(lanes, addend[0], arithmetic.double(kind) if half == "wide" else kind)
        result, known = result + added, all_known(known, known_added)
    machine.write(lanes, instruction.operands[0], result, known, active)


def mixed(machine: Machine, lanes: Lanes, instruction: Instruction, active: Active) -> None:
    """A float32 sum of which all but the last term, or the factors of it, are in half precision."""
    name, *_, kind, half = instruction.opcode
    *terms, last = instruction.operands[1:]
    operands = [*(machine.read(lanes, term, half) for term in terms), machine.read(lanes, last, kind)]
    values = [value.astype(np.float32) for value, _ in operands]
    result = arithmetic.fused(*values) if name == "fma" else BINARY[name](*values)
    machine.write(lanes, instruction.operands[0], result, all_known(*(known for _, known in operands)), active)


def shift(machine: Machine, lanes: Lanes, instruction: Instruction, active: Active) -> None:
    """Whatever is shifted out is lost."""
    name, kind = instruction.opcode
    value, known = machine.read(lanes, instruction.operands[1], kind)
    amount, known_amount = machine.read(lanes, instruction.operands[2], "u32")
    result = arithmetic.shifted(value, amount, name == "shl")
    machine.write(lanes, instruction.operands[0], result, all_known(known, known_amount), active)


def bit_field(machine: Machine, lanes: Lanes, instruction: Instruction, active: Active) -> None:
    """Some bits out of a word."""
    destination, source, start, length = instruction.operands
    value, known = machine.read(lanes, source, instruction.opcode[1])
    machine.write(lanes, destination, arithmetic.field(value, int(str(start)), int(str(length))), known, active)


def permute(machine: Machine, lanes: Lanes, instruction: Instruction, active: Active) -> None:
    """Bytes of two words."""
    destination, first, second, selector = instruction.operands
    (a, known_a), (b, known_b) = machine.read(lanes, first, "u32"), machine.read(lanes, second, "u32")
    digits, known = machine.read(lanes, selector, "u32")
    machine.write(lanes, destination, arithmetic.permuted(a, b, digits), all_known(known_a, known_b, known), active)


def select(machine: Machine, lanes: Lanes, instruction: Instruction, active: Active) -> None:
    """Only the operand that is taken needs to be known."""
    destination, yes, no, which = instruction.operands
    kind = instruction.opcode[-1]
    (a, known_a), (b, known_b) = machine.read(lanes, yes, kind), machine.read(lanes, no, kind)
    condition, known = machine.read(lanes, which, "pred")
    if known_a is not None or known_b is not None:
        taken = np.where(condition, True if known_a is None else known_a, True if known_b is None else known_b)
        known = all_known(known, taken)
    machine.write(lanes, destination, np.where(condition, a, b), known, active)


def compare(machine: Machine, lanes: Lanes, instruction: Instruction, active: Active) -> None:
    """A predicate."""
    _, comparison, kind = instruction.opcode
    (a, known_a), (b, known_b) = (machine.read(lanes, source, kind) for source in instruction.operands[1:])
    nan = np.isnan(a) | np.isnan(b) if kind[0] == "f" else np.zeros(1, bool)
    if comparison in ("nan", "num"):
        result = nan == (comparison == "nan")
    else:  # the forms that end in u hold of what is no number, the others do not
        result = COMPARISONS[comparison[:2]](a, b)
        result = result | nan if comparison.endswith("u") else result & ~nan
    machine.write(lanes, instruction.operands[0], result, all_known(known_a, known_b), active)


def move(machine: Machine, lanes: Lanes, instruction: Instruction, active: Active) -> None:
    """Between registers; vectors are packed and taken apart, lowest bits first."""
    destination, source = instruction.operands
    kind = instruction.opcode[1]
    if isinstance(destination, tuple):
        value, known = machine.halves(lanes, source, kind)
        width = 8 * value.dtype.itemsize // len(destination)
        for i, register in enumerate(destination):
            part = (value >> value.dtype.type(width * i)).astype(f"u{width // 8}")
            half = None if known is None else known[:, i * known.shape[1] // len(destination)]
            machine.write(lanes, register, part, half, active)
    elif isinstance(source, tuple):
        width, dtype = int(kind[1:]) // len(source), np.dtype(f"u{int(kind[1:]) // 8}")
        parts = [machine.read(lanes, register, f"u{width}") for register in source]
        packed = np.bitwise_or.reduce(
            np.broadcast_arrays(*(part.astype(dtype) << dtype.type(width * i) for i, (part, _) in enumerate(parts)))
        )
        known = all_known(*(known for _, known in parts))
        if known is not None and len(parts) == 2:
            known = np.stack([np.broadcast_to(True if k is None else k, len(lanes)) for _, k in parts], axis=1)
        machine.write(lanes, destination, packed, known, active)
    else:
        machine.write(lanes, destination, *machine.halves(lanes, source, kind), active)


def convert(machine: Machine, lanes: Lanes, instruction: Instruction, active: Active) -> None:
    """Integers keep their low bits or are extended; floating point is rounded to nearest."""
    *_, target, kind = instruction.opcode
    operands = [machine.read(lanes, source, kind) for source in instruction.operands[1:]]
    known = all_known(*(known for _, known in operands))
    results = [rounded(value, target.removesuffix("x2")) for value, _ in operands]
    if target.endswith("x2"):
        high, low = results
        results = [high.astype(np.uint32) << np.uint32(16) | low]
    machine.write(lanes, instruction.operands[0], results[0], known, active)


def rounded(values: Array, target: str) -> Array:
    """To nearest, ties to even."""
    if target == "bf16":
        return bfloat16(values)
    result = values.astype(arithmetic.TYPES[target])
    return result.view(np.uint16) if target == "f16" else result


def registers(operand: str | tuple[str, ...]) -> tuple[str, ...]:
    """One or several."""
    return operand if isinstance(operand, tuple) else (operand,)


def load(machine: Machine, lanes: Lanes, instruction: Instruction, active: Active) -> None:
    """From parameters, global or shared memory, into one register or several."""
    target, source = instruction.operands
    space, kind = instruction.opcode[1], instruction.opcode[-1]
    if space == "param":
        machine.write(lanes, str(target), machine.arguments[str(source)[1:-1]], None, active)
        return
    names, width = registers(target), int(kind[1:]) // 8
    address = machine.address(lanes, source, active)
    known: Known = None
    if space == "global":
        data = machine.memory.load(address, width * len(names), chosen(lanes.warp, lanes, active))
    else:
        data, known = machine.shared.load(address, width * len(names), *owners(lanes, active))
    every = np.zeros((len(lanes), data.shape[1]), np.uint8)
    every[slice(None) if active is None else active] = data
    known = spread(known, lanes, active)
    for i, name in enumerate(names):
        part = np.ascontiguousarray(every[:, width * i : width * (i + 1)]).view(f"u{width}")[:, 0]
        machine.write(lanes, name, part, known, active)


def spread(known: Known, lanes: Lanes, active: Active) -> Known:
    """What is known of the active lanes, of all."""
    if known is None or known.all():
        return None
    every = np.ones(len(lanes), bool)
    every[slice(None) if active is None else active] = known
    return every


def owners(lanes: Lanes, active: Active) -> tuple[Index, Index]:
    """Whose shared memory it is, and which thread."""
    return chosen(lanes.slot, lanes, active), chosen(lanes.thread, lanes, active)


def store(machine: Machine, lanes: Lanes, instruction: Instruction, active: Active) -> None:
    """One register or several, to global or shared memory."""
    target, source = instruction.operands
    kind = f"u{instruction.opcode[-1][1:]}"
    address = machine.address(lanes, target, active)
    parts = [np.ascontiguousarray(machine.sure(lanes, name, kind, active)) for name in registers(source)]
    data = np.concatenate([part.view(np.uint8).reshape(len(part), -1) for part in parts], axis=1)
    if instruction.opcode[1] == "global":
        machine.memory.store(address, data, chosen(lanes.warp, lanes, active), chosen(lanes.program, lanes, active))
    else:
        machine.shared.store(address, data, *owners(lanes, active))


def copy(machine: Machine, lanes: Lanes, instruction: Instruction, active: Active) -> None:
    """From global to shared memory; what is beyond the source's size is zero. It arrives when it is waited for."""
    target, source, size, *given = instruction.operands
    width = int(str(size), 0)
    mask = np.ones(len(lanes), bool) if active is None else active
    used = np.full(len(lanes), width)
    if given:
        used[mask] = machine.sure(lanes, given[0], "u32", active)
    if ((used != 0) & (used != width) & mask).any():
        raise NotImplementedError(f"part of a copy: {instruction}")
    data = np.zeros((len(lanes), width), np.uint8)
    if (reads := mask & (used > 0)).any():
        data[reads] = machine.memory.load(machine.address(lanes, source, reads), width, lanes.warp[reads])
    address = np.zeros(len(lanes), np.int64)
    address[mask] = machine.address(lanes, target, active)
    machine.shared.announce(address[mask], width, *owners(lanes, active))
    lanes.copies[-1].append((address, data, mask))


def commit(machine: Machine, lanes: Lanes, instruction: Instruction, active: Active) -> None:
    """What was copied since the last time is a group."""
    lanes.copies.append([])


def wait(machine: Machine, lanes: Lanes, instruction: Instruction, active: Active) -> None:
    """Until at most so many of the committed groups are under way."""
    while len(lanes.copies) - 1 > int(str(instruction.operands[0])):
        for address, data, mask in lanes.copies.pop(0):
            machine.shared.arrive(address[mask], data[mask], lanes.slot[mask], lanes.thread[mask])


def warp_barrier(machine: Machine, lanes: Lanes, instruction: Instruction, active: Active) -> None:
    """Threads of each warp wait for one another."""
    machine.shared.reads.order_warps()
    machine.shared.writes.order_warps()


def shuffle(machine: Machine, lanes: Lanes, instruction: Instruction, active: Active) -> None:
    """Each lane takes another's value, of its own warp."""
    destination, source, which, clamp, members = instruction.operands
    if (clamp, members) != ("31", "-1"):
        raise NotImplementedError(f"shuffle among some lanes: {instruction}")
    value, known = machine.read(lanes, source, "b32")
    number, known_number = machine.read(lanes, which, "u32")
    lane = np.arange(len(lanes)) % WARP
    other = lane ^ number.astype(np.int64) if "bfly" in instruction.opcode else number.astype(np.int64) % WARP
    at = np.arange(len(lanes)) - lane + other
    taken = np.broadcast_to(value, len(lanes))[at]
    known = None if known is None else np.broadcast_to(known, len(lanes))[at]
    machine.write(lanes, destination, taken, all_known(known, known_number), active)


def load_matrices(machine: Machine, lanes: Lanes, instruction: Instruction, active: Active) -> None:
    """8×8 matrices of 16-bit elements: eight lanes name the rows of each, each lane gets two elements of each."""
    names, lane = registers(instruction.operands[0]), np.arange(len(lanes)) % WARP
    naming = lane < 8 * len(names)
    rows = np.zeros((len(lanes), 16), np.uint8)
    known = np.zeros(len(lanes), bool)
    address = machine.address(lanes, instruction.operands[1], naming)
    rows[naming], known[naming] = machine.shared.load(address, 16, *owners(lanes, naming))
    elements, first = rows.view(np.uint16), np.arange(len(lanes)) - lane
    for i, name in enumerate(names):
        if "trans" in instruction.opcode:
            places = [(first + 8 * i + 2 * (lane % 4) + j, lane // 4) for j in (0, 1)]
        else:
            places = [(first + 8 * i + lane // 4, 2 * (lane % 4) + j) for j in (0, 1)]
        low, high = (elements[place].astype(np.uint32) for place in places)
        machine.write(lanes, name, high << np.uint32(16) | low, all_known(*(known[row] for row, _ in places)), active)


def store_matrices(machine: Machine, lanes: Lanes, instruction: Instruction, active: Active) -> None:
    """The reverse."""
    names, lane = registers(instruction.operands[1]), np.arange(len(lanes)) % WARP
    naming = lane < 8 * len(names)
    pairs = np.stack([machine.sure(lanes, name, "u32", active) for name in names])
    first, row, column = (np.arange(len(lanes)) - lane)[:, None], (lane % 8)[:, None], np.arange(8)
    if "trans" in instruction.opcode:
        row, column = column, row
    elements = pairs.view(np.uint16).reshape(*pairs.shape, 2)
    matrix = np.minimum(lane // 8, len(names) - 1)[:, None]
    rows = np.ascontiguousarray(elements[matrix, first + 4 * row + column // 2, column % 2]).view(np.uint8)
    machine.shared.store(machine.address(lanes, instruction.operands[0], naming), rows[naming], *owners(lanes, naming))


INTEGER = r"[sub](16|32|64)"
FORMS: dict[str, Handler] = {
    rf"(add|sub)\.({INTEGER}|[su]16x2|(rn\.)?(b?f16|f32(x2)?|f64))": elementwise,
    rf"(min|max)\.{INTEGER}|(min|max)(\.NaN)?\.f32|(min|max)\.f64": elementwise,
    rf"(div|rem)\.{INTEGER}": elementwise,
    r"(and|or|xor|not)\.(pred|b16|b32|b64)": elementwise,
    r"(neg|abs)\.(s16|s32|s64|(ftz\.)?f32|f64)": elementwise,
    r"(mul(\.rn)?|fma\.rn)\.(f32(x2)?|f64)|(div|sqrt)\.rn\.(f32|f64)": elementwise,
    rf"div\.full(\.ftz)?\.f32|({'|'.join(ALLOWED)})\.approx(\.ftz)?\.f32": elementwise,
    r"(fma\.rn|(add|sub)(\.rn)?)\.f32\.(f16|bf16)": mixed,
    r"(mul|mad)\.(lo\.[su](16|32|64)|wide\.[su](16|32))|mul\.hi\.[su](16|32|64)": multiply,
    r"(shl\.b|shr\.[usb])(16|32|64)": shift,
    r"bfe\.[su]32": bit_field,
    r"prmt\.b32": permute,
    r"selp\.[usbf](16|32|64)": select,
    rf"setp\.(eq|ne|lt|le|gt|ge)\.{INTEGER}|setp\.((eq|ne|lt|le|gt|ge)u?|nan|num)\.(f32|f64)": compare,
    r"mov\.(pred|[usbf](16|32|64))": move,
    r"cvt\.[us](16|32|64)\.[us](8|16|32|64)": convert,
    r"cvt\.(f32\.(f16|bf16)|rn\.(bf16|f16)(x2)?\.f32|f64\.f32|rn\.f32\.f64|rn\.(f32|f64)\.[su](16|32|64))": convert,
    r"ld\.param\.[busf](32|64)": load,
    r"ld\.(global|shared)(\.L1::evict_(first|last|normal))?(\.v[24])?\.[busf](8|16|32|64)": load,
    r"st\.(global|shared(::cta)?)(\.L1::evict_(first|last|normal))?(\.v[24])?\.[busf](8|16|32|64)": store,
    r"cp\.async\.c[ag]\.shared\.global": copy,
    r"cp\.async\.commit_group": commit,
    r"cp\.async\.wait_group": wait,
    r"bar\.warp\.sync": warp_barrier,
    r"shfl\.sync\.(bfly|idx)\.b32": shuffle,
    r"ldmatrix\.sync\.aligned\.m8n8\.x[124](\.trans)?\.shared\.b16": load_matrices,
    r"stmatrix\.sync\.aligned\.m8n8\.x[124](\.trans)?\.shared\.b16": store_matrices,
}
