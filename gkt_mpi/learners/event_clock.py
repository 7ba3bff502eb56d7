"""Whose upload is next, where clients are not in step: by the devices' time, or by this machine's.

    VirtualClock   science: every device takes as long as its profile says, and events come in that order, whatever the
                   machine does; the server works on while uploads that are not due yet wait
    RealClock      speed: whatever arrives first

Seconds are those of the run, from its first request on.
"""

import math
import time
from typing import Any, Literal, Protocol

from gkt_mpi.cost.virtual_clock import ClientCost, client_s, end_of_work, idle_share, server_s
from gkt_mpi.cost.work import Prices
from gkt_mpi.errors import GktError

ClockName = Literal["virtual", "real"]


class Waiting(Protocol):
    """What is known of the uploads that clients have been asked for."""

    def complete(self) -> list[int]:
        """Return the clients whose upload is all there."""

    def receive(self) -> None:
        """Wait for something to come, and take it in."""


class EventClock(Protocol):
    """Tells the time of the run, and whose upload is next."""

    @property
    def now(self) -> float:
        """Seconds of the run."""

    def ask(self, client: int, cost: ClientCost) -> None:
        """Note that a client begins its work now."""

    def is_coming(self, client: int) -> bool:
        """Whether the upload of a client that has been asked will ever be there."""

    def next_clients(self, buffer: int, uploads: Waiting) -> list[int]:
        """Wait for `buffer` uploads; return all clients whose upload is there by then, ascending.

        Waits for fewer where fewer clients will ever send anything more, and raises `GktError` where none will.
        """

    def note_complete(self, client: int) -> None:
        """Note that a client's upload has come; may be called again for the same one."""

    def times_of(self, client: int) -> tuple[float, float]:
        """Return when a client of the last `next_clients` was asked, and when its upload was there."""

    def is_next_due(self, buffer: int, samples: int, uploads: Waiting) -> bool:
        """Whether the next `buffer` uploads are there before the server could have trained on so many samples."""

    def compute(self, trained: int = 0, predicted: int = 0) -> None:
        """Note what the server has computed, in samples."""

    def end_round(self) -> dict[str, float]:
        """Return the figures of the time since the last call."""

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds."""

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state()` returned."""


class VirtualClock:
    """Counts the seconds that the devices of a configuration would take. See `EventClock`."""

    def __init__(self, prices: Prices) -> None:
        self._prices = prices
        self._work: dict[int, tuple[float, float]] = {}  # when a client was asked, and when its upload is there
        self._worked_from, self._flops = 0.0, 0  # what the server computes without a break, and from when on
        self._round_began, self._server_s, self._clients_s = 0.0, 0.0, 0.0

    @property
    def now(self) -> float:
        """Virtual seconds of the run."""
        return self._worked_from + server_s(self._flops, self._prices.devices.server)

    def ask(self, client: int, cost: ClientCost) -> None:
        """Work out when the client's next upload will be there."""
        device = self._prices.devices.of(client)
        self._work[client] = self.now, end_of_work(self.now, client_s(cost, device), device)

    def is_coming(self, client: int) -> bool:
        """Not from a device that leaves for good."""
        return self._work[client][1] < math.inf

    def note_complete(self, client: int) -> None:
        """Do nothing: here it comes when its device is done."""

    def _due(self, buffer: int) -> float:
        """Return when so many uploads are there, or all that will ever come; never, if none will."""
        times = sorted(done for _, done in self._work.values() if done < math.inf)
        return max(self.now, times[min(buffer, len(times)) - 1]) if times else math.inf

    def next_clients(self, buffer: int, uploads: Waiting) -> list[int]:
        """Move on to when so many uploads are there."""
        due = self._due(buffer)
        if due == math.inf:
            raise GktError(
                f"all devices have left for good, {self.now:.0f} s into the run (away in their profiles); what is done "
                "is saved: end there with fewer --rounds, or begin anew with a device in devices.edge that returns"
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
        """Whether the next uploads come first; if none come any more, there is nothing to work for either."""
        seconds = server_s(samples * self._prices.training_flops, self._prices.devices.server)
        due = self._due(buffer)
        return due == math.inf or self.now + seconds > due

    def compute(self, trained: int = 0, predicted: int = 0) -> None:
        """Let the time pass that the server needs for so many samples."""
        self._flops += trained * self._prices.training_flops + predicted * self._prices.prediction_flops

    def _busy_s(self, client: int, asked: float, done: float) -> float:
        """Return the seconds of this round in which a client has been at this work, and not away."""
        begin, end = max(asked, self._round_began), min(done, self.now)
        away = self._prices.devices.of(client).away
        absent = math.fsum(max(0.0, min(end, returns) - max(begin, leaves)) for leaves, returns in away)
        return max(0.0, end - begin - absent)

    def end_round(self) -> dict[str, float]:
        """Return the seconds of the round, and the shares of it in which the server and the clients were idle."""
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

    def state(self) -> dict[str, Any]:
        """Return the time, and who is at work since when and until when."""
        return {"now": self.now, "work": {client: list(times) for client, times in self._work.items()}}

    def load(self, state: dict[str, Any]) -> None:
        """Go on; who is at work stays at it."""
        self._worked_from, self._flops = state["now"], 0
        self._round_began = state["now"]
        self._work = {client: (asked, done) for client, (asked, done) in state["work"].items()}


class RealClock:
    """Tells the seconds that have passed on this machine. See `EventClock`."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._asked: dict[int, float] = {}
        self._done: dict[int, float] = {}

    @property
    def now(self) -> float:
        """Seconds of the run, without what an interruption has cost."""
        return time.perf_counter() - self._began

    def ask(self, client: int, cost: ClientCost) -> None:
        """Note the time."""
        self._asked[client] = self.now
        self._done.pop(client, None)

    def is_coming(self, client: int) -> bool:
        """One that does not answer is given up with its worker."""
        return True

    def note_complete(self, client: int) -> None:
        """Note the time."""
        self._done.setdefault(client, self.now)

    def next_clients(self, buffer: int, uploads: Waiting) -> list[int]:
        """Wait until so many uploads have come."""
        while len(uploads.complete()) < buffer:
            uploads.receive()
        return uploads.complete()

    def times_of(self, client: int) -> tuple[float, float]:
        """Return when a client was asked, and when its upload was noticed."""
        return self._asked[client], self._done[client]

    def is_next_due(self, buffer: int, samples: int, uploads: Waiting) -> bool:
        """Whether the next uploads have come."""
        return len(uploads.complete()) >= buffer

    def compute(self, trained: int = 0, predicted: int = 0) -> None:
        """Do nothing: the time passes by itself."""

    def end_round(self) -> dict[str, float]:
        """Return nothing: trace.json tells who was idle when."""
        return {}

    def state(self) -> dict[str, Any]:
        """Return the time, and who is at work."""
        return {"now": self.now, "clients": sorted(self._asked)}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from that time, at which all clients are asked anew."""
        self._began = time.perf_counter() - state["now"]
        self._asked = dict.fromkeys(state["clients"], self.now)
