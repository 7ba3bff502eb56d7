"""The transport on MPI: a header and raw buffers through mpi4py's upper-case calls. Importing this starts MPI.

One message is one send for the header and one for each buffer. MPI keeps the order of messages between two
ranks, so after a header the next payload messages from its sender are its own. Every send is non-blocking,
and so is every receive: while a rank waits it sleeps between looks, so that idle ranks leave the processor
to those that compute.
"""

import time
from collections import deque
from collections.abc import Callable

import numpy as np
from mpi4py import MPI
from torch import Tensor

from gkt_mpi.wire.contract import Contract
from gkt_mpi.wire.messages import HEADER_BYTES, Header, Message, from_wire, to_wire
from gkt_mpi.wire.transport import Ledger

_HEADER_TAG = 1
_PAYLOAD_TAG = 2
_EAGER_LOOKS = 50  # looks that only yield the processor, before the first real sleep
_FIRST_SLEEP_S = 50e-6
_LONGEST_SLEEP_S = 5e-3  # 200 looks a second cost well under 1 % of a core


class MpiTransport:
    """Carries messages between the ranks of a communicator."""

    def __init__(self, comm: MPI.Intracomm = MPI.COMM_WORLD) -> None:
        self.comm = comm.Dup()  # nobody else's messages get in between
        self.rank: int = self.comm.rank
        self.size: int = self.comm.size
        self.ledger = Ledger()
        self.payload_s = 0.0
        self._leaving: deque[tuple[list[MPI.Request], list[np.ndarray]]] = deque()

    def send(self, rank: int, message: Message) -> None:
        """Begin to send and return at once. The message's tensors must not change until `flush`."""
        header, payload = to_wire(message)
        buffers = [header.pack(), *(_host_bytes(tensor) for tensor in payload)]
        tags = [_HEADER_TAG] + [_PAYLOAD_TAG] * len(payload)
        requests = [self.comm.Isend([buffer, MPI.BYTE], rank, tag) for buffer, tag in zip(buffers, tags, strict=True)]
        self.ledger.sent[message.column] += HEADER_BYTES + header.payload_bytes
        self._leaving.append((requests, buffers))  # keeps the memory alive until it has left
        while self._leaving and MPI.Request.Testall(self._leaving[0][0]):
            self._leaving.popleft()

    def flush(self, pending: int = 0) -> None:
        """Wait until at most `pending` sent messages are still leaving."""
        while len(self._leaving) > pending:
            requests, _ = self._leaving[0]
            _poll(lambda: MPI.Request.Testall(requests))  # noqa: B023 - called before the loop goes on
            self._leaving.popleft()

    def receive(self, contract: Contract) -> tuple[int, Message]:
        """Wait, without burning a core, for a message; return the sender's rank and the message.

        Raises `WireError` when the message breaks `contract`.
        """
        status = MPI.Status()
        _poll(lambda: self.comm.Iprobe(MPI.ANY_SOURCE, _HEADER_TAG, status))
        source = status.Get_source()
        words = np.zeros(HEADER_BYTES // 8, np.int64)
        self.comm.Recv([words, MPI.BYTE], source, _HEADER_TAG)
        header = Header.unpack(words, source)
        contract.check(source, header)
        started = time.perf_counter()
        buffers = contract.allocate(header)
        requests = [self._receive_into(buffer, source) for buffer in buffers]
        _poll(lambda: MPI.Request.Testall(requests))
        self.payload_s += time.perf_counter() - started
        message = from_wire(header, buffers)
        self.ledger.received[message.column] += HEADER_BYTES + header.payload_bytes
        return source, message

    def _receive_into(self, buffer: Tensor, source: int) -> MPI.Request:
        return self.comm.Irecv([buffer.reshape(-1).numpy(), MPI.BYTE], source, _PAYLOAD_TAG)


def _host_bytes(tensor: Tensor) -> np.ndarray:
    """Return a tensor's values as contiguous host memory, without a copy where it already is."""
    return tensor.detach().cpu().contiguous().reshape(-1).numpy()


def _poll(ready: Callable[[], bool]) -> None:
    """Call `ready` until it is true: eagerly at first, then with growing sleeps in between."""
    looks, pause_s = 0, _FIRST_SLEEP_S
    while not ready():
        looks += 1
        if looks <= _EAGER_LOOKS:
            time.sleep(0)
        else:
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_SLEEP_S)


def abort(status: int) -> None:
    """End the whole job at once, on every rank."""
    MPI.COMM_WORLD.Abort(status)


def node_place() -> tuple[int, int, bool]:
    """Return (local rank, number of ranks on this node, whether rank 0 is one of them)."""
    world = MPI.COMM_WORLD
    node = world.Split_type(MPI.COMM_TYPE_SHARED, key=world.rank)
    lowest = node.allreduce(world.rank, op=MPI.MIN)
    return node.rank, node.size, lowest == 0
