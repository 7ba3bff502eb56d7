"""External faults: termination signals, lost workers, clients that send unusable data."""

import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Literal

from gkt_mpi.errors import Interrupted, require

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@dataclass(frozen=True)
class FaultsConfig:
    """Lost workers and bad clients."""

    timeout_s: float = 300.0
    """Seconds of silence after which a worker that is waited for is considered lost; at least 2."""
    on_bad_client: Literal["stop", "drop"] = "stop"
    """Reaction to a client that sends unusable data. stop: end the run. drop: continue the round without its data."""

    def __post_init__(self) -> None:
        require(self.timeout_s >= 2, "faults.timeout_s", self.timeout_s, "at least 2")


class Interrupt:
    """A signal that asks this process to end.

    Until `defer`, while there is nothing to save, `Interrupted` is raised at once; later only when the server calls
    `check`, at points where its state is consistent.
    """

    def __init__(self) -> None:
        self.name: str | None = None  # name of the received signal
        self._is_deferred = False
        self._grace_s = 0.0

    def install(self) -> None:
        """Install handlers for SIGTERM, SIGUSR1 (a batch system's warning) and SIGINT (Ctrl-C)."""
        for number in _SIGNALS:
            signal.signal(number, self._take)

    def defer(self, grace_s: float, by_force: Callable[[], None]) -> None:
        """From now on only note a signal; call `by_force` if the process still runs `grace_s` seconds after it."""
        self._is_deferred, self._grace_s, self._by_force = True, grace_s, by_force

    def check(self) -> None:
        """Raise `Interrupted` if a signal has come."""
        if self.name is not None:
            raise Interrupted(f"interrupted by {self.name}")

    def _take(self, number: int, frame: FrameType | None) -> None:
        is_first, self.name = self.name is None, signal.Signals(number).name
        if not self._is_deferred:
            self.check()
        elif is_first:
            timer = threading.Timer(self._grace_s, self._by_force)
            timer.daemon = True
            timer.start()


def ignore_signals() -> None:
    """Ignore termination signals in a worker, so that the server ends it: batch systems and mpirun signal all ranks."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
