"""The server: the rounds, the roster of clients, and the bookkeeping around each round.

An algorithm's server side (say `algorithms/fedgkt.py`) is a loop over `server.rounds()`; what it trains is its learner
(learner.py), what it calls in between stands here. Around the loop: resume, first hosting of the clients, evaluation,
log, checkpoint, end.
"""

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from gkt_mpi.cost.virtual_clock import Participant, RoundPricer
from gkt_mpi.errors import LostRankError, WireError
from gkt_mpi.federation.checkpoint import CheckpointStore
from gkt_mpi.federation.collect import Events, Inbox, Uploads
from gkt_mpi.federation.faults import FaultsConfig
from gkt_mpi.federation.learner import Learner
from gkt_mpi.federation.roster import Roster
from gkt_mpi.federation.watch import Watch
from gkt_mpi.log.csv_log import ClientRecord, UploadRecord
from gkt_mpi.log.progress import CLIENTS_TRAIN, SERVER_TRAINS
from gkt_mpi.log.run_log import RunLog
from gkt_mpi.log.timeline import MOST_SPANS
from gkt_mpi.models.resnet import EdgeName
from gkt_mpi.placement import Placement, peak_mib
from gkt_mpi.seeding import numpy_generator
from gkt_mpi.training.evaluate import Accuracy, EvaluateConfig, EvaluateMode
from gkt_mpi.training.trainable import Edge
from gkt_mpi.wire.contract import Contract
from gkt_mpi.wire.messages import ClientReport, Gradient, HostClient, Request, Stop, TrainRequest
from gkt_mpi.wire.transport import SERVER

BYTES = ("upload_bytes", "download_bytes", "simulation_bytes")
_COUNTS = ("participants", "refused_messages", "lost_workers", "dropped_clients")
_REFUSALS_SAID = 3  # a round; the others are only counted


