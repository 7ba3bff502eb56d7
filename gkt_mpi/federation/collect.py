"""How the server takes in a round's uploads: blocks as they come, straight into the bank, each checked."""

import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import astuple, dataclass, replace
from typing import Any, Protocol

import torch

from gkt_mpi.errors import LostRankError, WireError
from gkt_mpi.log.timeline import are_spans
from gkt_mpi.wire.contract import Contract
from gkt_mpi.wire.messages import ClientMetrics, ClientReport, FeatureBlock, Kind, Message, ModelState
from gkt_mpi.wire.transport import SERVER, Transport

_THREADS = 2  # that receive and check; one alone is slower than a plain message of MPI, which nobody checks
# What an honest client can report, by a wide margin.
_LARGEST_LOSS = 1e6  # nats, mean over samples
_LARGEST_WEIGHT = 1e20  # the optimizer's moments among them
_LONGEST_S, _MOST_MIB = 1e8, 1e9
_CLOCKS_DIFFER_S = 86400.0  # those of the cluster's nodes
_STARTED, _STARTED_AT = time.time(), time.monotonic()
_MOST_COMING = 4  # messages that are with these threads: two wait


class Inbox(Protocol):
    """Where uploads go: the feature bank, or what another algorithm has in its place."""

    passes: int  # how often each sample of a client is counted while its upload comes in
    answers: bool  # whether a client waits for an answer to what it sends: after a refusal nothing more will come of it

    def accepts(self) -> dict[str, Any]:
        """Return the fields of the contract under which messages are taken in."""

    def claim(self, message: Any) -> int:  # noqa: ANN401 - the kind of message that this inbox is for
        """Take note of a message that has come; return how many samples it brings. Raises `WireError`.

        Unless the inbox `answers`, the features of a block may still be missing.
        """

    def check(self, message: Any) -> None:  # noqa: ANN401
        """Take in a claimed message that is whole now; may run in another thread, beside others. Raises `WireError`."""

    def missing(self, client: int) -> str:
        """Say what of a client's upload is not there, "" when all of it is."""

    def reopen(self, client: int) -> int:
        """Take out what has come of a client in this round; return how many samples that was."""


class ReportsOnly:
    """The inbox of rounds in which nothing is uploaded: a client only reports."""

    passes, answers = 1, False

    def accepts(self) -> dict[str, Any]:
        """Return the fields of the contract: nothing but reports."""
        return {"kinds": frozenset({Kind.REPORT})}

    def claim(self, message: object) -> int:
        """Never called: the contract refuses uploads."""
        raise AssertionError(message)

    def check(self, message: object) -> None:
        """Do nothing."""

    def missing(self, client: int) -> str:
        """Return "": nothing is expected."""
        return ""

    def reopen(self, client: int) -> int:
        """Return 0: nothing of a client can come in."""
        return 0


@dataclass(frozen=True)
class Events:
    """What is called as uploads come in; what one of them raises ends the round."""

    on_samples: Callable[[int], None]
    """How many samples have arrived."""
    on_refusal: Callable[[str], None]
    """Why a message was refused."""
    on_bad_client: Callable[[int, str], None]
    """A client, and why its data cannot be used: some of its messages were refused, or did not come at all."""
    on_lost_rank: Callable[[LostRankError, dict[int, ClientReport]], None]
    """A worker is lost; the reports so far. Its clients must be moved, and asked again if they have not reported."""


def collect_uploads(
    transport: Transport, contract: Contract, inbox: Inbox, expected: dict[int, int], events: Events
) -> dict[int, ClientReport]:
    """Receive until every client of `expected` (client to number of samples) has reported; return the good reports.

    `expected` is what `contract` knows as `num_samples`.
    """
    with closing(Uploads(transport, contract, inbox, expected, events)) as uploads:
        while expected:
            uploads.receive()
    return uploads.reports


