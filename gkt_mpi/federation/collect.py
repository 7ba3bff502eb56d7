"""Receives the uploads of a round: blocks in order of arrival, directly into the bank, each validated."""

import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import astuple, dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch

from gkt_mpi.errors import LostRankError, WireError
from gkt_mpi.log.timeline import are_spans
from gkt_mpi.wire.contract import Accepts, Contract
from gkt_mpi.wire.header import Kind
from gkt_mpi.wire.messages import ClientMetrics, ClientReport, FeatureBlock, Message, ModelState
from gkt_mpi.wire.transport import SERVER, Transport

_THREADS = 2  # threads that receive and check; a single one is slower than an unchecked MPI message
# Bounds of an honest client's report, with a wide margin.
_LARGEST_LOSS = 1e6  # nats, mean over samples
_LARGEST_WEIGHT = 1e20  # includes the optimizer's moments
_LONGEST_S, _MOST_MIB = 1e8, 1e9
_CLOCKS_DIFFER_S = 86400.0  # clocks of the cluster's nodes
_STARTED, _STARTED_AT = time.time(), time.monotonic()
_MOST_COMING = 4  # messages queued for these threads: two wait


class Inbox(Protocol):
    """Destination of uploads: the feature bank, or its counterpart in another algorithm."""

    passes: int  # how often each sample of a client is counted during its upload
    answers: bool  # whether a client waits for an answer to each message: after a refusal it sends nothing more

    def accepts(self) -> Accepts:
        """Return which messages this inbox accepts."""

    def claim(self, message: Any) -> int:  # noqa: ANN401 - the kind of message that this inbox is for
        """Register a message that has arrived; return the number of samples it contains. Raises `WireError`.

        Unless the inbox `answers`, the features of a block may still be missing.
        """

    def missing(self, client: int) -> str:
        """Describe the missing part of a client's upload, "" if it is complete."""

    def reopen(self, client: int) -> int:
        """Discard a client's upload of this round; return the number of its samples."""


@runtime_checkable
class CheckingInbox(Inbox, Protocol):
    """An inbox that checks the contents of a message once it is complete."""

    def check(self, message: Any) -> None:  # noqa: ANN401
        """Accept a claimed message that is now complete; may run concurrently in another thread. Raises `WireError`."""


class ReportsOnly:
    """The inbox of rounds without uploads: clients only report."""

    passes, answers = 1, False

    def accepts(self) -> Accepts:
        """Return which messages this inbox accepts: only reports."""
        return Accepts(frozenset({Kind.REPORT}))

    def claim(self, message: object) -> int:
        """Never called: the contract refuses uploads."""
        raise AssertionError(message)

    def missing(self, client: int) -> str:
        """Return "": nothing is expected."""
        return ""

    def reopen(self, client: int) -> int:
        """Return 0: there is no upload to discard."""
        return 0


@dataclass(frozen=True)
class Events:
    """Callbacks during uploads; an exception raised by one of them ends the round."""

    on_samples: Callable[[int], None]
    """Number of samples that have arrived."""
    on_refusal: Callable[[str], None]
    """Reason why a message was refused."""
    on_bad_client: Callable[[int, str], None]
    """A client whose data cannot be used, and the reason: some of its messages were refused or missing."""
    on_lost_rank: Callable[[LostRankError, dict[int, ClientReport]], None]
    """A lost worker, and the reports so far. Its clients must be moved, and asked again if they have not reported."""


def collect_uploads(
    transport: Transport, contract: Contract, inbox: Inbox, expected: dict[int, int], events: Events
) -> dict[int, ClientReport]:
    """Receive until every client of `expected` (client to number of samples) has reported; return the good reports.

    `expected` is the dictionary that `contract` holds as `num_samples`.
    """
    with closing(Uploads(transport, contract, inbox, expected, events)) as uploads:
        while expected:
            uploads.receive()
    return uploads.reports


