"""Waiting for what other ranks send, and receiving it, where the sender may die or fall silent at any moment.

The size of what has come is looked at before it is received. Here it is bytes under a tag; mpi_inbox.py makes messages
of them.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from mpi4py import MPI

from gkt_mpi.errors import GktError, LostRankError
from gkt_mpi.wire.mpi_signs import Signs
from gkt_mpi.wire.peers import Peers, died
from gkt_mpi.wire.waiting import poll

_SCRATCH_BYTES = 2**16


class Found(NamedTuple):
    """What has come and can be received."""

    source: int
    tag: int
    size: int  # bytes; over 2 GiB some negative number


class Arriving:
    """What the other ranks of a communicator have sent to this one."""

    def __init__(self, comm: MPI.Intracomm, peers: Peers, signs: Signs) -> None:
        self._comm, self._peers, self._signs = comm, peers, signs
        self._aside: list[MPI.Message | None] = []  # what cannot be received

    def wait(self, awaited: Callable[[], set[int]], source: int = MPI.ANY_SOURCE) -> Found:
        """Wait until something can be received, from one rank or any.

        `awaited` returns the ranks whose silence counts. Raises `LostRankError` when another rank is lost, but while
        waiting for one `source` only for that one, and what `Signs.on_wait` raises.
        """
        found: Found | None = None

        def is_there() -> bool:
            """Whether something has come."""
            nonlocal found
            found = self.look(awaited, source)
            return found is not None

        poll(is_there)
        assert found is not None
        return found

    def look(self, awaited: Callable[[], set[int]], source: int = MPI.ANY_SOURCE) -> Found | None:
        """Return what has come; if nothing has, look whether the other ranks are alive, and return None.

        Raises as `wait` does.
        """
        # Open MPI's Iprobe looks first and takes in what has come only then: a single look is a sleep late.
        found = self._probe(source) or self._probe(source)
        if found is None:
            if source == MPI.ANY_SOURCE:
                self._peers.tell()
            self._peers.tell_of(source)
            self._peers.miss(awaited())
            self._signs.be_alive()
            self._signs.on_wait()
        return found

    def _probe(self, source: int) -> Found | None:
        """Return what has come; what a dead rank has left cannot be received and is left alone."""
        status = MPI.Status()
        try:
            if source == MPI.ANY_SOURCE and self._peers.dead:
                living = (rank for rank in range(self._comm.size) if rank not in self._peers.dead)
                has_come = any(self._comm.Iprobe(rank, MPI.ANY_TAG, status) for rank in living)
            else:
                has_come = self._comm.Iprobe(source, MPI.ANY_TAG, status)
        except MPI.Exception as error:
            self._peers.note(error)
            return None
        return Found(status.Get_source(), status.Get_tag(), status.Get_count(MPI.BYTE)) if has_come else None

    def take(self, found: Found, buffer: list[object]) -> bool:
        """Receive a small message that has come; False if its sender has died and it cannot be received any more."""
        try:
            self._comm.Recv(buffer, found.source, found.tag)
        except MPI.Exception as error:
            self._peers.note(error)
            return False
        return True

    def claim(self, found: Found) -> MPI.Message:
        """Return what has come, so that no other call can receive it. Raises `LostRankError`."""
        message = None
        try:
            message = self._comm.Improbe(found.source, found.tag)
        except MPI.Exception as error:
            self._peers.note(error)
        if message is None:
            self._peers.bury(found.source)
            raise died(found.source)
        return message

    def finish(self, begin: Callable[[], MPI.Request], source: int) -> None:
        """Begin to receive what has come from rank `source`, and wait until all of it is there; in any thread.

        Raises `LostRankError` when the sender has died, of which `Peers.tell` still has to tell, and `GktError` when it
        has fallen silent.
        """

        def is_done() -> bool:
            """Whether it is there; if not, whether its sender still sends."""
            if request.Test():
                return True
            if self._peers.is_silent(source):
                # What it sends when it comes back to life would overwrite what others have sent meanwhile.
                raise GktError(
                    f"rank {source} has not answered for {self._peers.timeout_s:g} s, in the middle of a message; "
                    "start the same command again to resume"
                )
            return False

        try:
            request = begin()
            poll(is_done)
        except MPI.Exception as error:
            self._peers.note(error)
            self._peers.bury(source)
            raise died(source) from None

    def drop(self, found: Found) -> None:
        """Receive and forget what has come, all of it into the same few bytes, whatever its size.

        A receive that is too small for its message would be simpler, but Open MPI 5.0.11 then overwrites memory. It
        cannot receive a message over 2 GiB at all: such a one is put aside for good. Raises `LostRankError`.
        """
        if found.size < 0:
            self._aside.append(self._comm.Improbe(found.source, found.tag))
            return
        scratch = np.empty(_SCRATCH_BYTES, np.uint8)
        chunk = MPI.BYTE.Create_contiguous(_SCRATCH_BYTES)
        overlaid = chunk.Create_hvector(2**31 - 1, 1, 0).Commit()  # room for 128 TiB, all in one place
        try:
            self.finish(partial(self._comm.Irecv, [scratch, 1, overlaid], found.source, found.tag), found.source)
        except LostRankError:
            self._peers.tell_of(found.source)
            raise
        overlaid.Free()
        chunk.Free()
