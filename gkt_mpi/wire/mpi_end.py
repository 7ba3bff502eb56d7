"""The end of the job on MPI: in good order, at once, or while there is no transport yet.

Without fault tolerance MPI ends all ranks. With `mpirun --with-ft ulfm` MPI_Abort ends one process only and
MPI_Finalize waits for the dead, so the ranks end each other.
"""

import contextlib
import os
import sys
import time
from typing import NoReturn

import numpy as np
from mpi4py import MPI

from gkt_mpi import startup
from gkt_mpi.errors import GktError, Interrupted
from gkt_mpi.wire.mpi_signs import Signs
from gkt_mpi.wire.peers import Peers
from gkt_mpi.wire.transport import SERVER
from gkt_mpi.wire.waiting import LONGEST_SLEEP_S, poll

_KILL_AFTER_S = 0.2
_SAY_WITHIN_S = 2.0  # after which the lowest rank has noticed, too, and printed its line
_FAREWELL_S = 5.0  # how long the server waits at the end for ranks that have fallen silent


class JobEnd:
    """The ways in which this rank ends, and the job with it."""

    def __init__(self, comm: MPI.Intracomm, peers: Peers, signs: Signs) -> None:
        self._comm, self._peers, self._signs = comm, peers, signs
        self._is_fault_tolerant = startup.is_fault_tolerant()

    def farewell(self, status: int) -> None:
        """Wait until all ranks are ready to end, and end this process with `status` at once if some have been lost.

        MPI's own end would wait for all of them, the dead and the silent too.
        """
        startup.companion.leave()
        nobody_died = np.array([not self._peers.lost], np.int32)
        if self._is_fault_tolerant:
            self._peers.kill(set(self._peers.silent))
        request = self._comm.Iagree(nobody_died) if self._is_fault_tolerant else self._comm.Ibarrier()
        until = time.monotonic() + (_FAREWELL_S if self._peers.silent else self._peers.timeout_s)
        with contextlib.suppress(MPI.Exception):  # which says that somebody has died
            poll(lambda: request.Test() or time.monotonic() > until)
        if time.monotonic() > until:  # somebody is silent, and will not end by itself
            self.abort(status)
        if not nobody_died[0]:
            _exit(status)

    def abort(self, status: int) -> NoReturn:
        """End the whole job at once."""
        if not self._is_fault_tolerant:
            startup.tell(status)
            MPI.COMM_WORLD.Abort(status)
        elif self._comm.rank == SERVER:
            for rank in self._peers.kill(set(range(self._comm.size)) - {SERVER}):  # those of other nodes
                self._signs.stop(rank)
        else:
            self._ask_for_the_end()
        _exit(status)

    def _ask_for_the_end(self) -> None:
        """Tell the server that this worker has failed, and wait until it says stop; if it is dead, end the others."""
        self._signs.fail()
        with contextlib.suppress(GktError, Interrupted):
            while SERVER not in self._peers.dead:  # nor says stop
                self._signs.keep_in_touch()
                time.sleep(LONGEST_SLEEP_S)
        if SERVER in self._peers.dead:
            # Two that killed each other would leave mpirun with status 0: the lowest rank comes first.
            time.sleep(_KILL_AFTER_S * (self._comm.rank - 1))
            self._peers.kill(set(range(self._comm.size)) - {self._comm.rank})  # one that hangs would keep the job


def end_job(status: int, why: str) -> NoReturn:
    """End all ranks while there is no transport; the lowest of those that live says why."""
    world = MPI.COMM_WORLD
    failed = set(world.Get_failed().Translate_ranks(None, world.Get_group()))
    if world.rank == min(set(range(world.size)) - failed):
        print(why, file=sys.stderr, flush=True)
    else:
        time.sleep(_SAY_WITHIN_S)  # mpirun may end the job as soon as one rank has exited
    _exit(status)


def _exit(status: int) -> NoReturn:
    """End this process without a word to MPI."""
    startup.tell(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
