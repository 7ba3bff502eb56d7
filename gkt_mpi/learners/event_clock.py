"""The order of uploads in asynchronous training: by the devices' virtual time, or by this machine's time.

    VirtualClock   reproducible: every device takes the time of its profile, which orders events independently
                   of the machine; the server keeps working while uploads that are not due yet wait
    RealClock      fast: in order of arrival

Seconds are those of the run, from its first request on.
"""

import math
import time
from typing import Literal, Protocol

from gkt_mpi.cost.virtual_clock import ClientCost, client_s, end_of_work, idle_share, server_s
from gkt_mpi.cost.work import Prices
from gkt_mpi.errors import GktError
from gkt_mpi.federation.learner import State

ClockName = Literal["virtual", "real"]


class Waiting(Protocol):
    """The uploads that clients have been asked for, as a clock sees them."""

    def complete(self) -> list[int]:
        """Return the clients whose upload is complete."""

    def receive(self) -> None:
        """Wait for a message and process it."""


class EventClock(Protocol):
    """The time of the run, and the order of uploads."""

    @property
    def now(self) -> float:
        """Seconds of the run."""

    def ask(self, client: int, cost: ClientCost) -> None:
        """Record that a client starts working now."""

    def is_coming(self, client: int) -> bool:
        """Return whether a requested upload will ever arrive."""

    def next_clients(self, buffer: int, uploads: Waiting) -> list[int]:
        """Wait for `buffer` uploads; return all clients whose upload has arrived by then, ascending.

        Waits for fewer if fewer clients will ever upload again, and raises `GktError` if none will.
        """

    def note_complete(self, client: int) -> None:
        """Record that a client's upload is complete; may be called again for the same upload."""

    def times_of(self, client: int) -> tuple[float, float]:
        """Return the times of request and arrival for a client of the last `next_clients`."""

    def is_next_due(self, buffer: int, samples: int, uploads: Waiting) -> bool:
        """Return whether the next `buffer` uploads arrive before the server could have trained on this many samples."""

    def compute(self, trained: int = 0, predicted: int = 0) -> None:
        """Record the server's computation, in samples."""

    def end_round(self) -> dict[str, float]:
        """Return the figures of the time since the last call."""

    def state(self) -> State:
        """Return the checkpoint's contents."""

    def load(self, state: State) -> None:
        """Restore what `state()` returned."""


