"""Runs all ranks as threads of this process, without mpirun: for debugging with a breakpoint, and for tests."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from gkt_mpi.config import RunConfig
from gkt_mpi.federation.faults import Interrupt
from gkt_mpi.ranks.rank import run_rank
from gkt_mpi.wire.local import LocalTransport, run_local


def run_in_threads(config: RunConfig, num_ranks: int, timeout_s: float = threading.TIMEOUT_MAX) -> list[int]:
    """Run server and workers as threads and return their exit statuses by rank.

    The results are those of processes. Ctrl-C saves the state of the run, then raises `KeyboardInterrupt`. What a rank
    raises is raised here; `TimeoutError` after `timeout_s` seconds.
    """
    interrupt = Interrupt()

    def run(transport: LocalTransport) -> int:
        """Run one rank."""
        return run_rank(config, transport, (transport.rank, num_ranks, True), interrupt)

    with ThreadPoolExecutor(1) as beside:  # so that this thread can be interrupted while the ranks run
        job = beside.submit(partial(run_local, num_ranks, run, timeout_s))
        try:
            return job.result()
        except KeyboardInterrupt:
            interrupt.name = "Ctrl-C"
            job.result()
            raise
