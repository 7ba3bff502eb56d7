"""The program of a rank: `mpirun -np 21 python -m gkt_mpi.main --config launch/configs/cifar10.yaml`.

What it does stands in program.py. Here it is imported, which takes most of the time in which a rank starts.
"""

import gc
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one rank and return its exit status; see `program.main`."""
    # Of what is imported nothing is garbage, now or later: without these two lines the collector goes through torch's
    # modules dozens of times at the start and once more at the end, which makes 1.1 s of import and exit 1.9 s.
    gc.disable()
    from gkt_mpi import program

    gc.freeze()
    gc.enable()
    return program.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