class VirtualClock:
    """Counts the seconds that the configured devices would take. See `EventClock`."""

    def __init__(self, prices: Prices) -> None:
        self._prices = prices
        self._work: dict[int, tuple[float, float]] = {}  # times of request and arrival
        self._worked_from, self._flops = 0.0, 0  # the server's uninterrupted computation, and its start
        self._round_began, self._server_s, self._clients_s = 0.0, 0.0, 0.0

    @property
    def now(self) -> float:
        """Virtual seconds of the run."""
        return self._worked_from + server_s(self._flops, self._prices.devices.server)

    def ask(self, client: int, cost: ClientCost) -> None:
        """Compute the arrival time of the client's next upload."""
        device = self._prices.devices.of(client)
        self._work[client] = self.now, end_of_work(self.now, client_s(cost, device), device)

    def is_coming(self, client: int) -> bool:
        """Return False for a device that leaves for good."""
        return self._work[client][1] < math.inf

    def note_complete(self, client: int) -> None:
        """Do nothing: an upload arrives when its device is done."""

    def _due(self, buffer: int) -> float:
        """Return when this many uploads, or all that will ever come, have arrived; infinity if none will."""
        times = sorted(done for _, done in self._work.values() if done < math.inf)
        return max(self.now, times[min(buffer, len(times)) - 1]) if times else math.inf

    def next_clients(self, buffer: int, uploads: Waiting) -> list[int]:
        """Advance to the arrival of this many uploads."""
        due = self._due(buffer)
        if due == math.inf:
            raise GktError(
                f"all devices have left for good, {self.now:.0f} s into the run (away in their profiles); the "
                "completed rounds are saved: lower --rounds, or start over with a device in devices.edge that returns"
            )
        clients = [client for client, (_, done) in sorted(self._work.items()) if done <= due]
        while not set(clients) <= set(uploads.complete()):
            uploads.receive()
        self._rest_until(due)
        self._taken = {client: self._work.pop(client) for client in clients}
        self._clients_s += math.fsum(self._busy_s(client, *times) for client, times in self._taken.items())
        return clients

    def _rest_until(self, moment: float) -> None:
        self._server_s += self.now - self._worked_from
        self._worked_from, self._flops = moment, 0

    def times_of(self, client: int) -> tuple[float, float]:
        """Return the client's times, see `EventClock`."""
        return self._taken[client]

    def is_next_due(self, buffer: int, samples: int, uploads: Waiting) -> bool:
        """Return whether the next uploads come first, or none will come any more."""
        seconds = server_s(samples * self._prices.training_flops, self._prices.devices.server)
        due = self._due(buffer)
        return due == math.inf or self.now + seconds > due

    def compute(self, trained: int = 0, predicted: int = 0) -> None:
        """Advance by the time that the server needs for this many samples."""
        self._flops += trained * self._prices.training_flops + predicted * self._prices.prediction_flops

    def _busy_s(self, client: int, asked: float, done: float) -> float:
        """Return the seconds of this round during which a client was working and not away."""
        begin, end = max(asked, self._round_began), min(done, self.now)
        away = self._prices.devices.of(client).away
        absent = math.fsum(max(0.0, min(end, returns) - max(begin, leaves)) for leaves, returns in away)
        return max(0.0, end - begin - absent)

    def end_round(self) -> dict[str, float]:
        """Return the seconds of the round, and the idle shares of server and clients."""
        self._rest_until(self.now)
        at_work = math.fsum(self._busy_s(client, *times) for client, times in sorted(self._work.items()))
        total_s = self.now - self._round_began
        figures = {
            "virtual_s": total_s,
            "virtual_server_idle": idle_share(self._server_s, total_s),
            "virtual_client_idle": idle_share((self._clients_s + at_work) / len(self._work), total_s),
        }
        self._round_began, self._server_s, self._clients_s = self.now, 0.0, 0.0
        return figures

    def state(self) -> State:
        """Return the time, and the start and end of each client's work."""
        return {"now": self.now, "work": {client: list(times) for client, times in self._work.items()}}

    def load(self, state: State) -> None:
        """Restore the time; clients continue their work."""
        self._worked_from, self._flops = state["now"], 0
        self._round_began = state["now"]
        self._work = {client: (asked, done) for client, (asked, done) in state["work"].items()}


class RealClock:
    """Measures the seconds on this machine. See `EventClock`."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._asked: dict[int, float] = {}
        self._done: dict[int, float] = {}

    @property
    def now(self) -> float:
        """Seconds of the run, without interruptions."""
        return time.perf_counter() - self._began

    def ask(self, client: int, cost: ClientCost) -> None:
        """Record the time."""
        self._asked[client] = self.now
        self._done.pop(client, None)

    def is_coming(self, client: int) -> bool:
        """Return True: a silent client is given up with its worker."""
        return True

    def note_complete(self, client: int) -> None:
        """Record the time."""
        self._done.setdefault(client, self.now)

    def next_clients(self, buffer: int, uploads: Waiting) -> list[int]:
        """Wait until this many uploads have arrived."""
        while len(uploads.complete()) < buffer:
            uploads.receive()
        return uploads.complete()

    def times_of(self, client: int) -> tuple[float, float]:
        """Return the times of request and detected arrival."""
        return self._asked[client], self._done[client]

    def is_next_due(self, buffer: int, samples: int, uploads: Waiting) -> bool:
        """Return whether the next uploads have arrived."""
        return len(uploads.complete()) >= buffer

    def compute(self, trained: int = 0, predicted: int = 0) -> None:
        """Do nothing: real time passes by itself."""

    def end_round(self) -> dict[str, float]:
        """Return nothing: idle times are in trace.json."""
        return {}

    def state(self) -> State:
        """Return the time, and the clients that are working."""
        return {"now": self.now, "clients": sorted(self._asked)}

    def load(self, state: State) -> None:
        """Restore the time, at which all clients are asked again."""
        self._began = time.perf_counter() - state["now"]
        self._asked = dict.fromkeys(state["clients"], self.now)