class Server:
    """Rank 0 of a run, as an algorithm's server side works with it; `watch` carries transport, progress and signals."""

    def __init__(
        self,
        *,
        watch: Watch,
        roster: Roster,
        learner: Learner,
        edges: list[Edge[Any]],
        models: list[EdgeName],
        price: RoundPricer,
        evaluate_config: EvaluateConfig,
        num_rounds: int,
        participation: float,
        seed: int,
        faults: FaultsConfig,
        placement: Placement,
        checkpoints: CheckpointStore,
        log: RunLog,
    ) -> None:
        """`edges[k]` is what client k's state is loaded into; `participation` the share of clients in a round."""
        self.transport, self.roster = watch.transport, roster
        self.num_rounds, self.seed = num_rounds, seed
        self._learner, self._timeline = learner, watch.transport.timeline
        self.states = [edge.state() for edge in edges]  # the clients', as last reported
        self._state_bytes = {client: len(state) for client, state in enumerate(self.states)}
        self._evaluate_config, self._participation = evaluate_config, participation
        self._placement, self._checkpoints, self._log = placement, checkpoints, log
        self.watch, self._progress, self._faults = watch, watch.progress, faults
        self.transport.set_timeout(faults.timeout_s)
        self.transport.on_wait = watch.interrupt.check
        self._models, self._price = models, price
        self._taking_part: dict[int, Participant] = {}
        self._rounds_done, self._virtual_s = 0, 0.0
        self._unsaved: tuple[int, dict[str, Any]] | None = None  # the run's state between rounds, if on no disk yet
        self._asked: dict[int, Request] = {}  # clients whose upload has not been collected yet
        self._reports: list[ClientReport] = []  # of the round, in the order in which they count
        self._spans: dict[int, list[Tensor]] = {}
        self._record: dict[str, Any] = dict.fromkeys(_COUNTS, 0)
        self._uploads: list[UploadRecord] = []  # of the round, where the clients are not in step
        self._client_records: list[ClientRecord] = []  # of the round's evaluation
        self.costs: Callable[[], dict[str, float]] = self._costs_in_step  # of the round that is about to end
        self._to_close: dict[str, Any] | None = None  # the record of a round that is done, but not evaluated and saved

    def rounds(self, in_step: bool = True) -> Iterator[int]:
        """Yield the number of each round still to do; in between evaluate, log and checkpoint, while the clients work.

        At the end, evaluate every stem on the whole test set, write the summary, and stop the workers. Not `in_step`
        are clients that are at work at the end of a round.
        """
        start = self._rounds_done
        if start == 0:
            self._unsaved = 0, self._copy_of_state()
        for client in self.roster:
            self._host(client, self.states[client])
        self._progress.begin_round(start)
        self._round_began = time.perf_counter()
        for round in range(start, self.num_rounds):
            self._ledger = self.bytes()
            self._record = {"round": round} | self._record
            self._taking_part = {}
            yield round
            self._to_close = {**self._record, **self.costs()}
            self._record = dict.fromkeys(_COUNTS, 0)  # what happens from now on counts for the next round
            if not in_step or not self._placement.has_own_cores:  # what it computes later would slow the clients down
                self._close_round()
        self._close_round()
        self.finish(in_step)

    def _costs_in_step(self) -> dict[str, float]:
        """Return what a round has cost that began when no client was at work: on the devices, and in bytes."""
        cost = asdict(self._price(self._taking_part, self._learner.samples_trained, self._virtual_s))
        self._virtual_s += cost["virtual_s"]
        moved = (b - a for a, b in zip(self._ledger, self.bytes(), strict=True))
        return cost | dict(zip(BYTES, moved, strict=True))

    def participants(self, round: int) -> list[int]:
        """Return the clients that take part in a round, ascending: drawn by the seed, at least one."""
        clients = list(self.roster)
        count = max(1, int(self._participation * len(clients) + 0.5))
        if count < len(clients):
            drawn = numpy_generator(self.seed, "participants", round).choice(len(clients), count, replace=False)
            clients = sorted(drawn.tolist())
        return clients

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Leave what happens inside out of the round's figures: it makes up for what an interruption has cost."""
        before, taking_part, reports = self.bytes(), dict(self._taking_part), list(self._reports)
        yield
        self._taking_part, self._reports = taking_part, reports
        moved = (b - a for a, b in zip(before, self.bytes(), strict=True))
        self._ledger = [a + b for a, b in zip(self._ledger, moved, strict=True)]

    def request(self, client: int, request: Request) -> None:
        """Ask a client for its round; what it sends is to be collected."""
        self._asked[client] = request
        self._taking_part.setdefault(client, self.participant(client, request))  # its first request says what it costs
        self.send(client, request)

    def participant(self, client: int, request: Request) -> Participant:
        """Return what the cost of a client's round depends on."""
        gets = (request.sample_id, request.weights) if isinstance(request, TrainRequest) else ((), ())
        gets_logits, gets_weights = (len(part) > 0 for part in gets)
        return Participant(len(self.roster.shards[client]), self._models[client], gets_logits, gets_weights)

    def collect(self, round: int, inbox: Inbox) -> None:
        """Receive the uploads of all clients that have been asked into the inbox, in whatever order they come.

        A message that is not valid is refused, and said. The clients of a lost worker begin the round again on
        another. Raises `WireError` for a bad client unless `faults.on_bad_client` is drop, and `GktError` when no
        worker is left.
        """
        if self._to_close is not None:  # the round before: the clients have been asked, and are at work
            self._close_round()
            self._clients_began = time.perf_counter()
        expected = {client: len(self.roster.shards[client]) for client in self._asked}
        self._progress.begin_phase(CLIENTS_TRAIN, sum(expected.values()) * inbox.passes)
        with closing(self.uploads(inbox, expected, round, self.watch.advance)) as uploads:
            while expected:
                uploads.receive()
        self.transport.flush()
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
            sender=self.roster.worker_of,
            state_bytes=self._state_bytes,
            max_spans=MOST_SPANS,
            **inbox.accepts(),
        )

        def move_clients(lost: LostRankError, reports: dict[int, ClientReport]) -> None:
            """Host the clients of a lost worker elsewhere; those that have not reported begin the round again."""
            moved = self.roster.lose(lost.rank)
            self.transport.stop(lost.rank)  # should it come back to life
            self._record["lost_workers"] += 1
            names = ", ".join(map(str, moved)) or "none"
            self._progress.say(f"{lost}; its clients ({names}) go to other workers")
            for client in moved:
                self._host(client, reports[client].state if client in reports else self.states[client])
                if client in expected:
                    self._progress.advance(-inbox.reopen(client))
                    self.request(client, self._asked[client])

        events = Events(on_samples, self._count_refusal, self._judge, move_clients)
        return Uploads(self.transport, contract, inbox, expected, events)

    def sum_reports(self) -> dict[str, float]:
        """Return the clients' figures of the round; none when nothing of theirs could be used."""
        reports, self._reports = self._reports, []
        return _sums(reports) if reports else {}

    @contextmanager
    def clients_phase(self) -> Iterator[None]:
        """Time the clients' part of the round: `wire_s` is the server's receiving of payloads, `client_s` the rest.

        Raises `WireError` when nothing can be used of what the clients have sent.
        """
        received_s, trained_s = (self._timeline.seconds(phase) for phase in ("receive", "server train"))
        self._clients_began = time.perf_counter()
        yield
        if not self._reports:
            raise WireError(f"no client has uploaded anything that can be used in round {self._record['round']}")
        self._record |= self.sum_reports()
        trained_s = self._timeline.seconds("server train") - trained_s  # in split learning
        if trained_s:
            self._record["server_s"] = trained_s
        self._record["wire_s"] = self._timeline.seconds("receive") - received_s
        elapsed_s = time.perf_counter() - self._clients_began
        self._record["client_s"] = elapsed_s - self._record["wire_s"] - trained_s

    @contextmanager
    def server_phase(self, samples: int) -> Iterator[None]:
        """Time the server's training, which passes so many samples, on all cores, since the workers wait."""
        self._close_round()
        began = time.perf_counter()
        self._progress.begin_phase(SERVER_TRAINS, samples)
        with self._placement.all_cores():
            yield
        self._record["server_s"] = self._timeline.add("server train", began)

    @contextmanager
    def training(self, others_are_at_work: bool) -> Iterator[None]:
        """Time a piece of the server's training, on all cores unless clients are at work."""
        cores = nullcontext() if others_are_at_work else self._placement.all_cores()
        with self._timeline.phase("server train"), cores:
            yield

    def note(self, figures: dict[str, float], uploads: Sequence[UploadRecord] = ()) -> None:
        """Add figures to the round's line in metrics.jsonl, and lines to uploads.csv."""
        self._record |= figures
        self._uploads += uploads

    def send(self, client: int, message: HostClient | Request | Gradient) -> None:
        """Begin to send a message to a client's worker."""
        self.transport.send(self.roster.worker_of[client], message)

    def _host(self, client: int, state: Tensor) -> None:
        self.send(client, HostClient(client, torch.from_numpy(self.roster.shards[client]), state))

    def _judge(self, client: int, why: str) -> None:
        """Do what is to be done about a bad client: end the run, or go on with the state it had before this round."""
        if self._faults.on_bad_client == "stop":
            raise WireError(f"{why} (or go on without such data: --faults.on_bad_client drop)")
        self._record["dropped_clients"] += 1
        bad = (client, self._asked[client].round)  # nor does an earlier report of the same round count
        self._reports = [report for report in self._reports if (report.client, report.round) != bad]
        self._progress.say(f"dropped in this round: {why}")
        self._host(client, self.states[client])

    def _count_refusal(self, why: str) -> None:
        self._record["refused_messages"] += 1
        if self._record["refused_messages"] <= _REFUSALS_SAID:
            self._progress.say(f"refused: {why}")

    def take_in(self, report: ClientReport, rank: int) -> None:
        """Keep a client's report, which has come from this rank, and with it the client's new state."""
        self.states[report.client] = report.state
        self._spans.setdefault(rank, []).append(report.spans)
        self._reports.append(report)

    def _close_round(self) -> None:
        """Evaluate, save the state and log after a round, unless that has been done."""
        if self._to_close is None:
            return
        record, self._to_close = self._to_close, None
        num_done = record["round"] + 1
        is_last = num_done == self.num_rounds
        if is_last or num_done % self._evaluate_config.every == 0:
            evaluate_began = time.perf_counter()
            accuracy = self._evaluate(self._evaluate_config.mode, "evaluation")
            record |= _named(accuracy)
            self._client_records = _by_client(accuracy, record["round"])
            record["evaluate_s"] = self._timeline.add("evaluate", evaluate_began)
        checkpoint_began = time.perf_counter()
        record["server_peak_mib"] = peak_mib()
        # The line is logged after the checkpoint, whose time it tells; the checkpoint has all but these two figures.
        record |= {"checkpoint_s": 0.0, "round_s": checkpoint_began - self._round_began}
        is_best = self._checkpoints.config.best and self._is_best(record)
        if is_last or is_best or num_done % self._checkpoints.config.every == 0:
            self._checkpoints.save(num_done, self._state(record), is_best)
            self._unsaved = None
        else:
            self._unsaved = num_done, self._copy_of_state(record)
        self._rounds_done = num_done
        record["checkpoint_s"] = self._timeline.add("checkpoint", checkpoint_began)
        began, self._round_began = self._round_began, time.perf_counter()
        record["round_s"] = self._round_began - began
        spans = {rank: torch.cat(parts) for rank, parts in self._spans.items()}
        spans[SERVER] = self._timeline.take()
        self._log.append(record, spans, self._uploads, self._client_records)
        self._spans, self._uploads, self._client_records = {}, [], []
        self._progress.end_round(record)

    def _is_best(self, record: dict[str, Any]) -> bool:
        """Whether a round's test accuracy is higher than that of every round before."""
        return "test_accuracy" in record and record["test_accuracy"] > self._log.best_accuracy

    def finish(self, in_step: bool) -> None:
        """Evaluate every stem on the whole test set, write the summary, and stop the workers."""
        if not in_step:  # nobody needs what they are at, nor hears what they still say
            self._stop_at_once()
            self.watch.stop_listening()
        accuracy = self._evaluate("full", "final evaluation")
        if in_step:
            for rank in range(1, self.transport.size):
                self.transport.send(rank, Stop())
            self.transport.flush()
        self._progress.end_run()
        clients = _by_client(accuracy, self.num_rounds - 1, is_final=True)
        self._log.finish(_named(accuracy), asdict(self._learner.compute), clients, accuracy.confusion)

    def _evaluate(self, mode: EvaluateMode, phase: str) -> Accuracy:
        self._progress.begin_phase(phase, self._learner.num_evaluated(mode))
        with self._placement.all_cores():
            return self._learner.evaluate(self.states, mode)

    def bytes(self) -> list[int]:
        """Return what has been moved so far, in the order of `BYTES`."""
        ledger = self.transport.ledger
        return [ledger.received["algorithm"], ledger.sent["algorithm"], ledger.simulation_bytes]

    def _state(self, *record: dict[str, Any]) -> dict[str, Any]:
        """Return the whole state of the run, with the record of the round that has just been done, if any."""
        return {
            "compute": asdict(self._learner.compute),
            "learner": self._learner.state(),
            "clients": list(self.states),
            "log": self._log.saved(*record),
            "virtual_s": self._virtual_s,
            "uploads": [tuple(upload) for upload in self._uploads],  # of the round
            "client_records": [tuple(record) for record in self._client_records],  # likewise
        }

    def _copy_of_state(self, *record: dict[str, Any]) -> dict[str, Any]:
        """Return the state of the run as it is now, whatever changes later; neither clients' states nor records do."""
        state = self._state(*record)
        kept = {name: state[name] for name in ("clients", "log")}
        return copy.deepcopy({**state, **dict.fromkeys(kept)}) | kept

    def save(self) -> int:
        """Write the state after the last whole round, if it is not on the disk yet; return the rounds done.

        Raises `GktError` when it cannot be written.
        """
        if self._unsaved is not None:
            self._checkpoints.save(*self._unsaved)
            self._unsaved = None
        return self._rounds_done

    def end_early(self) -> int:
        """Save what is done, tell the workers to stop at once, and say so in summary.json; return the rounds done."""
        self._progress.end_run()
        self._stop_at_once()
        rounds_done = self.save()
        self._log.interrupt(rounds_done)
        return rounds_done

    def _stop_at_once(self) -> None:
        for rank in range(1, self.transport.size):
            self.transport.stop(rank)

    def resume(self, rounds_done: int, state: dict[str, Any] | None) -> None:
        """Go on after `rounds_done` rounds from what a checkpoint holds, or begin with None; opens the log."""
        self._rounds_done = rounds_done
        if state is not None:
            self._learner.load(state["learner"])
            self.states = list(state["clients"])
            self._progress.say(f"resumed after round {rounds_done} of {self.num_rounds}")
        uploads, clients = ([] if state is None else state[name] for name in ("uploads", "client_records"))
        log = None if state is None else state["log"]
        self._virtual_s = 0.0 if state is None else state["virtual_s"]
        self._log.begin(rounds_done, self.transport.size, log, uploads, clients, self._progress.say)