class Uploads:
    """The uploads of the clients in `expected` (client to number of samples), as they come in, message by message.

    `expected` is what `contract` knows as `num_samples`: a client that has reported is taken out of it, so that
    whatever it still sends is refused. What is long in a message is received, and all is checked, in other threads,
    several messages at a time; a report is taken in when all of its client's messages are through. Nothing of a
    bad client stays in the inbox, and its report is left out; all goes on without it.
    """

    def __init__(
        self, transport: Transport, contract: Contract, inbox: Inbox, expected: dict[int, int], events: Events
    ) -> None:
        self.reports: dict[int, ClientReport] = {}  # the good ones
        self.reported_by: dict[int, int] = {}  # the rank that each of them came from
        self._transport, self._inbox = transport, inbox
        # Where a client waits for an answer, a message is worked on as soon as it is claimed: it must be whole by then.
        self._contract = contract if inbox.answers else replace(contract, fill=self._set_fill)
        self._expected, self._events = expected, events
        self._faults: dict[int, str] = {}  # why a client is bad
        self._counted: dict[int, int] = {}  # samples of a client so far
        self._fill: Callable[[], None] | None = None  # of the message just received
        self._threads = ThreadPoolExecutor(_THREADS, "receive")
        self._coming: deque[tuple[int, Future[None]]] = deque()  # messages that are being filled or checked: whose

    def receive(self) -> Message | None:
        """Wait for a message, take it in and return it; None when it was refused, or a worker has been lost."""
        return self._take_in(self._transport.receive)

    def receive_ready(self) -> Message | None:
        """Take in a message that has come; None when none has, or it was refused, or a worker has been lost."""
        return self._take_in(self._transport.receive_ready)

    def _take_in(self, receive: Callable[[Contract], tuple[int, Message] | None]) -> Message | None:
        message: Message | None = None
        self._fill = None
        lost: LostRankError | None = None
        try:
            received = receive(self._contract)
            rank, message = received if received is not None else (SERVER, None)
        except WireError as error:
            self._settle_all_of(error.client)  # so that a fault of what came before is told first
            self._refuse(error)
        except LostRankError as error:
            lost = error
        self._settle_done()
        if lost is not None:
            while self._coming:
                self._settle_oldest()
            self._events.on_lost_rank(lost, self.reports)
        elif isinstance(message, ClientReport):
            self._settle_all_of(message.client)
            self.reported_by[message.client] = rank
            self._take(message)
        elif isinstance(message, FeatureBlock | ModelState) and self._claim(message):
            while len(self._coming) >= _MOST_COMING:
                self._settle_oldest()
            self._coming.append((message.client, self._threads.submit(self._finish, message, self._fill)))
        return message

    def _set_fill(self, fill: Callable[[], None]) -> None:
        self._fill = fill

    def _finish(self, message: FeatureBlock | ModelState, fill: Callable[[], None] | None) -> None:
        """Receive what is left of a message, and check it; in a thread."""
        if fill is not None:
            fill()
        self._inbox.check(message)

    def close(self) -> None:
        """Expect nothing any more."""
        self._threads.shutdown(cancel_futures=True)

    def _refuse(self, error: WireError) -> None:
        """Tell why a message was refused, and remember whose it was."""
        self._events.on_refusal(str(error))
        if error.client is not None:
            self._faults.setdefault(error.client, str(error))
            if error.closes_upload or self._inbox.answers:
                self._close(error.client)

    def _claim(self, message: FeatureBlock | ModelState) -> bool:
        """Have the inbox take note of a message; False when it is refused."""
        try:
            samples = self._inbox.claim(message)
        except WireError as error:
            self._refuse(error)
            return False
        self._count(message.client, samples)
        return True

    def _count(self, client: int, samples: int) -> None:
        self._counted[client] = self._counted.get(client, 0) + samples
        if samples:
            self._events.on_samples(samples)

    def _settle_done(self) -> None:
        while self._coming and self._coming[0][1].done():
            self._settle_oldest()

    def _settle_all_of(self, client: int | None) -> None:
        while any(whose == client for whose, _ in self._coming):
            self._settle_oldest()

    def _settle_oldest(self) -> None:
        """Wait until the oldest of the messages that are coming is there and checked."""
        _, future = self._coming.popleft()
        try:
            future.result()
        except WireError as error:
            self._refuse(error)
        except LostRankError:
            pass  # the transport tells of that, when it is waited for a message again

    def _take(self, report: ClientReport) -> None:
        """Keep a report if its client is good."""
        fault = _fault(report, self._inbox, self._expected[report.client])
        if fault is not None:
            self._faults.setdefault(report.client, fault)
        if report.client not in self._faults:
            self.reports[report.client] = report
            to_come = self._expected[report.client] * self._inbox.passes - self._counted.get(report.client, 0)
            self._count(report.client, max(0, to_come))  # what has been trained on without a word
        self._close(report.client)

    def _close(self, client: int) -> None:
        """Take a client out of what is expected; drop what has come of it when it is bad."""
        del self._expected[client]
        self._counted.pop(client, None)
        fault = self._faults.pop(client, None)
        if fault is not None:
            self._inbox.reopen(client)
            self._events.on_bad_client(client, fault)


def _fault(report: ClientReport, inbox: Inbox, num_samples: int) -> str | None:
    """Return why a client with so many samples, which has reported, is bad, if it is."""
    where = f"client {report.client} in round {report.round}"
    missing = inbox.missing(report.client)
    if missing:
        return f"{where} closed its upload with {missing} missing"
    if not _are_possible(report.metrics, num_samples):
        return f"{where} reported {report.metrics}, which cannot be with {num_samples} samples"
    if not bool((report.state.view(torch.float32).abs() <= _LARGEST_WEIGHT).all()):  # nor is NaN
        return (
            f"{where} reported weights that are not finite or far too large; its training has diverged, lower client.lr"
        )
    now = _STARTED + time.monotonic() - _STARTED_AT  # the system's clock may have been set meanwhile
    if not are_spans(report.spans, _STARTED - _CLOCKS_DIFFER_S, now + _CLOCKS_DIFFER_S):
        return f"{where} reported no valid timeline"
    return None


def _are_possible(metrics: ClientMetrics, num_samples: int) -> bool:
    """Whether a client can have measured this: whole passes over its samples, losses and times within wide bounds."""
    return (
        all(math.isfinite(value) and value >= 0 for value in astuple(metrics))
        and metrics.samples % num_samples == 0
        and metrics.correct <= metrics.samples
        and max(metrics.loss_sum, metrics.cross_entropy_sum) <= metrics.samples * _LARGEST_LOSS
        and metrics.train_s + metrics.upload_s <= _LONGEST_S
        and metrics.peak_mib <= _MOST_MIB
    )
