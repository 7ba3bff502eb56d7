"""Requests to clients and their uploads, despite invalid messages, bad clients and lost workers."""

import logging
from collections.abc import Callable, Mapping
from contextlib import closing

from gkt_mpi.errors import LostRankError, WireError
from gkt_mpi.federation.books import RoundBooks
from gkt_mpi.federation.collect import Events, Inbox, Uploads
from gkt_mpi.federation.faults import FaultsConfig
from gkt_mpi.federation.hosting import Hosting
from gkt_mpi.federation.watch import Watch
from gkt_mpi.log.progress import CLIENTS_TRAIN
from gkt_mpi.log.timeline import MOST_SPANS
from gkt_mpi.wire.contract import Contract
from gkt_mpi.wire.messages import ClientReport, Request

logger = logging.getLogger(__name__)

_REFUSALS_SAID = 3  # per round; further ones are only counted


class Requests:
    """Asks clients for their rounds, and receives what they upload."""

    def __init__(self, faults: FaultsConfig, hosting: Hosting, books: RoundBooks, watch: Watch) -> None:
        self.hosting, self.books = hosting, books
        self._faults, self._watch = faults, watch
        self._transport, self._progress = watch.transport, watch.progress
        self._asked: dict[int, Request] = {}  # clients whose upload has not been collected yet

    def request(self, client: int, request: Request) -> None:
        """Ask a client for its round; its upload is to be collected."""
        logger.debug(f"asking client {client} for round {request.round + 1}")
        self._asked[client] = request
        self.books.take_part(client, self.hosting.participant(client, request))
        self.hosting.send(client, request)

    def collect(self, round: int, inbox: Inbox) -> None:
        """Receive the uploads of all clients that have been asked into the inbox, in any order.

        Invalid messages are refused and reported. The clients of a lost worker start the round again on another. Raises
        `WireError` for a bad client unless `faults.on_bad_client` is drop, and `GktError` when no worker is left.
        """
        expected = {client: self.hosting.num_samples(client) for client in self._asked}
        self._progress.begin_phase(CLIENTS_TRAIN, sum(expected.values()) * inbox.passes)
        with closing(self.uploads(inbox, expected, round, self._watch.advance)) as uploads:
            while expected:
                uploads.receive()
        self._transport.flush()
        self._asked.clear()
        for client, report in sorted(uploads.reports.items()):
            self.take_in(report, uploads.reported_by[client])

    def uploads(
        self,
        inbox: Inbox,
        expected: dict[int, int],
        round: int | Mapping[int, int],
        on_samples: Callable[[int], None],
    ) -> Uploads:
        """Return a receiver for the uploads of the clients in `expected`, client to number of samples.

        `round` is their round number, common or per client. The clients of a lost worker move to others and repeat what
        they have not reported; so do bad clients with `faults.on_bad_client` drop.
        """
        contract = Contract.of_uploads(
            inbox.accepts(),
            round=round,
            num_samples=expected,
            sender=self.hosting.roster.worker_of,
            state_bytes=self.hosting.state_bytes,
            max_spans=MOST_SPANS,
        )

        def move_clients(lost: LostRankError, reports: dict[int, ClientReport]) -> None:
            """Host the clients of a lost worker elsewhere; those that have not reported start the round again."""
            moved = self.hosting.move(lost.rank, reports)
            self.books.count("lost_workers")
            logger.warning(f"{lost}; its clients ({', '.join(map(str, moved)) or 'none'}) move to other workers")
            for client in moved:
                if client in expected:
                    self._progress.advance(-inbox.reopen(client))
                    self.request(client, self._asked[client])

        events = Events(on_samples, self._count_refusal, self._judge, move_clients)
        return Uploads(self._transport, contract, inbox, expected, events)

    def take_in(self, report: ClientReport, rank: int) -> None:
        """Record a client's report, received from this rank, and the client's new state."""
        logger.debug(f"client {report.client} has reported round {report.round + 1}, from rank {rank}")
        self.hosting.states[report.client] = report.state
        self.books.take_in(report, rank)

    def _judge(self, client: int, why: str) -> None:
        """Handle a bad client: end the run, or restore its state from before this round."""
        if self._faults.on_bad_client == "stop":
            raise WireError(f"{why} (to continue without such data: --faults.on_bad_client drop)")
        self.books.count("dropped_clients")
        self.books.take_out(client, self._asked[client].round)  # an earlier report of the same round
        logger.warning(f"dropped in this round: {why}")
        self.hosting.host(client)

    def _count_refusal(self, why: str) -> None:
        if self.books.count("refused_messages") <= _REFUSALS_SAID:
            logger.warning(f"refused: {why}")
