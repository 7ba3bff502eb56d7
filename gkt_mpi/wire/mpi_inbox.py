"""Receiving messages on MPI: a header is checked before its payload is received, and what is refused is passed over.

MPI keeps the order of messages between two ranks, so what follows a header from its sender is its payload, up to the
next header. A rank that sends too much, too little or nonsense is refused, and its next message is read as if
nothing had happened.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from mpi4py import MPI
from torch import Tensor

from gkt_mpi.errors import LostRankError, WireError
from gkt_mpi.log.timeline import Timeline
from gkt_mpi.wire.contract import Contract, at_once
from gkt_mpi.wire.header import HEADER_BYTES, Header
from gkt_mpi.wire.messages import Message, from_wire
from gkt_mpi.wire.mpi_arriving import Arriving, Found
from gkt_mpi.wire.mpi_buffers import Buffers, Tag, memory
from gkt_mpi.wire.mpi_signs import NO_BYTES, Signs
from gkt_mpi.wire.peers import Peers
from gkt_mpi.wire.transport import Ledger


class _Head(NamedTuple):
    """A header that has been received and not yet read."""

    source: int
    words: np.ndarray  # int64 (17,)


class MpiInbox:
    """Receives messages from the other ranks of a communicator."""

    def __init__(
        self, arriving: Arriving, peers: Peers, signs: Signs, buffers: Buffers, ledger: Ledger, timeline: Timeline
    ) -> None:
        self._arriving, self._peers, self._signs, self._buffers = arriving, peers, signs, buffers
        self._ledger, self._timeline = ledger, timeline
        self._refused: set[int] = set()  # ranks whose last message was refused, and may have payload left

    def receive(self, contract: Contract) -> tuple[int, Message]:
        """Wait for a message; return the sender's rank and the message. See `Transport.receive` for what it raises."""
        self._peers.begin_wait()
        while True:
            head = self._head_of(self._arriving.wait(lambda: contract.awaited))
            if head is not None:
                return self._message_of(head, contract)

    def receive_ready(self, contract: Contract) -> tuple[int, Message] | None:
        """Receive a message that has come, as `receive` does; return None at once when there is none."""
        self._peers.begin_wait()
        while (found := self._arriving.look(lambda: contract.awaited)) is not None:
            head = self._head_of(found)
            if head is not None:
                return self._message_of(head, contract)
        return None

    def _head_of(self, found: Found) -> _Head | None:
        """Receive what has come and return it if it is a header; act on a sign, pass over what is left of a message.

        Raises `WireError` for what is none of these, `Interrupted` or `GktError` as `Signs.take` does, and
        `LostRankError`.
        """
        source, tag, size = found
        self._peers.hear(source)
        if tag == Tag.FAILURE and size == 0:
            self._signs.take(source, tag)
        if tag == Tag.SIGN and size == 0:
            if self._arriving.take(found, NO_BYTES):
                self._signs.take(source, tag)
            return None
        if tag == Tag.HEADER and size == HEADER_BYTES:
            self._refused.discard(source)
            words = np.empty(HEADER_BYTES // 8, np.int64)
            return _Head(source, words) if self._arriving.take(found, [words, MPI.BYTE]) else None
        self._arriving.drop(found)
        if tag == Tag.HEADER or source not in self._refused:
            self._refused.add(source)
            raise WireError(f"rank {source} sent {size} bytes that are no header and that no header announced")
        return None

    def _message_of(self, head: _Head, contract: Contract) -> tuple[int, Message]:
        """Receive what a header announces, if the contract allows it. Raises `WireError` and `LostRankError`."""
        source = head.source
        self._timeline.enter("receive")
        try:
            header = Header.unpack(head.words, source)
            with contract.blame(source, header):
                contract.check(source, header)
                buffers = []
                for buffer, fill in contract.buffers(header):
                    (fill if self._buffers.any_thread else at_once)(self._payload(buffer, source))
                    buffers.append(buffer)
        except (WireError, LostRankError) as error:
            self._refused.add(source)
            if isinstance(error, LostRankError):
                self._peers.tell_of(source)  # it is told here, and not a second time
            raise
        finally:
            self._timeline.leave("receive")
        message = from_wire(header, buffers)
        self._ledger.received[message.column] += HEADER_BYTES + header.payload_bytes
        return source, message

    def _payload(self, buffer: Tensor, source: int) -> Callable[[], None]:
        """Wait until a buffer of the payload has begun to arrive from rank `source`.

        Returns the function that receives it into its memory, to be called once, in any thread. Raises `WireError` when
        something else has come, and `LostRankError`; so may the function returned.
        """
        flat = buffer.reshape(-1).view(torch.uint8)
        target = self._buffers.receivable(flat)
        claimed: list[tuple[MPI.Message, Tensor]] = []
        for piece in self._buffers.pieces(target):
            found = self._arriving.wait(lambda: {source}, source)
            if found.tag != Tag.PAYLOAD or found.size != len(piece):
                what = f"{found.size} bytes" if found.tag == Tag.PAYLOAD else "another header"
                raise WireError(f"rank {source} sent {what} where its header announced {len(piece)} bytes of payload")
            claimed.append((self._arriving.claim(found), piece))
        self._timeline.enter("receive")

        def fill() -> None:
            """Receive it."""
            try:
                for message, piece in claimed:
                    self._arriving.finish(partial(message.Irecv, memory(piece)), source)
                if target is not flat:
                    flat.copy_(target)
            finally:
                self._timeline.leave("receive")

        return fill
