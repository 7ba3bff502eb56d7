"""The server of a run, as an algorithm's server side uses it: rounds, requests and uploads.

An algorithm (such as `algorithms/fedgkt.py`) is a loop over `server.rounds()`. The server combines the clients and
their workers (hosting.py), the accounting of the round (books.py), and the end of the round (round_end.py); a learner
is what it trains.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass

from gkt_mpi.errors import LostRankError, WireError
from gkt_mpi.federation.books import FinishedRound, RoundBooks
from gkt_mpi.federation.collect import Events, Inbox, Uploads
from gkt_mpi.federation.faults import FaultsConfig
from gkt_mpi.federation.hosting import Hosting
from gkt_mpi.federation.learner import Learner, State
from gkt_mpi.federation.round_end import RoundEnd
from gkt_mpi.federation.watch import Watch
from gkt_mpi.log.csv_log import UploadRecord
from gkt_mpi.log.progress import CLIENTS_TRAIN, SERVER_TRAINS
from gkt_mpi.log.timeline import MOST_SPANS
from gkt_mpi.seeding import numpy_generator
from gkt_mpi.wire.contract import Contract
from gkt_mpi.wire.messages import ClientReport, Request, Stop

logger = logging.getLogger(__name__)

_REFUSALS_SAID = 3  # per round; further ones are only counted


@dataclass(frozen=True)
class Plan:
    """The configured rounds, participation and fault handling of a run."""

    num_rounds: int
    participation: float  # share of the clients in a round
    seed: int
    faults: FaultsConfig


class Server:
    """Rank 0 of a run."""

    def __init__(
        self, plan: Plan, learner: Learner, hosting: Hosting, books: RoundBooks, round_end: RoundEnd, watch: Watch
    ) -> None:
        self.plan, self.hosting, self.books, self.watch = plan, hosting, books, watch
        self._learner, self._round_end, self._progress = learner, round_end, watch.progress
        self._transport = watch.transport
        self._transport.set_timeout(plan.faults.timeout_s)
        self._transport.on_wait = watch.interrupt.check
        self._asked: dict[int, Request] = {}  # clients whose upload has not been collected yet
        self._finished: FinishedRound | None = None  # the previous round, until it is evaluated, saved and logged

    def resume(self, rounds_done: int, state: State | None) -> None:
        """Resume after `rounds_done` rounds from a checkpoint's state, or start with None; open the log."""
        self.books.virtual_s = 0.0 if state is None else state["virtual_s"]
        self._round_end.open(rounds_done, state)

    def rounds(self, synchronous: bool = True) -> Iterator[int]:
        """Yield the number of each remaining round; after the last, stop the workers and write the summary.

        Without `synchronous`, clients may still be working at the end of a round.
        """
        self.hosting.host_all()
        self._round_end.begin()
        for round in range(self._round_end.rounds_done, self.plan.num_rounds):
            self.books.begin(round)
            yield round
            assert self._finished is None, "the algorithm has not ended the previous round"
            self._finished = self.books.end(self._learner.samples_trained)
            if not synchronous or not self.watch.placement.has_own_cores:  # later it would slow the clients down
                self.end_last_round()
        self.end_last_round()
        self._finish(synchronous)

    def end_last_round(self) -> None:
        """Evaluate, save and log the previous round, unless this has been done.

        Call it in each round, preferably after the requests have been sent, while the clients work.
        """
        if self._finished is not None:
            finished, self._finished = self._finished, None
            self._round_end.end(finished)
            self.books.begin_clients_time()

    def participants(self, round: int) -> list[int]:
        """Return the clients that take part in a round, ascending: drawn from the seed, at least one."""
        clients = list(self.hosting.roster)
        count = max(1, int(self.plan.participation * len(clients) + 0.5))
        if count < len(clients):
            drawn = numpy_generator(self.plan.seed, "participants", round).choice(len(clients), count, replace=False)
            clients = sorted(drawn.tolist())
        return clients

    def request(self, client: int, request: Request) -> None:
        """Ask a client for its round; its upload is to be collected."""
        logger.debug(f"asking client {client} for round {request.round + 1}")
        self._asked[client] = request
        self.books.take_part(client, self.hosting.participant(client, request))
        self.hosting.send(client, request)

    def request_all(self, requests: Iterable[Request]) -> None:
        """Ask for the rounds of several clients."""
        for request in requests:
            self.request(request.client, request)

    def collect(self, round: int, inbox: Inbox) -> None:
        """Receive the uploads of all clients that have been asked into the inbox, in any order.

        Invalid messages are refused and reported. The clients of a lost worker start the round again on another. Raises
        `WireError` for a bad client unless `faults.on_bad_client` is drop, and `GktError` when no worker is left.
        """
        expected = {client: self.hosting.num_samples(client) for client in self._asked}
        self._progress.begin_phase(CLIENTS_TRAIN, sum(expected.values()) * inbox.passes)
        with closing(self.uploads(inbox, expected, round, self.watch.advance)) as uploads:
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

    def clients_phase(self) -> AbstractContextManager[None]:
        """Time the clients' part of the round, see `RoundBooks.clients_phase`."""
        return self.books.clients_phase()

    @contextmanager
    def server_phase(self, samples: int) -> Iterator[None]:
        """Time the server's training over this many samples, on all cores, since the workers wait."""
        self._progress.begin_phase(SERVER_TRAINS, samples)
        seconds = self._transport.timeline.seconds("server train")
        with self.training(others_are_at_work=False):
            yield
        self.note({"server_s": self._transport.timeline.seconds("server train") - seconds})

    @contextmanager
    def training(self, others_are_at_work: bool) -> Iterator[None]:
        """Time a part of the server's training, on all cores unless clients are working."""
        cores = nullcontext() if others_are_at_work else self.watch.placement.all_cores()
        with self._transport.timeline.phase("server train"), cores:
            yield

    def note(self, figures: dict[str, float], uploads: Sequence[UploadRecord] = ()) -> None:
        """Add figures to the round's line in metrics.jsonl, and lines to uploads.csv."""
        self.books.note(figures, uploads)

    def _judge(self, client: int, why: str) -> None:
        """Handle a bad client: end the run, or restore its state from before this round."""
        if self.plan.faults.on_bad_client == "stop":
            raise WireError(f"{why} (to continue without such data: --faults.on_bad_client drop)")
        self.books.count("dropped_clients")
        self.books.take_out(client, self._asked[client].round)  # an earlier report of the same round
        logger.warning(f"dropped in this round: {why}")
        self.hosting.host(client)

    def _count_refusal(self, why: str) -> None:
        if self.books.count("refused_messages") <= _REFUSALS_SAID:
            logger.warning(f"refused: {why}")

    def _finish(self, synchronous: bool) -> None:
        """Stop the workers and write the summary of a complete run."""
        if not synchronous:  # their current work and further messages are not needed
            self._stop_at_once()
            self.watch.stop_listening()
        self._round_end.finish()
        if synchronous:
            for rank in range(1, self._transport.size):
                self._transport.send(rank, Stop())
            self._transport.flush()

    def end_early(self) -> int:
        """Stop the workers at once, save, and mark summary.json as interrupted; return the rounds done."""
        self._progress.end_run()
        self._stop_at_once()
        return self._round_end.interrupt()

    def save(self) -> int:
        """Save the state after the last complete round, if it has not been saved yet; return the rounds done."""
        return self._round_end.save()

    def _stop_at_once(self) -> None:
        for rank in range(1, self._transport.size):
            self._transport.stop(rank)
