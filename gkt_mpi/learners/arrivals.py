"""Asynchronous uploads: which clients have been asked, which uploads have arrived, and which is next.

A client that has been answered continues at once. Its messages are received whenever they arrive, also during training,
and wait in the bank's inbox until their turn, which the run's clock decides (event_clock.py).
"""

import time
from collections.abc import Callable
from dataclasses import replace

from gkt_mpi.cost.work import Prices
from gkt_mpi.federation.books import BYTES
from gkt_mpi.federation.collect import Inbox
from gkt_mpi.federation.learner import State
from gkt_mpi.federation.server import Server
from gkt_mpi.learners.event_clock import EventClock
from gkt_mpi.log.csv_log import UploadRecord
from gkt_mpi.wire.messages import LocalRequest, Message, Request, TrainRequest

_OF_EACH_CLIENT = ("number", "in_use", "asked_at", "based_on")


class Arrivals:
    """The server's side of asynchronous uploads into `inbox`. A round is `num_clients` uploads.

    `request(client, number, is_again)` creates the request for a client's upload with that number; `is_again` repeats
    it after an interruption. `land(client)` puts a complete upload into use.
    """

    def __init__(
        self,
        server: Server,
        inbox: Inbox,
        num_clients: int,
        clock: EventClock,
        prices: Prices,
        buffer: int,
        request: Callable[[int, int, bool], TrainRequest],
        land: Callable[[int], None],
    ) -> None:
        self._server, self._clock, self._prices = server, clock, prices
        self._buffer, self._request, self._land = buffer, request, land
        self._timeline = server.watch.transport.timeline
        self.num_clients = num_clients
        self._num_taken = 0  # uploads that the server has learnt from, of all clients
        self._number = [0] * self.num_clients  # number of the upload that a client has been asked for
        self._asked_at = [0] * self.num_clients  # value of `_num_taken` at that time
        self._in_use: list[int | None] = [None] * self.num_clients  # number of the upload in use
        self._based_on = [0] * self.num_clients  # `_asked_at` of the upload in use
        self._edge_flops = [0] * self.num_clients  # of the upload that a client has been asked for
        self._out: set[int] = set()  # clients whose next upload is on its way, or complete and not taken
        self._expected: dict[int, int] = {}  # incomplete uploads among these: client to number of samples
        self._rounds = dict.fromkeys(range(self.num_clients), 0)  # as `_number`, except for repeated uploads
        self._uploads = server.requests.uploads(inbox, self._expected, self._rounds, lambda _: None)
        self._saved: State | None = None
        self._is_open = False
        self._listened_s = 0.0  # during training

    def begin_round(self, round: int) -> None:
        """Begin a round; in the first one of this process all clients are asked."""
        self._round = round
        if not self._is_open:
            self._open()
        self._records: list[UploadRecord] = []
        self._round_flops = 0
        self._round_bytes = [0] * len(BYTES)
        self._waited_s = self._listened_s = 0.0
        self._seconds_before = self._seconds()

    @property
    def is_in_round(self) -> bool:
        """Whether the round lacks uploads."""
        return self._num_taken < (self._round + 1) * self.num_clients

    def _open(self) -> None:
        self._is_open = True
        self._server.watch.listen(self._listen)
        self._bytes_of = [[0] * len(BYTES) for _ in range(self.num_clients)]
        if self._saved is not None:
            self._recall(self._saved)
        self._bytes_before = self._server.books.bytes()
        for client in range(self.num_clients):
            self._ask(client, is_resumed=self._saved is not None)

    def _recall(self, saved: State) -> None:
        """Have clients repeat the uploads that were in use before an interruption; their states have not changed."""
        with self._server.books.uncounted():
            for client, number in enumerate(saved["in_use"]):
                if number is not None:
                    self._send(client, LocalRequest(client, number))
            while self._expected:
                self._uploads.receive()
            for client in sorted(self._out & self._uploads.reports.keys()):
                self._land(client)
            self._uploads.reports.clear()
            self._out.clear()
        self._clock.load(saved["clock"])  # replayed uploads are complete

    def _ask(self, client: int, is_resumed: bool = False) -> None:
        """Ask a client for its next upload; after an interruption the clock keeps its time."""
        taken = self._asked_at[client] if is_resumed else self._num_taken
        request = replace(self._request(client, self._number[client], is_resumed), at=taken / self.num_clients)
        cost = self._prices.client(client, self._server.hosting.participant(client, request))
        self._edge_flops[client] = cost.edge_flops
        if not is_resumed:
            self._clock.ask(client, cost)
            self._asked_at[client] = self._num_taken
        is_last = self._num_taken >= self._server.plan.num_rounds * self.num_clients
        if self._clock.is_coming(client) and not is_last:
            self._send(client, request)
            self._count(client)

    def _send(self, client: int, request: Request) -> None:
        self._out.add(client)
        self._expected[client] = self._server.hosting.num_samples(client)
        self._rounds[client] = request.round
        self._server.request(client, request)

    def complete(self) -> list[int]:
        """Return the clients with a complete upload that has not been taken, ascending."""
        return sorted(self._out - self._expected.keys())

    def receive(self) -> None:
        """Wait for a message and process it."""
        self._note(self._uploads.receive())

    def _listen(self) -> None:
        """Process messages that have arrived during training."""
        began = time.perf_counter()
        while (message := self._uploads.receive_ready()) is not None:
            self._note(message)
        self._listened_s += time.perf_counter() - began

    def _note(self, message: Message | None) -> None:
        """Count a received message for its client; count bytes caused by a lost worker immediately."""
        self._count(getattr(message, "client", None))
        for client in self.complete():  # a refused report also ends an upload
            self._clock.note_complete(client)

    def _count(self, client: int | None) -> None:
        now = self._server.books.bytes()
        into = self._round_bytes if client is None else self._bytes_of[client]
        for k, (before, after) in enumerate(zip(self._bytes_before, now, strict=True)):
            into[k] += after - before
        self._bytes_before = now

    def next_clients(self) -> list[int]:
        """Wait for the next uploads and put them into use; return their clients."""
        began, received_s = time.perf_counter(), self._seconds()[0]
        clients = self._clock.next_clients(self._buffer, self)
        received_s = self._seconds()[0] - received_s
        self._waited_s += time.perf_counter() - began - received_s
        self._out -= set(clients)
        self._taken, self._taken_s = clients, self._clock.now
        self._landed = set(clients) & self._uploads.reports.keys()  # a bad client's last upload stays in use
        for client in sorted(self._landed):
            report = self._uploads.reports.pop(client)
            self._land(client)
            self._server.requests.take_in(report, self._uploads.reported_by[client])
            self._in_use[client], self._based_on[client] = self._number[client], self._asked_at[client]
        return clients

    @property
    def others_are_at_work(self) -> bool:
        """Whether clients other than those of `next_clients` are going to answer."""
        return bool(self._out - set(self._taken))

    def age(self, client: int) -> float:
        """Return the age in rounds of a client's upload in use, counted from its request."""
        return (self._num_taken - self._based_on[client]) / self.num_clients

    def compute(self, trained: int = 0, predicted: int = 0) -> None:
        """Record the server's computation, in samples."""
        self._clock.compute(trained, predicted)

    def is_next_due(self, samples: int) -> bool:
        """Return whether the next uploads arrive before the server could have trained on this many samples."""
        return self._clock.is_next_due(self._buffer, samples, self)

    def answer(self, fresh: set[int]) -> None:
        """Ask the clients of `next_clients` for their next upload; those not in `fresh` were too stale to be used."""
        ages = {client: (self._num_taken - self._asked_at[client]) / self.num_clients for client in self._taken}
        self._num_taken += len(self._taken)
        for client in self._taken:
            asked_s, done_s = self._clock.times_of(client)
            times = asked_s, done_s, self._taken_s, self._clock.now
            is_used = client in self._landed & fresh
            self._records.append(
                UploadRecord(self._round + 1, client, self._number[client], *times, ages[client], int(is_used))
            )
            self._round_flops += self._edge_flops[client]
            self._round_bytes = [a + b for a, b in zip(self._round_bytes, self._bytes_of[client], strict=True)]
            self._bytes_of[client] = [0] * len(BYTES)
            self._number[client] += 1
        for client in self._taken:
            self._ask(client)

    def end_round(self) -> None:
        """Record the round's uploads and figures."""
        ages = [record.staleness for record in self._records]
        received_s, trained_s = (b - a for a, b in zip(self._seconds_before, self._seconds(), strict=True))
        figures = self._server.books.sum_reports() | {
            "uploads": len(ages),
            "staleness_mean": sum(ages) / len(ages),
            "staleness_max": max(ages),
            "client_s": self._waited_s,
            "wire_s": received_s,
            "server_s": trained_s - self._listened_s,
        }
        costs = {"edge_flops": self._round_flops, **self._clock.end_round()}
        moved = dict(zip(BYTES, self._round_bytes, strict=True))
        self._server.note(figures | costs | moved, self._records)

    def _seconds(self) -> tuple[float, float]:
        """Return the seconds spent receiving and training so far."""
        return self._timeline.seconds("receive"), self._timeline.seconds("server train")

    def state(self) -> State | None:
        """Return the checkpoint's contents: each client's progress, and the time; None before the first request."""
        if not self._is_open:
            return self._saved
        lists = {name: list(getattr(self, f"_{name}")) for name in _OF_EACH_CLIENT}
        return {"num_taken": self._num_taken, "clock": self._clock.state(), **lists}

    def load(self, state: State) -> None:
        """Restore what `state()` returned; the clients must have workers."""
        self._saved = state
        self._num_taken = state["num_taken"]
        for name in _OF_EACH_CLIENT:
            setattr(self, f"_{name}", list(state[name]))
        self._clock.load(state["clock"])

    def close(self) -> None:
        """Stop expecting uploads."""
        self._uploads.close()
