"""A machine that executes PTX on a CPU, and says what no kernel may do: the code that Triton compiles, without a GPU.

What it shows is what PTX means. Not modelled: what ptxas makes of it, the memory model between multiprocessors (a byte
that one program writes and another touches is a fault, in whatever order), and time.

Read `program` (text), `machine` (threads in lock-step), `instructions` (each form), `arithmetic` (to the bit), `memory`
(bounds, races, counts).
"""

from bench.ptx.machine import execute
from bench.ptx.memory import Counts, KernelError, Region

__all__ = ["Counts", "KernelError", "Region", "execute"]
