"""Callbacks of long operations on the server."""

from collections.abc import Callable
from dataclasses import dataclass

from gkt_mpi.federation.faults import Interrupt
from gkt_mpi.log.progress import Progress
from gkt_mpi.placement import Placement
from gkt_mpi.wire.transport import Transport


def _nothing() -> None:
    """Do nothing."""


@dataclass
class Watch:
    """Shows the server's progress, ends its work on request, and holds the cores it may use."""

    progress: Progress
    interrupt: Interrupt
    transport: Transport
    placement: Placement
    _meanwhile: Callable[[], None] = _nothing

    def listen(self, meanwhile: Callable[[], None]) -> None:
        """Call `meanwhile` during long operations from now on: in asynchronous training it receives messages."""
        self._meanwhile = meanwhile

    @property
    def is_listening(self) -> bool:
        """Whether a callback is installed."""
        return self._meanwhile is not _nothing

    def stop_listening(self) -> None:
        """Remove the callback."""
        self._meanwhile = _nothing

    def advance(self, samples: int) -> None:
        """Report progress by this many samples; raise if a signal asks to end or a worker has failed."""
        self.progress.advance(samples)
        self.interrupt.check()
        self.transport.keep_in_touch()
        self._meanwhile()
