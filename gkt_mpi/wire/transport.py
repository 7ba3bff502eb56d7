"""The interface between the engine and whatever carries its messages, and the ledger of what was carried.

Two transports exist: `mpi.py` (processes, the real thing) and `local.py` (threads of one process, for tests
and a debugger).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from gkt_mpi.log.timeline import Timeline
from gkt_mpi.wire.contract import Contract
from gkt_mpi.wire.messages import Column, Message

SERVER = 0  # the server's rank


@dataclass
class Ledger:
    """Bytes of whole messages, headers included, that this rank has sent and received, by column."""

    sent: dict[Column, int] = field(default_factory=lambda: {"algorithm": 0, "simulation": 0})
    received: dict[Column, int] = field(default_factory=lambda: {"algorithm": 0, "simulation": 0})

    @property
    def simulation_bytes(self) -> int:
        """Bytes, both ways, that a real deployment would not send."""
        return self.sent["simulation"] + self.received["simulation"]


class Transport(Protocol):
    """Carries messages between ranks 0 (the server) to `size` - 1."""

    rank: int
    size: int
    ledger: Ledger
    timeline: Timeline  # of this rank; the transport notes the receiving of payloads
    on_wait: Callable[[], None]  # called again and again while this rank waits; what it raises ends the wait

    def send(self, rank: int, message: Message) -> None:
        """Begin to send and return at once. The message's tensors must not change until `flush`."""

    def flush(self, pending: int = 0) -> None:
        """Wait until at most `pending` sent messages are still leaving."""

    def receive(self, contract: Contract) -> tuple[int, Message]:
        """Wait, without burning a core, for a message; return the sender's rank and the message.

        Raises `WireError` when the message breaks `contract`; what is left of it is then passed over, and the
        next call receives the next message. Raises `LostRankError` once for each rank that is lost; nothing is sent
        to it any more. On a worker that is the server only, and `Interrupted` is raised when the server says stop.
        """

    def receive_ready(self, contract: Contract) -> tuple[int, Message] | None:
        """Receive a message that has come, as `receive` does; return None at once when there is none."""

    def set_timeout(self, seconds: float) -> None:
        """Count a rank as lost that is waited for and says nothing for so long; before the first call none is."""

    def end_if_silent(self, seconds: float) -> None:
        """Have this worker's process end, and tell where it hung, when it has not been in touch for so long.

        The server, which has given it up by then, cannot end it on another node, and mpirun would wait for it.
        """

    def stop(self, rank: int) -> None:
        """Tell a worker to stop at once, whatever it does and whatever messages are on their way to it."""

    def keep_in_touch(self) -> None:
        """Tell the server that this worker is alive, and look whether it says stop; to be called often while busy.

        Raises `Interrupted` when the server says stop, `LostRankError` when the server is lost; on the server
        `GktError` when a worker has failed.
        """
