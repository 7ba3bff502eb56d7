"""What long work on the server calls as it proceeds."""

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
    """Shows how far the server is, and ends what it does when somebody asks for it; and the cores it works on."""

    progress: Progress
    interrupt: Interrupt
    transport: Transport
    placement: Placement
    _meanwhile: Callable[[], None] = _nothing

    def listen(self, meanwhile: Callable[[], None]) -> None:
        """Call this in between from now on: where clients are not in step, to take in what they send."""
        self._meanwhile = meanwhile

    @property
    def is_listening(self) -> bool:
        """Whether something is called in between."""
        return self._meanwhile is not _nothing

    def stop_listening(self) -> None:
        """Call nothing in between any more."""
        self._meanwhile = _nothing

    def advance(self, samples: int) -> None:
        """Show that so many samples are done; end here if a signal asks for it or a worker has failed."""
        self.progress.advance(samples)
        self.interrupt.check()
        self.transport.keep_in_touch()
        self._meanwhile()
