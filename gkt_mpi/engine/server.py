"""The server: the rounds, the roster of clients, and the bookkeeping around each round.

An algorithm's server side (say `algorithms/fedgkt.py`) is a loop over `server.rounds()`; what it trains is its learner
(learner.py), what it calls in between stands here. Around the loop: resume, first hosting of the clients, evaluation,
log, checkpoint, end.
"""

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from gkt_mpi.engine.checkpoint import CheckpointStore
from gkt_mpi.engine.collect import Events, Inbox, collect_uploads
from gkt_mpi.engine.evaluate import Accuracy, EvaluateConfig, EvaluateMode
from gkt_mpi.engine.faults import FaultsConfig
from gkt_mpi.engine.learner import Learner
from gkt_mpi.engine.roster import Roster
from gkt_mpi.engine.trainable import Edge
from gkt_mpi.engine.virtual_clock import Participant, RoundPricer
from gkt_mpi.engine.watch import Watch
from gkt_mpi.errors import LostRankError, WireError
from gkt_mpi.models.resnet import EdgeName
from gkt_mpi.observe.run_log import RunLog
from gkt_mpi.observe.timeline import MOST_SPANS
from gkt_mpi.placement import Placement, peak_mib
from gkt_mpi.seeding import numpy_generator
from gkt_mpi.wire.contract import Contract
from gkt_mpi.wire.messages import ClientReport, Gradient, HostClient, Request, Stop, TrainRequest
from gkt_mpi.wire.transport import SERVER

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
        self._states = [edge.state() for edge in edges]
        self._state_bytes = {client: len(state) for client, state in enumerate(self._states)}
        self._evaluate_config, self._participation = evaluate_config, participation
        self._placement, self._checkpoints, self._log = placement, checkpoints, log
        self._watch, self._progress, self._faults = watch, watch.progress, faults
        self.transport.set_timeout(faults.timeout_s)
        self.transport.on_wait = watch.interrupt.check
        self._models, self._price = models, price
        self._taking_part: dict[int, Participant] = {}
        self._rounds_done = 0
        self._unsaved: tuple[int, dict[str, Any]] | None = None  # the run's state between rounds, if on no disk yet
        self._asked: dict[int, Request] = {}  # clients whose upload has not been collected yet
        self._reports: dict[int, ClientReport] = {}  # of the round
        self._spans: dict[int, list[Tensor]] = {}
        self._record: dict[str, Any] = {}
        self._to_close: dict[str, Any] | None = None  # the record of a round that is done, but not evaluated and saved

    def rounds(self) -> Iterator[int]:
        """Yield the number of each round still to do; in between evaluate, log and checkpoint, while the clients work.

        At the end, evaluate every stem on the whole test set, write the summary, and stop the workers.
        """
        start = self._rounds_done
        if start == 0:
            self._unsaved = 0, self._copy_of_state()
        for client in self.roster:
            self._host(client, self._states[client])
        self._progress.begin_round(start)
        self._round_began = time.perf_counter()
        for round in range(start, self.num_rounds):
            self._ledger = self._bytes()
            counts = ("participants", "refused_messages", "lost_workers", "dropped_clients")
            self._record = {"round": round} | dict.fromkeys(counts, 0)
            self._taking_part = {}
            yield round
            self._record |= asdict(self._price(self._taking_part, self._learner.samples_trained))
            names = ("upload_bytes", "download_bytes", "simulation_bytes")
            moved = (b - a for a, b in zip(self._ledger, self._bytes(), strict=True))
            self._to_close = {**self._record, **dict(zip(names, moved, strict=True))}
            if not self._placement.has_own_cores:  # what this rank computes now would only slow the clients down
                self._close_round()
        self._close_round()
        self._finish()

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
        """Leave what is moved inside out of the round's bytes: it makes up for what an interruption has cost."""
        before, taking_part = self._bytes(), dict(self._taking_part)
        yield
        self._taking_part = taking_part
        moved = (b - a for a, b in zip(before, self._bytes(), strict=True))
        self._ledger = [a + b for a, b in zip(self._ledger, moved, strict=True)]

    def request(self, client: int, request: Request) -> None:
        """Ask a client for its round; what it sends is to be collected."""
        self._asked[client] = request
        gets_logits = isinstance(request, TrainRequest) and len(request.sample_id) > 0
        num_samples = len(self.roster.shards[client])
        self._taking_part[client] = Participant(num_samples, self._models[client], gets_logits)
        self.send(client, request)

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
        self._progress.begin_phase("clients train and upload", sum(expected.values()) * inbox.passes)
        contract = Contract(
            round=round,
            num_samples=expected,
            sender=self.roster.worker_of,
            state_bytes=self._state_bytes,
            max_spans=MOST_SPANS,
            **inbox.accepts(),
        )
        self._reported_by: dict[int, int] = {}

        def move_clients(lost: LostRankError, reports: dict[int, ClientReport]) -> None:
            """Host the clients of a lost worker elsewhere; those that have not reported begin the round again."""
            new = reports.keys() - self._reported_by
            self._reported_by |= {client: self.roster.worker_of[client] for client in new}
            moved = self.roster.lose(lost.rank)
            self.transport.stop(lost.rank)  # should it come back to life
            self._record["lost_workers"] += 1
            names = ", ".join(map(str, moved)) or "none"
            self._progress.say(f"{lost}; its clients ({names}) go to other workers")
            for client in moved:
                self._host(client, reports[client].state if client in reports else self._states[client])
                if client in expected:
                    self._progress.advance(-inbox.reopen(client))
                    self.request(client, self._asked[client])

        events = Events(self._watch.advance, self._count_refusal, self._judge, move_clients)
        reports = collect_uploads(self.transport, contract, inbox, expected, events)
        self.transport.flush()
        self._asked.clear()
        self._take_in(reports)

    @contextmanager
    def clients_phase(self) -> Iterator[None]:
        """Time the clients' part of the round: `wire_s` is the server's receiving of payloads, `client_s` the rest.

        Raises `WireError` when nothing can be used of what the clients have sent.
        """
        received_s, trained_s = (self._timeline.seconds(phase) for phase in ("receive", "server train"))
        self._reports.clear()
        self._clients_began = time.perf_counter()
        yield
        if not self._reports:
            raise WireError(f"no client has uploaded anything that can be used in round {self._record['round']}")
        self._record |= _sums([self._reports[client] for client in sorted(self._reports)])
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
        self._progress.begin_phase("server trains", samples)
        with self._placement.all_cores():
            yield
        self._record["server_s"] = self._timeline.add("server train", began)

    def note(self, figures: dict[str, float]) -> None:
        """Add figures to the round's line in metrics.jsonl."""
        self._record |= figures

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
        self._progress.say(f"dropped in this round: {why}")
        self._host(client, self._states[client])

    def _count_refusal(self, why: str) -> None:
        self._record["refused_messages"] += 1
        if self._record["refused_messages"] <= _REFUSALS_SAID:
            self._progress.say(f"refused: {why}")

    def _take_in(self, reports: dict[int, ClientReport]) -> None:
        """Keep the clients' reports and states, in client order."""
        for client, report in sorted(reports.items()):
            self._states[client] = report.state
            rank = self._reported_by.get(client, self.roster.worker_of[client])
            self._spans.setdefault(rank, []).append(report.spans)
        self._reports |= reports

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
            record["evaluate_s"] = self._timeline.add("evaluate", evaluate_began)
        checkpoint_began = time.perf_counter()
        record["server_peak_mib"] = peak_mib()
        # The line is logged after the checkpoint, whose time it tells; the checkpoint has all but these two figures.
        record |= {"checkpoint_s": 0.0, "round_s": checkpoint_began - self._round_began}
        if is_last or num_done % self._checkpoints.config.every == 0:
            self._checkpoints.save(num_done, self._state(record))
            self._unsaved = None
        else:
            self._unsaved = num_done, self._copy_of_state(record)
        self._rounds_done = num_done
        record["checkpoint_s"] = self._timeline.add("checkpoint", checkpoint_began)
        began, self._round_began = self._round_began, time.perf_counter()
        record["round_s"] = self._round_began - began
        spans = {rank: torch.cat(parts) for rank, parts in self._spans.items()}
        self._log.append(record, {**spans, SERVER: self._timeline.take()})
        self._spans = {}
        self._progress.end_round(record)

    def _finish(self) -> None:
        """Evaluate every stem on the whole test set, write the summary, and stop the workers."""
        accuracy = self._evaluate("full", "final evaluation")
        for rank in range(1, self.transport.size):
            self.transport.send(rank, Stop())
        self.transport.flush()
        self._progress.end_run()
        self._log.finish(_named(accuracy), asdict(self._learner.compute))

    def _evaluate(self, mode: EvaluateMode, phase: str) -> Accuracy:
        self._progress.begin_phase(phase, self._learner.num_evaluated(mode))
        with self._placement.all_cores():
            return self._learner.evaluate(self._states, mode)

    def _bytes(self) -> list[int]:
        """Return the bytes so far: uploaded, downloaded, and the simulation's own."""
        ledger = self.transport.ledger
        return [ledger.received["algorithm"], ledger.sent["algorithm"], ledger.simulation_bytes]

    def _state(self, *record: dict[str, Any]) -> dict[str, Any]:
        """Return the whole state of the run, with the record of the round that has just been done, if any."""
        return {
            "compute": asdict(self._learner.compute),
            "learner": self._learner.state(),
            "clients": list(self._states),
            "records": [*self._log.records, *record],
        }

    def _copy_of_state(self, *record: dict[str, Any]) -> dict[str, Any]:
        """Return the state of the run as it is now, whatever changes later; the clients' are never changed in place."""
        state = self._state(*record)
        return copy.deepcopy({**state, "clients": []}) | {"clients": state["clients"]}

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
        for rank in range(1, self.transport.size):
            self.transport.stop(rank)
        rounds_done = self.save()
        self._log.interrupt(rounds_done)
        return rounds_done

    def resume(self, rounds_done: int, state: dict[str, Any] | None) -> None:
        """Go on after `rounds_done` rounds from what a checkpoint holds, or begin with None; opens the log."""
        self._rounds_done = rounds_done
        if state is not None:
            self._learner.load(state["learner"])
            self._states = list(state["clients"])
            self._progress.say(f"resumed after round {rounds_done} of {self.num_rounds}")
        self._log.begin(rounds_done, self.transport.size, state["records"] if state is not None else [])


def _sums(reports: list[ClientReport]) -> dict[str, float]:
    """Return a round's figures of these reports, which come in client order."""
    metrics = [report.metrics for report in reports]
    samples = sum(m.samples for m in metrics)
    figures: dict[str, float] = {"participants": len(reports)}
    if samples:  # none with client.epochs 0, or where the server has the losses
        figures["client_train_loss"] = sum(m.loss_sum for m in metrics) / samples
        figures["client_train_accuracy"] = sum(m.correct for m in metrics) / samples
    figures["worker_peak_mib"] = max(m.peak_mib for m in metrics)
    figures["slowest_client_s"] = max(m.train_s + m.upload_s for m in metrics)
    return figures


def _named(accuracy: Accuracy) -> dict[str, float]:
    """Return an accuracy as figures of a round."""
    edge = {} if accuracy.client is None else {"client_test_accuracy": accuracy.client}
    return {"test_accuracy": accuracy.result, **edge}
