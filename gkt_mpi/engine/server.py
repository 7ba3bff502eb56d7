"""The server: the large model, the feature bank, the roster of clients, and the bookkeeping around each round.

An algorithm's server side (say `algorithms/fedgkt.py`) is a loop over `server.rounds()`; what it calls in
between stands here. Around the loop: resume, first hosting of the clients, evaluation, log, checkpoint, end.
"""

import copy
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gkt_mpi.data.shard import Shard
from gkt_mpi.engine.bank import Bank, BankBatch, BatchOrder
from gkt_mpi.engine.checkpoint import CheckpointStore
from gkt_mpi.engine.client import Edge
from gkt_mpi.engine.collect import Events, collect_uploads
from gkt_mpi.engine.compute import Compute, ServerNetwork
from gkt_mpi.engine.evaluate import Accuracy, EvaluateConfig, EvaluateMode, evaluate, num_evaluated
from gkt_mpi.engine.faults import FaultsConfig, Interrupt
from gkt_mpi.engine.optimizer import Optimizer, OptimizerConfig, Schedule, ScheduleName
from gkt_mpi.engine.roster import Roster
from gkt_mpi.errors import GktError, LostRankError, WireError, require
from gkt_mpi.losses import DistillConfig, lka_weight
from gkt_mpi.models.resnet import NormName, ServerModel, ServerName
from gkt_mpi.observe.progress import Progress
from gkt_mpi.observe.run_log import RunLog
from gkt_mpi.observe.timeline import MOST_SPANS
from gkt_mpi.placement import Placement, peak_mib
from gkt_mpi.seeding import torch_generator
from gkt_mpi.wire.contract import Contract
from gkt_mpi.wire.messages import ClientReport, HostClient, Kind, Stop, TrainRequest
from gkt_mpi.wire.transport import SERVER, Transport

_REFUSALS_SAID = 3  # a round; the others are only counted


@dataclass(frozen=True)
class ServerConfig(OptimizerConfig):
    """The server."""

    model: ServerName = "resnet56"
    """Server model, without its stem."""
    norm: NormName = "batch"
    """Normalisation in the server model. group: of each feature by itself, instead of BatchNorm over a batch."""
    epochs: int = 20
    """Passes over the feature bank that the server trains each round; at least 1."""
    schedule: ScheduleName = "plateau"
    """Learning rate by round. plateau: a tenth after 10 rounds without a lower training loss. cosine: to 0."""
    batch_order: BatchOrder = "mixed"
    """mixed: batches drawn across all clients. by_client: client after client, as in the paper."""

    group: ClassVar[str] = "server"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.epochs >= 1, "server.epochs", self.epochs, "at least 1")


