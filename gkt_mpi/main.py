"""The program of a rank: `mpirun -np 21 python -m gkt_mpi.main --config launch/configs/cifar10.yaml`.

The program itself is in program.py; importing it takes most of a rank's start-up time.
"""

import gc
import socket
import sys
from collections.abc import Sequence

from gkt_mpi import startup


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one rank and return its exit status; see `program.main`."""
    startup.begin()
    status = 1
    try:
        status = _run(arguments)
        return status
    except SystemExit as error:  # --help
        status = error.code if isinstance(error.code, int) else 0
        raise
    finally:
        startup.tell(status)


def _run(arguments: Sequence[str] | None) -> int:
    # The imported modules are never garbage: without these two lines the garbage collector traverses torch's modules
    # dozens of times at the start and once more at the end, and import and exit take 1.9 s instead of 1.1 s.
    gc.disable()
    try:
        from gkt_mpi import program
    except ImportError as error:
        rank, host = startup.launched_rank(), socket.gethostname()
        print(f"[rank {rank}] gkt_mpi: {error}; is the environment on {host} complete?", file=sys.stderr, flush=True)
        return 2
    gc.freeze()
    gc.enable()
    return program.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
