"""The program of a rank: `mpirun -np 21 python -m gkt_mpi.main --config launch/configs/cifar10.yaml`.

The program itself is in program.py; importing it takes most of a rank's start-up time.
"""

import gc
import socket
import sys
from collections.abc import Sequence

from gkt_mpi import __version__, startup
from gkt_mpi.errors import GktError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one rank and return its exit status; see `program.main`."""
    startup.begin()
    status = 1
    try:
        status = _run(sys.argv[1:] if arguments is None else arguments)
        return status
    except SystemExit as error:  # --print_config
        status = error.code if isinstance(error.code, int) else 0
        raise
    finally:
        startup.tell(status)


def _run(arguments: Sequence[str]) -> int:
    if asked := next((word for word in arguments if word in ("--help", "-h", "--version")), None):
        topic = [*arguments, ""][arguments.index(asked) + 1]
        return _explain(asked, "" if topic.startswith("-") else topic) if startup.launched_rank() == 0 else 0
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


def _explain(asked: str, topic: str) -> int:
    """Print the version, or the help on a topic, and return the exit status."""
    if asked == "--version":
        print(f"gkt_mpi {__version__}")
        return 0
    from gkt_mpi import usage

    try:
        print(usage.explain(topic))
    except GktError as error:
        print(f"gkt_mpi: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
