"""For tritonbench's loader."""

from .operator import Operator as Operator
