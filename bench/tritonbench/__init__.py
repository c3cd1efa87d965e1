"""Operators for tritonbench (meta-pytorch/tritonbench): a folder each, as its `tritonbench/operators` has them.

docs/neighbors.md says how they are put there. They measure what `bench.candidates` does, by that program's clocks.
"""
