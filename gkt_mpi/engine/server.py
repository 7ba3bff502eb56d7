"""The server: the large model, the feature bank, the roster of clients, and the bookkeeping around each round.

An algorithm's server side (say `algorithms/fedgkt.py`) is a loop over `server.rounds()`; what it calls in
between stands here. Around the loop: resume, first hosting of the clients, evaluation, log, checkpoint, end.
"""

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
from gkt_mpi.engine.collect import collect_uploads
from gkt_mpi.engine.compute import Compute, ServerNetwork
from gkt_mpi.engine.evaluate import Accuracy, EvaluateConfig, EvaluateMode, evaluate, num_evaluated
from gkt_mpi.engine.optimizer import Optimizer, OptimizerConfig, Schedule, ScheduleName
from gkt_mpi.engine.roster import Roster
from gkt_mpi.errors import GktError, require
from gkt_mpi.losses import DistillConfig
from gkt_mpi.models.resnet import ServerModel, ServerName
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
        self._rounds_done = 0
        self._spans: dict[int, Tensor] = {}
        self._record: dict[str, Any] = {}

    def rounds(self) -> Iterator[int]:
        """Yield the number of each round still to do; before the next one, evaluate, log and checkpoint.

        At the end, evaluate every stem on the whole test set, write the summary, and stop the workers.
        """
        start = self._rounds_done
        for client in self.roster:
            sample_id = torch.from_numpy(self.roster.shards[client])
            self._send(client, HostClient(client, sample_id, self._states[client]))
        for round in range(start, self.num_rounds):
            began, ledger = time.perf_counter(), self._bytes()
            self._record = {"round": round, "refused_messages": 0}
            self._progress.begin_round(round)
            yield round
            self._close_round(round, began, ledger)
        self._finish()

    def request(self, client: int, round: int) -> None:
        """Send a client its training request, with the server's logits for its samples (none in round 0)."""
        rows = self.bank.rows_of(client) if round > 0 else slice(0, 0)
        self._send(client, TrainRequest(client, round, self.bank.sample_id[rows], self.bank.server_logit[rows]))

    def collect(self, round: int) -> None:
        """Receive every client's upload, block by block, straight into the bank, in whatever order they come.

        A message that is not valid is refused, and said; the round goes on. Raises `WireError` when a client closes
        its upload with samples missing.
        """
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
        reports = collect_uploads(
            self.transport, contract, self.bank, expected, self._progress.advance, self._count_refusal
        )
        self.transport.flush()
        self._take_in([reports[client] for client in self.roster])

    def batches(self, round: int, epoch: int) -> Iterator[BankBatch]:
        """Yield the training batches of one server epoch."""
        self._model.train()
        generator = torch_generator(self.seed, "server epoch", round, epoch)
        for batch in self.bank.train_batches(self.config.batch_order, self.config.batch_size, generator):
            yield batch
            self._progress.advance(len(batch.row))

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
                self._progress.advance(len(batch.row))

    @contextmanager
    def clients_phase(self) -> Iterator[None]:
        """Time the clients' part of the round: `wire_s` is the server's receiving of payloads, `client_s` the rest."""
        began, received_s = time.perf_counter(), self._timeline.seconds("receive")
        self._progress.begin_phase("clients train and upload", len(self.bank))
        yield
        self._record["wire_s"] = self._timeline.seconds("receive") - received_s
        self._record["client_s"] = time.perf_counter() - began - self._record["wire_s"]

    @contextmanager
    def server_phase(self) -> Iterator[None]:
        """Time the server's training and prediction, on all cores, since the workers wait; step the schedule."""
        began = time.perf_counter()
        self._loss_sum, self._samples = torch.zeros((), device=self.bank.device), 0
        self._optimizer.lr = self._schedule.rate()
        self._progress.begin_phase("server trains", len(self.bank) * (self.config.epochs + 1))
        with self._placement.all_cores():
            yield
        loss = float(self._loss_sum) / self._samples
        if not math.isfinite(loss) or not bool(self.bank.server_logit.isfinite().all()):
            raise GktError(f"the server's training has diverged (its loss is {loss}); lower server.lr")
        self._record["server_train_loss"] = loss
        self._record["server_lr"] = self._optimizer.lr
        self._schedule.end_round(loss)
        self._record["server_s"] = self._timeline.add("server train", began)

    def _send(self, client: int, message: HostClient | TrainRequest) -> None:
        self.transport.send(self.roster.worker_of[client], message)

    def _count_refusal(self, why: str) -> None:
        self._record["refused_messages"] += 1
        if self._record["refused_messages"] <= _REFUSALS_SAID:
            self._progress.say(f"refused: {why}")

    def _take_in(self, reports: list[ClientReport]) -> None:
        """Keep the clients' states and sum their metrics, in client order."""
        self._states = [report.state for report in reports]
        spans: dict[int, list[Tensor]] = {}
        for report in reports:
            spans.setdefault(self.roster.worker_of[report.client], []).append(report.spans)
        self._spans = {rank: torch.cat(parts) for rank, parts in spans.items()}
        metrics = [report.metrics for report in reports]
        samples = sum(m.samples for m in metrics)
        if samples:  # none with client.epochs 0
            self._record["client_train_loss"] = sum(m.loss_sum for m in metrics) / samples
            self._record["client_train_accuracy"] = sum(m.correct for m in metrics) / samples
        self._record["worker_peak_mib"] = max(m.peak_mib for m in metrics)
        self._record["slowest_client_s"] = max(m.train_s + m.upload_s for m in metrics)

    def _close_round(self, round: int, began: float, ledger: tuple[int, int, int]) -> None:
        is_last = round == self.num_rounds - 1
        if is_last or (round + 1) % self._evaluate_config.every == 0:
            evaluate_began = time.perf_counter()
            accuracy = self._evaluate(self._evaluate_config.mode, "evaluation")
            self._record["test_accuracy"] = accuracy.server
            self._record["client_test_accuracy"] = accuracy.client
            self._record["evaluate_s"] = self._timeline.add("evaluate", evaluate_began)
        names = ("upload_bytes", "download_bytes", "simulation_bytes")
        self._record |= dict(zip(names, (b - a for a, b in zip(ledger, self._bytes(), strict=True)), strict=True))
        checkpoint_began = time.perf_counter()
        self._record["server_peak_mib"] = peak_mib()
        self._record["lost_workers"] = 0
        # The line is logged after the checkpoint, whose time it tells; the checkpoint has all but these two figures.
        self._record["checkpoint_s"] = 0.0
        self._record["round_s"] = checkpoint_began - began
        if is_last or (round + 1) % self._checkpoints.config.every == 0:
            self._checkpoints.save(round + 1, self._state())
        self._record["checkpoint_s"] = self._timeline.add("checkpoint", checkpoint_began)
        self._record["round_s"] = time.perf_counter() - began
        self._log.append(self._record, {**self._spans, SERVER: self._timeline.take()})
        self._progress.end_round(self._record)

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
            return evaluate(self._model, self._edge, self._states, self._test, mode, batch_size, self._progress.advance)

    def _bytes(self) -> tuple[int, int, int]:
        """Return the bytes so far: uploaded, downloaded, and the simulation's own."""
        ledger = self.transport.ledger
        return ledger.received["algorithm"], ledger.sent["algorithm"], ledger.simulation_bytes

    def _state(self) -> dict[str, Any]:
        """Return the whole state of the run."""
        return {
            "compute": asdict(self._compute),
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state,
            "schedule": self._schedule.state(),
            "clients": torch.stack(self._states),
            "server_logit": self.bank.server_logit,
            "records": [*self._log.records, self._record],
        }

    def resume(self, rounds_done: int, state: dict[str, Any] | None) -> None:
        """Go on after `rounds_done` rounds from what a checkpoint holds, or begin with None; opens the log."""
        self._rounds_done = rounds_done
        if state is not None:
            self._model.load_state_dict(state["model"])
            for tensor, saved in zip(self._optimizer.state, state["optimizer"], strict=True):
                tensor.copy_(saved)
            self._schedule.load(state["schedule"])
            self._states = [row.clone() for row in state["clients"]]  # each with its own, aligned memory
            self.bank.server_logit.copy_(state["server_logit"])
            self._progress.say(f"resumed after round {rounds_done} of {self.num_rounds}")
        self._log.begin(rounds_done, self.transport.size, state["records"] if state is not None else [])