def _sums(reports: list[ClientReport]) -> dict[str, float]:
    """Return a round's figures of these reports."""
    metrics = [report.metrics for report in reports]
    samples = sum(m.samples for m in metrics)
    figures: dict[str, float] = {"participants": len({report.client for report in reports})}
    if samples:  # none with client.epochs 0, or where the server has the losses
        figures["client_train_loss"] = sum(m.loss_sum for m in metrics) / samples
        figures["client_train_accuracy"] = sum(m.correct for m in metrics) / samples
    figures["worker_peak_mib"] = max(m.peak_mib for m in metrics)
    seconds: dict[tuple[int, int], float] = {}
    for (
        report
    ) in reports:  # of one round a client may have reported twice: that it has trained, and that it has uploaded
        key = report.client, report.round
        seconds[key] = seconds.get(key, 0.0) + report.metrics.train_s + report.metrics.upload_s
    figures["slowest_client_s"] = max(seconds.values())
    return figures


def _named(accuracy: Accuracy) -> dict[str, float]:
    """Return an accuracy as figures of a round."""
    named = {
        "test_accuracy": accuracy.result,
        "client_test_accuracy": accuracy.client,
        "global_test_accuracy": accuracy.shared,
    }
    return {name: value for name, value in named.items() if value is not None}


def _by_client(accuracy: Accuracy, round: int, is_final: bool = False) -> list[ClientRecord]:
    """Return an accuracy as lines of clients.csv."""
    return [
        ClientRecord(round, int(is_final), client, images, correct / images, correct_alone / images)
        for client, images, correct, correct_alone in accuracy.by_client
    ]
