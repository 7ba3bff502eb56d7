"""The server of a run, as an algorithm's server side uses it: rounds, and the requests and uploads in them.

An algorithm (such as `algorithms/fedgkt.py`) is a loop over `server.rounds()`. The server combines what is asked of
clients and received from them (requests.py) with the end of the round (round_end.py); a learner is what it trains.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from gkt_mpi.federation.books import FinishedRound
from gkt_mpi.federation.collect import Inbox
from gkt_mpi.federation.learner import Learner, State
from gkt_mpi.federation.plan import Plan
from gkt_mpi.federation.requests import Requests
from gkt_mpi.federation.round_end import RoundEnd
from gkt_mpi.federation.watch import Watch
from gkt_mpi.log.csv_log import UploadRecord
from gkt_mpi.log.progress import SERVER_TRAINS
from gkt_mpi.seeding import numpy_generator
from gkt_mpi.wire.messages import Request, Stop


class Server:
    """Rank 0 of a run."""

    def __init__(self, plan: Plan, learner: Learner, requests: Requests, round_end: RoundEnd, watch: Watch) -> None:
        self.plan, self.requests, self.watch = plan, requests, watch
        self.hosting, self.books = requests.hosting, requests.books
        self._learner, self._round_end, self._progress = learner, round_end, watch.progress
        self._transport = watch.transport
        self._transport.on_wait = watch.interrupt.check
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
        self.requests.request(client, request)

    def request_all(self, requests: Iterable[Request]) -> None:
        """Ask for the rounds of several clients."""
        for request in requests:
            self.requests.request(request.client, request)

    def collect(self, round: int, inbox: Inbox) -> None:
        """Receive the uploads of all clients that have been asked into the inbox; see `Requests.collect`."""
        self.requests.collect(round, inbox)

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
