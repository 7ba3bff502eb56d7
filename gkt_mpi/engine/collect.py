"""How the server takes in a round's uploads: blocks as they come, straight into the bank, each checked."""

import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass

from gkt_mpi.engine.bank import Bank
from gkt_mpi.errors import LostRankError, WireError
from gkt_mpi.observe.timeline import are_spans
from gkt_mpi.wire.contract import Contract
from gkt_mpi.wire.messages import ClientReport, FeatureBlock, Message
from gkt_mpi.wire.transport import Transport


@dataclass(frozen=True)
class Events:
    """What is called as uploads come in; what one of them raises ends the round."""

    on_block: Callable[[int], None]
    """The samples of a block that has arrived."""
    on_refusal: Callable[[str], None]
    """Why a message was refused."""
    on_bad_client: Callable[[int, str], None]
    """A client, and why its data cannot be used: some of its messages were refused, or did not come at all."""
    on_lost_rank: Callable[[LostRankError, dict[int, ClientReport]], None]
    """A worker is lost; the reports so far. Its clients must be moved, and asked again if they have not reported."""


def collect_uploads(
    transport: Transport, contract: Contract, bank: Bank, expected: dict[int, int], events: Events
) -> dict[int, ClientReport]:
    """Receive until every client of `expected` (client to number of samples) has reported; return the good reports.

    `expected` is what `contract` knows as `num_samples`: a client that has reported is taken out of it, so that
    whatever it still sends is refused. A block's features are checked in another thread while the next block is
    received. Nothing of a bad client stays in the bank, and its report is left out; the round goes on.
    """
    intake = _Intake(bank, expected, events)
    with ThreadPoolExecutor(1, "check") as checker:
        check: Future[None] | None = None
        while expected:
            message: Message | None = None
            lost: LostRankError | None = None
            try:
                _, message = transport.receive(contract)
            except WireError as error:
                intake.refuse(error)
            except LostRankError as error:
                lost = error
            intake.settle(check)
            check = None
            if lost is not None:
                events.on_lost_rank(lost, intake.reports)
            elif isinstance(message, FeatureBlock):
                bank.claim(message)
                check = checker.submit(bank.check, message)
                events.on_block(len(message.sample_id))
            elif isinstance(message, ClientReport):
                intake.take(message)
    return intake.reports


class _Intake:
    """What has come of a round so far: the good reports, and which clients are bad."""

    def __init__(self, bank: Bank, expected: dict[int, int], events: Events) -> None:
        self.reports: dict[int, ClientReport] = {}
        self._faults: dict[int, str] = {}  # why a client is bad
        self._bank, self._expected, self._events = bank, expected, events

    def refuse(self, error: WireError) -> None:
        """Tell why a message was refused, and remember whose it was."""
        self._events.on_refusal(str(error))
        if error.client is not None:
            self._faults.setdefault(error.client, str(error))
            if error.closes_upload:
                self._close(error.client)

    def settle(self, check: "Future[None] | None") -> None:
        """Wait for the check of the block before, if there is one."""
        try:
            if check is not None:
                check.result()
        except WireError as error:
            self.refuse(error)

    def take(self, report: ClientReport) -> None:
        """Keep a report if its client is good."""
        fault = _fault(report, self._bank)
        if fault is not None:
            self._faults.setdefault(report.client, fault)
        if report.client not in self._faults:
            self.reports[report.client] = report
        self._close(report.client)

    def _close(self, client: int) -> None:
        """Take a client out of what is expected; drop what has come of it when it is bad."""
        del self._expected[client]
        if client in self._faults:
            self._bank.reopen(client)
            self._events.on_bad_client(client, self._faults[client])


def _fault(report: ClientReport, bank: Bank) -> str | None:
    """Return why a client that has reported is bad, if it is."""
    where = f"client {report.client} in round {report.round}"
    missing = bank.num_missing(report.client)
    if missing:
        return f"{where} closed its upload with {missing} samples missing"
    if not all(math.isfinite(value) and value >= 0 for value in astuple(report.metrics)):
        return f"{where} reported {report.metrics}"
    if not are_spans(report.spans):
        return f"{where} reported no valid timeline"
    return None
