"""Sending on MPI: every send is non-blocking, and what is leaving is kept until it has left.

A message is one send for the header and one for each buffer of the payload: more for a buffer that is too large for
one send, none for an empty one. Over a network MPI moves a large message only inside its calls, so while something is
leaving, a second thread makes these calls and the first can compute.
"""

import threading
from collections import deque
from typing import NamedTuple

import torch
from mpi4py import MPI
from torch import Tensor

from gkt_mpi.wire.header import HEADER_BYTES
from gkt_mpi.wire.messages import Message, to_wire
from gkt_mpi.wire.mpi_buffers import Buffers, Tag, memory
from gkt_mpi.wire.mpi_signs import Signs
from gkt_mpi.wire.peers import Peers
from gkt_mpi.wire.transport import Ledger
from gkt_mpi.wire.waiting import LONGEST_SLEEP_S, poll

_MOVE_EVERY_S = 1e-3  # the shortest pause of the second thread; a rank that waits looks more often


class _Sent(NamedTuple):
    """A message that is leaving."""

    rank: int
    requests: list[MPI.Request]
    buffers: list[Tensor]  # keeps the memory alive that MPI reads


class Leaving:
    """The messages that are leaving, oldest first; all methods may be called in any thread."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._messages: deque[_Sent] = deque()
        self._abandoned: list[_Sent] = []  # to lost ranks: MPI may still read this memory
        self._num_left = 0
        self._changed = threading.Condition()  # around all of the above, and around tests of the requests
        self._is_leaving = threading.Event()

    def add(self, rank: int, requests: list[MPI.Request], buffers: list[Tensor]) -> None:
        """Keep the buffers of a message to `rank` until its requests are complete."""
        with self._changed:
            self._messages.append(_Sent(rank, requests, buffers))
            self._is_leaving.set()

    def move(self) -> int:
        """Let MPI move what is leaving; drop the messages that have left and return how many have not.

        A message to a lost rank counts as left.
        """
        with self._changed:
            while self._messages:
                oldest = self._messages[0]
                try:
                    has_left = MPI.Request.Testall(oldest.requests)
                except MPI.Exception:  # its receiver has died
                    has_left = False
                    self._peers.bury(oldest.rank)
                if not has_left and oldest.rank not in self._peers.lost:
                    break
                self._messages.popleft()
                self._num_left += 1
                self._changed.notify_all()
                if not has_left:
                    self._abandoned.append(oldest)
            if not self._messages:
                self._is_leaving.clear()
            return len(self._messages)

    def wait(self, pending: int, seconds: float) -> None:
        """Wait until at most `pending` messages are leaving, as another thread moves them, or `seconds` have passed."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._messages) <= pending, seconds)

    def keep_moving(self) -> None:
        """Move what is leaving as long as this process lives: the second thread."""
        while self._is_leaving.wait():
            before = self._count()
            poll(lambda: self.move() == 0 or self._count() > before, _MOVE_EVERY_S, 0)  # noqa: B023 - called at once

    def _count(self) -> int:
        """Return how many messages have left so far."""
        with self._changed:
            return self._num_left


class MpiOutbox:
    """Sends messages to the other ranks of a communicator."""

    def __init__(self, comm: MPI.Intracomm, peers: Peers, signs: Signs, buffers: Buffers, ledger: Ledger) -> None:
        """Start the second thread, where MPI allows it."""
        self._comm, self._peers, self._signs, self._buffers, self._ledger = comm, peers, signs, buffers, ledger
        self._leaving = Leaving(peers)
        if buffers.any_thread:
            threading.Thread(target=self._leaving.keep_moving, name="send", daemon=True).start()

    def send(self, rank: int, message: Message) -> None:
        """Begin to send a message and return at once; to a lost rank nothing is sent. See `Transport.send`."""
        if rank in self._peers.lost:
            return
        header, payload = to_wire(message)
        head = torch.from_numpy(header.pack()).view(torch.uint8)
        buffers = [self._buffers.sendable(tensor) for tensor in payload]
        try:
            requests = [self._comm.Isend(memory(head), rank, Tag.HEADER)]
            for buffer in buffers:
                pieces = self._buffers.pieces(buffer)
                requests += [self._comm.Isend(memory(piece), rank, Tag.PAYLOAD) for piece in pieces]
        except MPI.Exception as error:
            return self._peers.note(error)
        self._peers.hear(rank)
        self._ledger.sent[message.column] += HEADER_BYTES + header.payload_bytes
        self._leaving.add(rank, requests, [head, *buffers])

    def move(self) -> None:
        """Let MPI move what is leaving."""
        self._leaving.move()

    def flush(self, pending: int) -> None:
        """Wait until at most `pending` sent messages are still leaving, not counting those to lost ranks."""

        def is_done() -> bool:
            """Whether so many have left; if not, do what a waiting rank does between looks."""
            if self._leaving.move() <= pending:
                return True
            self._signs.between_looks()
            return False

        if not self._buffers.any_thread:
            return poll(is_done)
        while not is_done():
            self._leaving.wait(pending, LONGEST_SLEEP_S)
