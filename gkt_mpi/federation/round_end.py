"""The end of a round: evaluation, checkpoint and log; after the last one also the summary."""

import copy
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict

import torch

from gkt_mpi.federation.books import FinishedRound
from gkt_mpi.federation.checkpoint import CheckpointStore
from gkt_mpi.federation.hosting import Hosting
from gkt_mpi.federation.learner import HasState, Learner, State
from gkt_mpi.federation.plan import Plan
from gkt_mpi.federation.watch import Watch
from gkt_mpi.log.csv_log import ClientRecord
from gkt_mpi.log.run_log import RunLog
from gkt_mpi.placement import peak_mib
from gkt_mpi.training.evaluate import Accuracy, EvaluateMode
from gkt_mpi.wire.transport import SERVER

logger = logging.getLogger(__name__)


class RoundEnd:
    """Evaluates the learner, saves the state of the run, and writes its log."""

    def __init__(
        self,
        learner: Learner,
        hosting: Hosting,
        watch: Watch,
        checkpoints: CheckpointStore,
        log: RunLog,
        plan: Plan,
    ) -> None:
        self.rounds_done = 0
        self.num_rounds, self._config = plan.num_rounds, plan.evaluate
        self._learner, self._hosting, self._watch = learner, hosting, watch
        self._checkpoints, self._log = checkpoints, log
        self._timeline = watch.transport.timeline
        self._round_began = time.perf_counter()
        self._unsaved: tuple[int, State] | None = None  # the run's state between rounds, if unsaved

    def open(self, rounds_done: int, state: State | None) -> None:
        """Resume after `rounds_done` rounds from a checkpoint's state, or start with None; open the log."""
        self.rounds_done = rounds_done
        if state is not None:
            if isinstance(self._learner, HasState):
                self._learner.load(state["learner"])
            self._hosting.states[:] = state["clients"]
            logger.info(f"resumed after round {rounds_done} of {self.num_rounds}")
        uploads, clients = ([] if state is None else state[name] for name in ("uploads", "client_records"))
        log = None if state is None else state["log"]
        self._log.begin(rounds_done, self._watch.transport.size, log, uploads, clients)

    def begin(self) -> None:
        """Start the clock of the rounds."""
        if self.rounds_done == 0:
            self._unsaved = 0, _copy(self._state())
        self._watch.progress.begin_round(self.rounds_done)
        self._round_began = time.perf_counter()

    def end(self, finished: FinishedRound) -> None:
        """Evaluate and save, if they are due, and log after a round. Raises `GktError`."""
        record, num_done, clients = finished.record, finished.record["round"], list[ClientRecord]()
        is_last = num_done == self.num_rounds
        if is_last or num_done % self._config.every == 0:
            began = time.perf_counter()
            accuracy = self._evaluate(self._config.mode, "evaluation")
            record |= named(accuracy)
            clients = by_client(accuracy, num_done)
            record["evaluate_s"] = self._timeline.add("evaluate", began)
        self._save_after(finished, clients, is_last)
        spans = {rank: torch.cat(parts) for rank, parts in finished.spans.items()}
        spans[SERVER] = self._timeline.take()
        self._log.append(record, spans, finished.uploads, clients)
        self._watch.progress.end_round(record)

    def _save_after(self, finished: FinishedRound, clients: list[ClientRecord], is_last: bool) -> None:
        """Save the state after a round, if it is due; add the time this took to the round's record."""
        record, began = finished.record, time.perf_counter()
        num_done = record["round"]
        record["server_peak_mib"] = peak_mib()
        # The line is logged after the checkpoint, whose time it contains; the checkpoint has all but these two figures.
        record |= {"checkpoint_s": 0.0, "round_s": began - self._round_began}
        is_best = self._checkpoints.config.best and record.get("test_accuracy", -1.0) > self._log.best_accuracy
        state = self._state(finished, clients)
        if is_last or is_best or num_done % self._checkpoints.config.every == 0:
            self._checkpoints.save(num_done, state, is_best)
            self._unsaved = None
        else:
            self._unsaved = num_done, _copy(state)
        self.rounds_done = num_done
        record["checkpoint_s"] = self._timeline.add("checkpoint", began)
        began, self._round_began = self._round_began, time.perf_counter()
        record["round_s"] = self._round_began - began

    def finish(self) -> None:
        """Evaluate every stem on the whole test set, and write the summary. Raises `GktError`."""
        accuracy = self._evaluate("full", "final evaluation")
        self._watch.progress.end_run()
        clients = by_client(accuracy, self.num_rounds, is_final=True)
        self._log.finish(named(accuracy), asdict(self._learner.compute), clients, accuracy.confusion)

    def save(self) -> int:
        """Save the state after the last complete round, if it has not been saved yet; return the rounds done.

        Raises `GktError` when it cannot be written.
        """
        if self._unsaved is not None:
            self._checkpoints.save(*self._unsaved)
            self._unsaved = None
        return self.rounds_done

    def interrupt(self) -> int:
        """Save the completed rounds, and mark summary.json as interrupted; return the rounds done."""
        rounds_done = self.save()
        self._log.interrupt(rounds_done)
        return rounds_done

    def _evaluate(self, mode: EvaluateMode, phase: str) -> Accuracy:
        self._watch.progress.begin_phase(phase, self._learner.num_evaluated(mode))
        with self._watch.placement.all_cores():
            return self._learner.evaluate(self._hosting.states, mode)

    def _state(self, finished: FinishedRound | None = None, clients: Sequence[ClientRecord] = ()) -> State:
        """Return the complete state of the run, with the figures of the round that has just finished, if any."""
        records = [] if finished is None else [finished.record]
        return {
            "compute": asdict(self._learner.compute),
            "learner": self._learner.state() if isinstance(self._learner, HasState) else {},
            "clients": list(self._hosting.states),
            "log": self._log.saved(*records),
            "virtual_s": 0.0 if finished is None else finished.virtual_s,
            "uploads": [tuple(upload) for upload in (finished.uploads if finished is not None else ())],
            "client_records": [tuple(record) for record in clients],
        }


def _copy(state: State) -> State:
    """Return a copy of a state that later changes do not affect; clients' states and records are immutable."""
    kept = {name: state[name] for name in ("clients", "log")}
    return copy.deepcopy({**state, **dict.fromkeys(kept)}) | kept


def named(accuracy: Accuracy) -> dict[str, float]:
    """Return an accuracy as figures of a round."""
    figures = {
        "test_accuracy": accuracy.result,
        "client_test_accuracy": accuracy.client,
        "global_test_accuracy": accuracy.shared,
    }
    return {name: value for name, value in figures.items() if value is not None}


def by_client(accuracy: Accuracy, round: int, is_final: bool = False) -> list[ClientRecord]:
    """Return an accuracy as lines of clients.csv."""
    return [
        ClientRecord(round, int(is_final), client, images, correct / images, correct_alone / images)
        for client, images, correct, correct_alone in accuracy.by_client
    ]
