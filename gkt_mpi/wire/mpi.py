"""The transport on MPI: a header and raw buffers through mpi4py's upper-case calls. Importing this starts MPI.

It is made of an outbox (mpi_outbox.py), an inbox (mpi_inbox.py), signs of life and of the end (mpi_signs.py), and the
end of the job (mpi_end.py). All of them know which ranks are lost (peers.py). Every send and receive is
non-blocking, and a rank that waits sleeps between looks (waiting.py).
"""

from collections.abc import Callable

import numpy as np
from mpi4py import MPI

from gkt_mpi.log.timeline import Timeline
from gkt_mpi.wire.contract import Contract
from gkt_mpi.wire.messages import Message
from gkt_mpi.wire.mpi_arriving import Arriving
from gkt_mpi.wire.mpi_buffers import LARGEST_SEND, Buffers
from gkt_mpi.wire.mpi_end import JobEnd
from gkt_mpi.wire.mpi_inbox import MpiInbox
from gkt_mpi.wire.mpi_outbox import MpiOutbox
from gkt_mpi.wire.mpi_signs import Signs
from gkt_mpi.wire.peers import Peers, deaths_raised
from gkt_mpi.wire.transport import Ledger


class MpiTransport:
    """Carries messages between the ranks of a communicator; see `Transport`."""

    def __init__(
        self, comm: MPI.Intracomm = MPI.COMM_WORLD, cuda_aware: bool = False, largest_send: int = LARGEST_SEND
    ) -> None:
        """`cuda_aware`: MPI may be given GPU memory; else it goes through pinned host memory.

        `largest_send`, in bytes, must be the same on all ranks. Raises `LostRankError` when another rank has died.
        """
        with deaths_raised():
            self.comm = comm.Dup()  # nobody else's messages get in between
            self.peers = Peers(self.comm)
        self.rank: int = self.comm.rank
        self.size: int = self.comm.size
        self.ledger = Ledger()
        self.timeline = Timeline()
        buffers = Buffers(cuda_aware, largest_send)
        self._signs = Signs(self.comm, self.peers)
        self._outbox = MpiOutbox(self.comm, self.peers, self._signs, buffers, self.ledger)
        arriving = Arriving(self.comm, self.peers, self._signs)
        self._inbox = MpiInbox(arriving, self.peers, self._signs, buffers, self.ledger, self.timeline)
        self._end = JobEnd(self.comm, self.peers, self._signs)

    @property
    def on_wait(self) -> Callable[[], None]:
        """What is called again and again while this rank waits; what it raises ends the wait."""
        return self._signs.on_wait

    @on_wait.setter
    def on_wait(self, call: Callable[[], None]) -> None:
        self._signs.on_wait = call

    def send(self, rank: int, message: Message) -> None:
        """Begin to send and return at once, to a lost rank nothing. The tensors must not change until `flush`."""
        self._outbox.send(rank, message)

    def flush(self, pending: int = 0) -> None:
        """Wait until at most `pending` sent messages are still leaving, not counting those to lost ranks."""
        self._outbox.flush(pending)

    def receive(self, contract: Contract) -> tuple[int, Message]:
        """Wait, without burning a core, for a message; see `Transport`."""
        return self._inbox.receive(contract)

    def receive_ready(self, contract: Contract) -> tuple[int, Message] | None:
        """Receive a message that has come, or return None; see `Transport`."""
        self._outbox.move()
        return self._inbox.receive_ready(contract)

    def set_timeout(self, seconds: float) -> None:
        """Count a rank as lost that is waited for and says nothing for so long."""
        self.peers.timeout_s = seconds

    def end_if_silent(self, seconds: float) -> None:
        """Have this rank ended when it has not said that it is alive for so long; see `Signs.end_if_silent`."""
        self._signs.end_if_silent(seconds)

    def stop(self, rank: int) -> None:
        """Tell a worker to stop at once."""
        self._signs.stop(rank)

    def keep_in_touch(self) -> None:
        """Say that this rank is alive, when it is time, and look for a sign to end; see `Transport`."""
        self._signs.keep_in_touch()

    def first_with(self, flag: bool) -> int | None:
        """Return the lowest rank whose flag is set, if any; all ranks call this.

        Raises `LostRankError` when one of them has died.
        """
        lowest = np.array([self.rank if flag else self.size])
        with deaths_raised():
            self.comm.Allreduce(MPI.IN_PLACE, lowest, op=MPI.MIN)
        return int(lowest[0]) if lowest[0] < self.size else None

    def farewell(self, status: int) -> None:
        """Wait until all ranks are ready to end; if some are lost, end this process with `status` at once."""
        self._end.farewell(status)

    def abort(self, status: int) -> None:
        """End the whole job at once."""
        self._end.abort(status)
