"""A rank of a run: the server or a worker."""

import sys
from collections.abc import Callable

from gkt_mpi.config import RunConfig
from gkt_mpi.errors import ConfigError, GktError, Interrupted, LostRankError
from gkt_mpi.federation.faults import Interrupt
from gkt_mpi.placement import place
from gkt_mpi.ranks.serve import serve
from gkt_mpi.ranks.work import work
from gkt_mpi.wire.messages import Stop
from gkt_mpi.wire.transport import SERVER, Transport


def run_rank(
    config: RunConfig,
    transport: Transport,
    node_place: tuple[int, int, bool],
    interrupt: Interrupt | None = None,
    abort: Callable[[int], None] = sys.exit,
) -> int:
    """Run the server or a worker to the end of the run; `node_place` is (local rank, local size, has the server).

    Returns the exit status. A `ConfigError` on the server, which always precedes training, and a signal to `interrupt`
    stop the workers in an orderly way; if this takes too long after a signal, `abort` ends the job.
    """
    if transport.rank != SERVER:
        try:
            work(config, transport, node_place)
        except Interrupted:
            pass
        except LostRankError as error:
            raise GktError(f"{error}, which is the server; start the same command again to resume") from error
        return 0
    try:
        config.for_ranks(transport.size)  # refuses a single rank
        placement = place(config.placement, *node_place)
        return serve(config, transport, placement, interrupt or Interrupt(), abort)
    except (ConfigError, Interrupted) as error:
        for rank in range(1, transport.size):
            transport.send(rank, Stop())
        transport.on_wait = lambda: None
        transport.flush()
        return refuse(error, transport.rank)


def refuse(error: GktError | Interrupted, rank: int) -> int:
    """Print an error as one line on standard error and return its exit status."""
    where = "" if rank == SERVER else f"[rank {rank}] "
    print(f"{where}gkt_mpi: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    return error.exit_status
