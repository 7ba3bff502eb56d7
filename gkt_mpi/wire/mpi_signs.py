"""Signs between ranks: a worker says that it is alive or has failed, the server that all stop at once.

A sign is a message of no bytes under a tag of its own. Each rank also tells its watchdog process (startup.py) that it
is alive, and is ended by it when it no longer does.
"""

import contextlib
import faulthandler
import signal
import time
from collections.abc import Callable

import numpy as np
from mpi4py import MPI

from gkt_mpi import startup
from gkt_mpi.errors import GktError, Interrupted
from gkt_mpi.wire.mpi_buffers import Tag
from gkt_mpi.wire.peers import Peers
from gkt_mpi.wire.transport import SERVER

_SIGN_EVERY_S = 1.0
NO_BYTES: list[object] = [np.empty(0, np.uint8), MPI.BYTE]


class Signs:
    """The signs that this rank gives, and those that it looks for."""

    def __init__(self, comm: MPI.Intracomm, peers: Peers) -> None:
        self.on_wait: Callable[[], None] = lambda: None
        """Called between looks while this rank waits; what it raises ends the wait."""
        self._comm, self._peers = comm, peers
        self._last_alive = time.monotonic()

    def end_if_silent(self, seconds: float) -> None:
        """Have this rank ended, by SIGALRM, when it has not called `be_alive` for so long.

        It first prints what each thread is doing. Does nothing without fault tolerance, where the end of one rank would
        end the job, which can go on without it.
        """
        faulthandler.register(signal.SIGALRM, chain=True)
        startup.companion.expect(seconds)

    def be_alive(self) -> None:
        """Say that this rank is alive, once a second: to its watchdog, and on a worker to the server."""
        now = time.monotonic()
        if now - self._last_alive > _SIGN_EVERY_S:
            self._last_alive = now
            startup.companion.alive()
            if self._comm.rank != SERVER:
                self._give(SERVER, Tag.SIGN)

    def keep_in_touch(self) -> None:
        """Say that this rank is alive, and look for a sign to end; see `Transport.keep_in_touch` for what it raises."""
        self.be_alive()
        if self._comm.rank == SERVER:
            self._look_for_failures()
        else:
            self._look_for_stop()

    def between_looks(self) -> None:
        """Do what is to be done while this rank waits until something has left."""
        self.on_wait()
        if self._comm.rank == SERVER:
            self.be_alive()
        else:
            self.keep_in_touch()

    def stop(self, rank: int) -> None:
        """Tell a worker to stop at once."""
        if rank not in self._peers.dead:
            self._give(rank, Tag.SIGN)

    def fail(self) -> None:
        """Tell the server that this worker has failed."""
        self._give(SERVER, Tag.FAILURE)

    def take(self, source: int, tag: int) -> None:
        """Act on a sign from rank `source`.

        Raises `Interrupted` on a worker that is to stop, and `GktError` when `source` has failed.
        """
        if tag == Tag.FAILURE:
            raise GktError(f"ended, since rank {source} has failed")
        if self._comm.rank != SERVER:
            raise Interrupted("the server says stop")

    def _look_for_failures(self) -> None:
        status = MPI.Status()
        has_come = False
        with contextlib.suppress(MPI.Exception):  # a rank has died, which is found out elsewhere
            has_come = self._comm.Iprobe(MPI.ANY_SOURCE, Tag.FAILURE, status)
        if has_come:
            self.take(status.Get_source(), Tag.FAILURE)

    def _look_for_stop(self) -> None:
        has_come = False
        try:
            has_come = self._comm.Iprobe(SERVER, Tag.SIGN)
        except MPI.Exception as error:
            self._peers.note(error)
        self._peers.tell()
        if has_come:
            self.take(SERVER, Tag.SIGN)

    def _give(self, rank: int, tag: Tag) -> None:
        try:
            self._comm.Isend(NO_BYTES, rank, tag).Free()
        except MPI.Exception as error:
            self._peers.note(error)
