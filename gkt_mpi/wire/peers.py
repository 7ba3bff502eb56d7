"""Which ranks of a communicator are still there: the dead, as MPI tells of them, and the silent.

With fault tolerance (`mpirun --with-ft ulfm` of Open MPI 5) MPI raises an error in a call that a dead rank has to do
with, and all goes on with the others once the death is acknowledged; without, mpirun ends the job. The silent are
those that were waited for too long. They may come back to life, but nobody believes them any more.
"""

import contextlib
import math
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator

import numpy as np
from mpi4py import MPI

from gkt_mpi.errors import LostRankError
from gkt_mpi.wire.transport import SERVER

_DIED = (MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING)


@contextlib.contextmanager
def deaths_raised() -> Iterator[None]:
    """Turn the error of a collective call in which a dead rank has a part into `LostRankError`."""
    try:
        yield
    except MPI.Exception as error:
        if not _is_death(error):
            raise
        world = MPI.COMM_WORLD
        ranks = world.Get_failed().Translate_ranks(None, world.Get_group())
        raise LostRankError(min(ranks, default=-1), "has died") from None


def died(rank: int) -> LostRankError:
    """Return the error of a rank that has died while it was received from."""
    return LostRankError(rank, "has died in the middle of a message")


class Peers:
    """The other ranks, as this one knows them; all methods may be called in any thread."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        """All ranks of the communicator construct theirs together. Raises `MPI.Exception` when one has died."""
        self.timeout_s = math.inf
        # These two sets are replaced, never changed, so that any thread may read them without the lock.
        self.dead: frozenset[int] = frozenset()
        self.silent: frozenset[int] = frozenset()
        self._comm = comm
        self._news: deque[int] = deque()  # the dead of whom nobody has been told yet
        self._heard = dict.fromkeys(range(comm.size), time.monotonic())  # when each rank last said something
        self._last_look = time.monotonic()
        self._lock = threading.RLock()  # around all of the above; a signal's handler may come in while it is held
        self._process_of = _processes_of_node(comm)

    @property
    def lost(self) -> frozenset[int]:
        """The ranks that nothing is sent to any more."""
        return self.dead | self.silent

    def note(self, error: MPI.Exception) -> None:
        """Find out who has died; raises `error` again when it tells of something else."""
        if not _is_death(error):
            raise error
        failed = self._comm.Get_failed()
        self._comm.Ack_failed()
        for rank in failed.Translate_ranks(None, self._comm.Get_group()):
            self.bury(rank)

    def bury(self, rank: int) -> None:
        """Count a rank among the dead."""
        with self._lock:
            if rank not in self.lost:
                self._news.append(rank)
            self.dead |= {rank}

    def tell(self) -> None:
        """Raise `LostRankError` for a rank that has died since; to a worker only the server matters."""
        with self._lock:
            while self._news:
                rank = self._news.popleft()
                if SERVER in (self._comm.rank, rank):
                    raise LostRankError(rank, "has died")

    def tell_of(self, rank: int) -> None:
        """Raise `LostRankError` if this rank has died, in the middle of a message; `tell` then skips it."""
        with self._lock:
            if rank in self.dead:
                self._news = deque(other for other in self._news if other != rank)
                raise died(rank)

    def hear(self, rank: int) -> None:
        """Note that a rank has said something, or has just been asked: its time to answer begins."""
        with self._lock:
            self._heard[rank] = time.monotonic()

    def begin_wait(self) -> None:
        """Note that this rank has only now begun to listen.

        What others said meanwhile may still lie in MPI's queues, or nobody could say anything while the whole job was
        suspended: after a long pause the time in which the others have to say something begins anew.
        """
        with self._lock:
            self._look()

    def miss(self, awaited: set[int]) -> None:
        """Raise `LostRankError` for a rank of `awaited` that has been silent for `timeout_s`; for each only once.

        To be called between looks for messages.
        """
        with self._lock:
            for rank in awaited - self.lost:
                if self.is_silent(rank):
                    self.silent |= {rank}
                    raise LostRankError(rank, f"has not answered for {self.timeout_s:g} s")

    def is_silent(self, rank: int) -> bool:
        """Whether a rank has said nothing for `timeout_s`; to be called between looks for messages."""
        with self._lock:
            return self._look() - self._heard[rank] > self.timeout_s

    def _look(self) -> float:
        """Return the time; if this process has not looked for long, nobody has been silent so far."""
        now = time.monotonic()
        if now - self._last_look > self.timeout_s / 2:
            self._heard = dict.fromkeys(self._heard, now)
        self._last_look = now
        return now

    def kill(self, ranks: set[int]) -> set[int]:
        """Kill the processes of those ranks that run on this node; return the ranks that run on others."""
        for rank in ranks & self._process_of.keys():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process_of[rank], signal.SIGKILL)
        return ranks - self._process_of.keys()


def _is_death(error: MPI.Exception) -> bool:
    """Whether an error of MPI tells of a rank that has died."""
    return error.Get_error_class() in _DIED


def _processes_of_node(comm: MPI.Intracomm) -> dict[int, int]:
    """Return the process number of each rank on this node."""
    node = comm.Split_type(MPI.COMM_TYPE_SHARED, key=comm.rank)
    found = np.empty((node.size, 2), np.int64)
    node.Allgather(np.array([comm.rank, os.getpid()], np.int64), found)
    node.Free()
    return {int(rank): int(process) for rank, process in found}