class Uploads:
    """The uploads of the clients in `expected` (client to number of samples), message by message.

    `expected` is the dictionary that `contract` holds as `num_samples`: a client that has reported is removed from it,
    so that anything else it sends is refused. Large payloads are received, and all messages checked, in other threads,
    several messages at a time; a report is accepted when all messages of its client have been checked. A bad client's
    data is removed from the inbox and its report dropped; the round continues without it.
    """

    def __init__(
        self, transport: Transport, contract: Contract, inbox: Inbox, expected: dict[int, int], events: Events
    ) -> None:
        self.reports: dict[int, ClientReport] = {}  # good reports
        self.reported_by: dict[int, int] = {}  # rank that each report came from
        self._transport, self._inbox = transport, inbox
        # Where a client waits for an answer, a message is processed as soon as it is claimed: it must be complete by
        # then.
        self._contract = contract if inbox.answers else replace(contract, fill=self._set_fill)
        self._check = inbox.check if isinstance(inbox, CheckingInbox) else None
        self._expected, self._events = expected, events
        self._faults: dict[int, str] = {}  # reason why a client is bad
        self._counted: dict[int, int] = {}  # samples of each client so far
        self._fill: Callable[[], None] | None = None  # of the message just received
        self._threads = ThreadPoolExecutor(_THREADS, "receive")
        self._coming: deque[tuple[int, Future[None]]] = deque()  # messages being filled or checked, with their client

    def receive(self) -> Message | None:
        """Wait for a message, accept it and return it; None if it was refused or a worker was lost."""
        return self._take_in(self._transport.receive)

    def receive_ready(self) -> Message | None:
        """Accept a message that has already arrived; None if there is none, it was refused, or a worker was lost."""
        return self._take_in(self._transport.receive_ready)

    def _take_in(self, receive: Callable[[Contract], tuple[int, Message] | None]) -> Message | None:
        message: Message | None = None
        self._fill = None
        lost: LostRankError | None = None
        try:
            received = receive(self._contract)
            rank, message = received if received is not None else (SERVER, None)
        except WireError as error:
            self._settle_all_of(error.client)  # so that faults of earlier messages are reported first
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
        """Receive the rest of a message and check it; runs in a thread."""
        if fill is not None:
            fill()
        if self._check is not None:
            self._check(message)

    def close(self) -> None:
        """Stop expecting uploads."""
        self._threads.shutdown(cancel_futures=True)

    def _refuse(self, error: WireError) -> None:
        """Report why a message was refused, and record its client as bad."""
        self._events.on_refusal(str(error))
        if error.client is not None:
            self._faults.setdefault(error.client, str(error))
            if error.closes_upload or self._inbox.answers:
                self._close(error.client)

    def _claim(self, message: FeatureBlock | ModelState) -> bool:
        """Register a message with the inbox; return False if it is refused."""
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
        """Wait until the oldest pending message has been received and checked."""
        _, future = self._coming.popleft()
        try:
            future.result()
        except WireError as error:
            self._refuse(error)
        except LostRankError:
            pass  # the transport reports this at the next receive

    def _take(self, report: ClientReport) -> None:
        """Accept a report if its client is good."""
        fault = _fault(report, self._inbox, self._expected[report.client])
        if fault is not None:
            self._faults.setdefault(report.client, fault)
        if report.client not in self._faults:
            self.reports[report.client] = report
            to_come = self._expected[report.client] * self._inbox.passes - self._counted.get(report.client, 0)
            self._count(report.client, max(0, to_come))  # samples trained on that need no upload
        self._close(report.client)

    def _close(self, client: int) -> None:
        """Stop expecting a client; discard its upload if it is bad."""
        del self._expected[client]
        self._counted.pop(client, None)
        fault = self._faults.pop(client, None)
        if fault is not None:
            self._inbox.reopen(client)
            self._events.on_bad_client(client, fault)


def _fault(report: ClientReport, inbox: Inbox, num_samples: int) -> str | None:
    """Return why a client that has reported is bad, or None; `num_samples` is the size of its shard."""
    where = f"client {report.client} in round {report.round + 1}"
    missing = inbox.missing(report.client)
    if missing:
        return f"{where} reported with {missing} missing from its upload"
    if not _are_possible(report.metrics, num_samples):
        return f"{where} reported {report.metrics}, which is impossible with {num_samples} samples"
    if not bool((report.state.view(torch.float32).abs() <= _LARGEST_WEIGHT).all()):  # NaN fails this as well
        return (
            f"{where} reported weights that are not finite or far too large; its training has diverged, lower client.lr"
        )
    now = _STARTED + time.monotonic() - _STARTED_AT  # the system's clock may have been changed meanwhile
    if not are_spans(report.spans, _STARTED - _CLOCKS_DIFFER_S, now + _CLOCKS_DIFFER_S):
        return f"{where} reported no valid timeline"
    return None


def _are_possible(metrics: ClientMetrics, num_samples: int) -> bool:
    """Return whether the metrics are possible: whole passes over the samples, losses and times within wide bounds."""
    return (
        all(math.isfinite(value) and value >= 0 for value in astuple(metrics))
        and metrics.samples % num_samples == 0
        and metrics.correct <= metrics.samples
        and max(metrics.loss_sum, metrics.cross_entropy_sum) <= metrics.samples * _LARGEST_LOSS
        and metrics.train_s + metrics.upload_s <= _LONGEST_S
        and metrics.peak_mib <= _MOST_MIB
    )
