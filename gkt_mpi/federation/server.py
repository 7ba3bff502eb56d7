"""The server of a run, as an algorithm's server side works with it: rounds, requests and uploads.

An algorithm (say `algorithms/fedgkt.py`) is a loop over `server.rounds()`. Beside it stand the clients and who hosts
them (hosting.py), the books of the round (books.py), and what comes after it (round_end.py); what it trains is its
learner.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from gkt_mpi.errors import LostRankError, WireError
from gkt_mpi.federation.books import FinishedRound, RoundBooks
from gkt_mpi.federation.collect import Events, Inbox, Uploads
from gkt_mpi.federation.faults import FaultsConfig
from gkt_mpi.federation.hosting import Hosting
from gkt_mpi.federation.learner import Learner
from gkt_mpi.federation.round_end import RoundEnd
from gkt_mpi.federation.watch import Watch
from gkt_mpi.log.csv_log import UploadRecord
from gkt_mpi.log.progress import CLIENTS_TRAIN, SERVER_TRAINS
from gkt_mpi.log.timeline import MOST_SPANS
from gkt_mpi.seeding import numpy_generator
from gkt_mpi.wire.contract import Contract
from gkt_mpi.wire.messages import ClientReport, Request, Stop

_REFUSALS_SAID = 3  # a round; the others are only counted


@dataclass(frozen=True)
class Plan:
    """What a run has been asked to be."""

    num_rounds: int
    participation: float  # the share of the clients in a round
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
        self._finished: FinishedRound | None = None  # the round before, until it is evaluated, saved and logged

    def resume(self, rounds_done: int, state: dict[str, Any] | None) -> None:
        """Go on after `rounds_done` rounds from what a checkpoint holds, or begin with None; open the log."""
        self.books.virtual_s = 0.0 if state is None else state["virtual_s"]
        self._round_end.open(rounds_done, state)

    def rounds(self, in_step: bool = True) -> Iterator[int]:
        """Yield the number of each round still to do; after the last stop the workers and write the summary.

        Not `in_step` are clients that are at work at the end of a round.
        """
        self.hosting.host_all()
        self._round_end.begin()
        for round in range(self._round_end.rounds_done, self.plan.num_rounds):
            self.books.begin(round)
            yield round
            assert self._finished is None, "the algorithm has not ended the round before"
            self._finished = self.books.end(self._learner.samples_trained)
            if not in_step or not self.watch.placement.has_own_cores:  # later it would slow the clients down
                self.end_last_round()
        self.end_last_round()
        self._finish(in_step)

    def end_last_round(self) -> None:
        """Evaluate, save and log the round before, unless that is done.

        To be called in each round, best when its clients have been asked: they work meanwhile.
        """
        if self._finished is not None:
            finished, self._finished = self._finished, None
            self._round_end.end(finished)
            self.books.begin_clients_time()

    def participants(self, round: int) -> list[int]:
        """Return the clients that take part in a round, ascending: drawn by the seed, at least one."""
        clients = list(self.hosting.roster)
        count = max(1, int(self.plan.participation * len(clients) + 0.5))
        if count < len(clients):
            drawn = numpy_generator(self.plan.seed, "participants", round).choice(len(clients), count, replace=False)
            clients = sorted(drawn.tolist())
        return clients

    def request(self, client: int, request: Request) -> None:
        """Ask a client for its round; what it sends is to be collected."""
        self._asked[client] = request
        self.books.take_part(client, self.hosting.participant(client, request))
        self.hosting.send(client, request)

    def collect(self, round: int, inbox: Inbox) -> None:
        """Receive the uploads of all clients that have been asked into the inbox, in whatever order they come.

        A message that is not valid is refused, and said. The clients of a lost worker begin the round again on
        another. Raises `WireError` for a bad client unless `faults.on_bad_client` is drop, and `GktError` when no
        worker is left.
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
        """Return what takes in the uploads of the clients in `expected`, client to number of samples.

        `round` is the number that theirs have, or each client's own. The clients of a lost worker go to others, and
        begin again what they have not reported; so do those of a bad one, with `faults.on_bad_client` drop.
        """
        contract = Contract(
            round=round,
            num_samples=expected,
            sender=self.hosting.roster.worker_of,
            state_bytes=self.hosting.state_bytes,
            max_spans=MOST_SPANS,
            **inbox.accepts(),
        )

        def move_clients(lost: LostRankError, reports: dict[int, ClientReport]) -> None:
            """Host the clients of a lost worker elsewhere; those that have not reported begin the round again."""
            moved = self.hosting.move(lost.rank, reports)
            self.books.count("lost_workers")
            self._progress.say(f"{lost}; its clients ({', '.join(map(str, moved)) or 'none'}) go to other workers")
            for client in moved:
                if client in expected:
                    self._progress.advance(-inbox.reopen(client))
                    self.request(client, self._asked[client])

        events = Events(on_samples, self._count_refusal, self._judge, move_clients)
        return Uploads(self._transport, contract, inbox, expected, events)

    def take_in(self, report: ClientReport, rank: int) -> None:
        """Keep a client's report, which has come from this rank, and with it the client's new state."""
        self.hosting.states[report.client] = report.state
        self.books.take_in(report, rank)

    def clients_phase(self) -> AbstractContextManager[None]:
        """Time the clients' part of the round, see `RoundBooks.clients_phase`."""
        return self.books.clients_phase()

    @contextmanager
    def server_phase(self, samples: int) -> Iterator[None]:
        """Time the server's training, which passes so many samples, on all cores, since the workers wait."""
        self._progress.begin_phase(SERVER_TRAINS, samples)
        seconds = self._transport.timeline.seconds("server train")
        with self.training(others_are_at_work=False):
            yield
        self.note({"server_s": self._transport.timeline.seconds("server train") - seconds})

    @contextmanager
    def training(self, others_are_at_work: bool) -> Iterator[None]:
        """Time a piece of the server's training, on all cores unless clients are at work."""
        cores = nullcontext() if others_are_at_work else self.watch.placement.all_cores()
        with self._transport.timeline.phase("server train"), cores:
            yield

    def note(self, figures: dict[str, float], uploads: Sequence[UploadRecord] = ()) -> None:
        """Add figures to the round's line in metrics.jsonl, and lines to uploads.csv."""
        self.books.note(figures, uploads)

    def _judge(self, client: int, why: str) -> None:
        """Do what is to be done about a bad client: end the run, or go on with the state it had before this round."""
        if self.plan.faults.on_bad_client == "stop":
            raise WireError(f"{why} (or go on without such data: --faults.on_bad_client drop)")
        self.books.count("dropped_clients")
        self.books.take_out(client, self._asked[client].round)  # an earlier report of the same round
        self._progress.say(f"dropped in this round: {why}")
        self.hosting.host(client)

    def _count_refusal(self, why: str) -> None:
        if self.books.count("refused_messages") <= _REFUSALS_SAID:
            self._progress.say(f"refused: {why}")

    def _finish(self, in_step: bool) -> None:
        """Stop the workers and write the summary of a whole run."""
        if not in_step:  # nobody needs what they are at, nor hears what they still say
            self._stop_at_once()
            self.watch.stop_listening()
        self._round_end.finish()
        if in_step:
            for rank in range(1, self._transport.size):
                self._transport.send(rank, Stop())
            self._transport.flush()

    def end_early(self) -> int:
        """Tell the workers to stop at once, save what is done, and say so in summary.json; return the rounds done."""
        self._progress.end_run()
        self._stop_at_once()
        return self._round_end.interrupt()

    def save(self) -> int:
        """Write the state after the last whole round, if it is not on the disk yet; return the rounds done."""
        return self._round_end.save()

    def _stop_at_once(self) -> None:
        for rank in range(1, self._transport.size):
            self._transport.stop(rank)