class Server:
    """Rank 0 of a run; its attributes are what an algorithm's server side works with.

    `network` is how training calls `model`.
    """

    def __init__(
        self,
        *,
        transport: Transport,
        roster: Roster,
        bank: Bank,
        model: ServerModel,
        network: ServerNetwork,
        compute: Compute,
        edge: Edge,
        test: Shard,
        config: ServerConfig,
        distill: DistillConfig,
        evaluate_config: EvaluateConfig,
        block_rows: int,
        num_rounds: int,
        seed: int,
        faults: FaultsConfig,
        interrupt: Interrupt,
        placement: Placement,
        checkpoints: CheckpointStore,
        log: RunLog,
        progress: Progress,
    ) -> None:
        self.transport, self.roster, self.bank = transport, roster, bank
        self.config, self.distill = config, distill
        self.model = network
        self._model, self._compute, self._timeline = model, compute, transport.timeline
        self.num_rounds, self.seed = num_rounds, seed
        self._optimizer = Optimizer(config, model.parameters())
        self._schedule = Schedule(config.schedule, config.lr, num_rounds)
        self._states = [edge.state()] * len(roster)
        self._edge, self._test, self._evaluate_config = edge, test, evaluate_config
        self._block_rows = block_rows
        self._placement, self._checkpoints, self._log, self._progress = placement, checkpoints, log, progress
        self._faults, self._interrupt = faults, interrupt
        transport.set_timeout(faults.timeout_s)
        transport.on_wait = interrupt.check
        self._rounds_done = 0
        self._unsaved: tuple[int, dict[str, Any]] | None = None  # the run's state between rounds, if on no disk yet
        self._is_taught = [False] * len(roster)  # clients for whose samples the bank holds the server's logits
        self._weight_KC: Tensor | None = None  # of the distillation from each client, in this round
        self._spans: dict[int, Tensor] = {}
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
            ledger = self._bytes()
            self._record = {"round": round, "refused_messages": 0, "lost_workers": 0, "dropped_clients": 0}
            yield round
            names = ("upload_bytes", "download_bytes", "simulation_bytes")
            moved = (b - a for a, b in zip(ledger, self._bytes(), strict=True))
            self._to_close = {**self._record, **dict(zip(names, moved, strict=True))}
            if not self._placement.has_own_cores:  # what this rank computes now would only slow the clients down
                self._close_round()
        self._close_round()
        self._finish()

    def request(self, client: int, round: int) -> None:
        """Send a client its training request, with the server's logits for its samples (none before the first)."""
        rows = self.bank.rows_of(client) if self._is_taught[client] else slice(0, 0)
        self._send(client, TrainRequest(client, round, self.bank.sample_id[rows], self.bank.server_logit[rows]))

    def collect(self, round: int) -> None:
        """Receive every client's upload, block by block, straight into the bank, in whatever order they come.

        A message that is not valid is refused, and said. The clients of a lost worker begin the round again on
        another. Raises `WireError` for a bad client unless `faults.on_bad_client` is drop, and `GktError` when no
        worker, or no client's data, is left.
        """
        self._close_round()  # the one before: the clients have been asked, and are at work
        self._clients_began = time.perf_counter()
        self._progress.begin_phase("clients train and upload", len(self.bank))
        self.bank.open_round()
        expected = self.roster.num_samples
        contract = Contract(
            frozenset({Kind.BLOCK, Kind.REPORT}),
            round=round,
            num_classes=self.bank.num_classes,
            num_samples=expected,
            sender=self.roster.worker_of,
            feature_shape=self.bank.codec.shape,
            row_bytes=self.bank.codec.row_bytes,
            codec=self.bank.codec.code_id,
            block_rows=self._block_rows,
            state_bytes=self._edge.state_bytes,
            max_spans=MOST_SPANS,
            admit=self.bank.admit,
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
                    self._progress.advance(-self.bank.reopen(client))
                    self.request(client, round)

        events = Events(self._advance, self._count_refusal, self._judge, move_clients)
        reports = collect_uploads(self.transport, contract, self.bank, expected, events)
        self.transport.flush()
        if not reports:
            raise WireError(f"no client has uploaded anything that can be used in round {round}")
        self._take_in([reports[client] for client in self.roster if client in reports])

    def batches(self, round: int, epoch: int) -> Iterator[BankBatch]:
        """Yield the training batches of one server epoch."""
        self._model.train()
        generator = torch_generator(self.seed, "server epoch", round, epoch)
        for batch in self.bank.train_batches(self.config.batch_order, self.config.batch_size, generator):
            yield batch
            self._advance(len(batch.row))

    def weight(self, batch: BankBatch) -> Tensor | None:
        """Return the weights (B, C) of the distillation in a batch, or None when it is not weighted."""
        return None if self._weight_KC is None else self._weight_KC[batch.client]

    def step(self, loss: Tensor, samples: int) -> None:
        """Take one optimizer step down the gradient of `loss`, the mean over `samples` samples."""
        self._optimizer.step(loss)
        self._loss_sum += loss.detach() * samples
        self._samples += samples

    @torch.no_grad()
    def predict(self) -> None:
        """Fill the bank's `server_logit` by one pass in evaluation mode."""
        model = self._model.folded()
        with self._timeline.phase("predict"):
            for batch in self.bank.all_batches(self._evaluate_config.batch_size):
                self.bank.server_logit[batch.row] = model(batch.feature).cpu()
                self._advance(len(batch.row))

    @contextmanager
    def clients_phase(self) -> Iterator[None]:
        """Time the clients' part of the round: `wire_s` is the server's receiving of payloads, `client_s` the rest."""
        received_s = self._timeline.seconds("receive")
        yield
        self._record["wire_s"] = self._timeline.seconds("receive") - received_s
        self._record["client_s"] = time.perf_counter() - self._clients_began - self._record["wire_s"]

    @contextmanager
    def server_phase(self) -> Iterator[None]:
        """Time the server's training and prediction, on all cores, since the workers wait; step the schedule."""
        began = time.perf_counter()
        self._loss_sum, self._samples = torch.zeros((), device=self.bank.device), 0
        self._weight_KC = lka_weight(self.bank.class_counts(), self.distill)
        self._optimizer.lr = self._schedule.rate()
        self._progress.begin_phase("server trains", self.bank.num_arrived * (self.config.epochs + 1))
        with self._placement.all_cores():
            yield
        loss = float(self._loss_sum) / self._samples
        if not math.isfinite(loss) or not bool(self.bank.server_logit.isfinite().all()):
            raise GktError(f"the server's training has diverged (its loss is {loss}); lower server.lr")
        for client in self.roster:  # one that was dropped keeps the logits it had, if any
            self._is_taught[client] |= self.bank.num_missing(client) == 0
        self._record["server_train_loss"] = loss
        self._record["server_lr"] = self._optimizer.lr
        self._schedule.end_round(loss)
        self._record["server_s"] = self._timeline.add("server train", began)

    def _send(self, client: int, message: HostClient | TrainRequest) -> None:
        self.transport.send(self.roster.worker_of[client], message)

    def _host(self, client: int, state: Tensor) -> None:
        self._send(client, HostClient(client, torch.from_numpy(self.roster.shards[client]), state))

    def _advance(self, samples: int) -> None:
        """Show progress, and end here if a signal asks for it or a worker has failed."""
        self._progress.advance(samples)
        self._interrupt.check()
        self.transport.keep_in_touch()

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

    def _take_in(self, reports: list[ClientReport]) -> None:
        """Keep the clients' states and sum their metrics, in client order."""
        spans: dict[int, list[Tensor]] = {}
        for report in reports:
            self._states[report.client] = report.state
            rank = self._reported_by.get(report.client, self.roster.worker_of[report.client])
            spans.setdefault(rank, []).append(report.spans)
        self._spans = {rank: torch.cat(parts) for rank, parts in spans.items()}
        metrics = [report.metrics for report in reports]
        samples = sum(m.samples for m in metrics)
        if samples:  # none with client.epochs 0
            self._record["client_train_loss"] = sum(m.loss_sum for m in metrics) / samples
            self._record["client_train_accuracy"] = sum(m.correct for m in metrics) / samples
        self._record["worker_peak_mib"] = max(m.peak_mib for m in metrics)
        self._record["slowest_client_s"] = max(m.train_s + m.upload_s for m in metrics)

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
            record |= {"test_accuracy": accuracy.server, "client_test_accuracy": accuracy.client}
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
        self._log.append(record, {**self._spans, SERVER: self._timeline.take()})
        self._progress.end_round(record)

    def _finish(self) -> None:
        """Evaluate every stem on the whole test set, write the summary, and stop the workers."""
        accuracy = self._evaluate("full", "final evaluation")
        for rank in range(1, self.transport.size):
            self.transport.send(rank, Stop())
        self.transport.flush()
        self._progress.end_run()
        self._log.finish(accuracy.server, accuracy.client, asdict(self._compute))

    def _evaluate(self, mode: EvaluateMode, phase: str) -> Accuracy:
        self._progress.begin_phase(phase, num_evaluated(mode, len(self.roster), len(self._test)))
        batch_size = self._evaluate_config.batch_size
        with self._placement.all_cores():
            return evaluate(self._model, self._edge, self._states, self._test, mode, batch_size, self._advance)

    def _bytes(self) -> tuple[int, int, int]:
        """Return the bytes so far: uploaded, downloaded, and the simulation's own."""
        ledger = self.transport.ledger
        return ledger.received["algorithm"], ledger.sent["algorithm"], ledger.simulation_bytes

    def _state(self, *record: dict[str, Any]) -> dict[str, Any]:
        """Return the whole state of the run, with the record of the round that has just been done, if any."""
        return {
            "compute": asdict(self._compute),
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state,
            "schedule": self._schedule.state(),
            "clients": list(self._states),
            "is_taught": list(self._is_taught),
            "server_logit": self.bank.server_logit,
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
            self._model.load_state_dict(state["model"])
            for tensor, saved in zip(self._optimizer.state, state["optimizer"], strict=True):
                tensor.copy_(saved)
            self._schedule.load(state["schedule"])
            self._states = list(state["clients"])
            self._is_taught = list(state["is_taught"])
            self.bank.server_logit.copy_(state["server_logit"])
            self._progress.say(f"resumed after round {rounds_done} of {self.num_rounds}")
        self._log.begin(rounds_done, self.transport.size, state["records"] if state is not None else [])
