"""The command line of `python -m bench`."""

import tyro

from bench import ops


def main() -> None:
    """Parses the command line and runs the benchmark that it names."""
    ops.run(tyro.cli(ops.Ops, prog="python -m bench ops", description=ops.__doc__))


if __name__ == "__main__":
    main()
