"""The transport between threads of one process: the whole system under a debugger, or in a test, without mpirun."""

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from torch import Tensor

from gkt_mpi.errors import GktError, Interrupted
from gkt_mpi.log.timeline import Timeline
from gkt_mpi.wire.contract import Contract
from gkt_mpi.wire.header import HEADER_BYTES, Header
from gkt_mpi.wire.messages import Message, from_wire, to_wire
from gkt_mpi.wire.transport import Ledger

Result = TypeVar("Result")
_LOOK_S = 0.05  # how often a waiting thread looks whether another has failed


class PeerFailedError(GktError):
    """Another thread raised; what it raised is the error to look at."""


@dataclass
class _World:
    queues: list["queue.Queue[tuple[int, Header, list[Tensor]]]"]
    stopped: list[threading.Event]
    failed: threading.Event = field(default_factory=threading.Event)


class LocalTransport:
    """Carries messages between the threads of `run_local`; a sent message is copied."""

    def __init__(self, rank: int, world: _World) -> None:
        self.rank = rank
        self.size = len(world.queues)
        self.ledger = Ledger()
        self.timeline = Timeline()
        self.on_wait: Callable[[], None] = lambda: None
        self._world = world

    def send(self, rank: int, message: Message) -> None:
        """Put a copy of the message into the receiver's queue."""
        header, payload = to_wire(message)
        self._world.queues[rank].put((self.rank, header, [buffer.detach().clone() for buffer in payload]))
        self.ledger.sent[message.column] += HEADER_BYTES + header.payload_bytes

    def flush(self, pending: int = 0) -> None:
        """Do nothing: a sent message has been copied."""

    def receive(self, contract: Contract) -> tuple[int, Message]:
        """Wait for a message; see `Transport.receive`. Raises `PeerFailedError` when another thread has failed."""
        while True:
            try:
                return self._take(contract, self._world.queues[self.rank].get(timeout=_LOOK_S))
            except queue.Empty:
                self.on_wait()
                self.keep_in_touch()

    def receive_ready(self, contract: Contract) -> tuple[int, Message] | None:
        """Receive a message that has come, if any."""
        try:
            return self._take(contract, self._world.queues[self.rank].get_nowait())
        except queue.Empty:
            return None

    def _take(self, contract: Contract, sent: tuple[int, Header, list[Tensor]]) -> tuple[int, Message]:
        source, header, payload = sent
        with self.timeline.phase("receive"), contract.blame(source, header):
            contract.check(source, header)
            buffers = []
            for (buffer, fill), sent_buffer in zip(contract.buffers(header), payload, strict=True):
                fill(partial(_copy, buffer, sent_buffer.reshape(buffer.shape)))
                buffers.append(buffer)
        message = from_wire(header, buffers)
        self.ledger.received[message.column] += HEADER_BYTES + header.payload_bytes
        return source, message

    def set_timeout(self, seconds: float) -> None:
        """Do nothing: a thread cannot be lost."""

    def end_if_silent(self, seconds: float) -> None:
        """Do nothing: a debugger may hold a thread for any time."""

    def stop(self, rank: int) -> None:
        """Tell a worker to stop at once."""
        self._world.stopped[rank].set()

    def keep_in_touch(self) -> None:
        """Raise `Interrupted` when the server says stop, `PeerFailedError` when another thread has failed."""
        if self._world.stopped[self.rank].is_set():
            raise Interrupted("the server says stop")
        if self._world.failed.is_set():
            raise PeerFailedError(f"rank {self.rank} waited for a thread that failed")


def _copy(buffer: Tensor, sent: Tensor) -> None:
    buffer.copy_(sent)


def run_local(size: int, run_rank: Callable[[LocalTransport], Result], timeout_s: float = 300.0) -> list[Result]:
    """Run `run_rank` in `size` threads, one a rank, and return their results in rank order.

    The first exception of any thread is raised here; `TimeoutError` after `timeout_s` seconds.
    """
    world = _World([queue.Queue() for _ in range(size)], [threading.Event() for _ in range(size)])
    results: dict[int, Result] = {}
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        """Run one rank, and keep its result or what it raised."""
        try:
            results[rank] = run_rank(LocalTransport(rank, world))
        except BaseException as error:
            if not isinstance(error, PeerFailedError):
                errors.append(error)
            world.failed.set()

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout_s)
    if errors:
        raise errors[0]
    if any(thread.is_alive() for thread in threads):
        raise TimeoutError(
            f"{sum(thread.is_alive() for thread in threads)} of {size} ranks did not end in {timeout_s} s"
        )
    return [results[rank] for rank in range(size)]
