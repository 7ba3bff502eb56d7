"""Accounting of a round: collects its line in metrics.jsonl while the round runs."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from torch import Tensor

from gkt_mpi.cost.virtual_clock import Participant, RoundPricer
from gkt_mpi.errors import WireError
from gkt_mpi.log.csv_log import UploadRecord
from gkt_mpi.plain import Json
from gkt_mpi.wire.messages import ClientReport
from gkt_mpi.wire.transport import Transport

BYTES = ("upload_bytes", "download_bytes", "simulation_bytes")
_ROUNDING = 1e-5  # of a loss: so far the sum of its parts may be off
_COUNTS = ("participants", "refused_messages", "lost_workers", "dropped_clients")


@dataclass(frozen=True)
class FinishedRound:
    """A round whose training is complete: its record so far, each rank's spans, and its uploads if they are listed."""

    record: Json
    spans: dict[int, list[Tensor]]
    uploads: list[UploadRecord]
    virtual_s: float  # of the run so far


class RoundBooks:
    """Counts the events of the current round; events between two rounds count in the next one."""

    def __init__(self, transport: Transport, price: RoundPricer) -> None:
        self.virtual_s = 0.0  # of all rounds so far, in synchronous training
        self._ledger, self._timeline, self._price = transport.ledger, transport.timeline, price
        self._record: Json = dict.fromkeys(_COUNTS, 0)
        self._taking_part: dict[int, Participant] = {}
        self._reports: list[ClientReport] = []  # in the order in which they are counted
        self._spans: dict[int, list[Tensor]] = {}
        self._uploads: list[UploadRecord] = []
        self._bytes_before = self.bytes()
        self._clients_began = 0.0

    def begin(self, round: int) -> None:
        """Begin a round (numbers from 0; from 1 in the log)."""
        self._bytes_before = self.bytes()
        self._record = {"round": round + 1} | self._record
        self._taking_part = {}

    def bytes(self) -> list[int]:
        """Return the bytes moved since the start of this process, in the order of `BYTES`."""
        return [self._ledger.received["algorithm"], self._ledger.sent["algorithm"], self._ledger.simulation_bytes]

    def note(self, figures: dict[str, float], uploads: Sequence[UploadRecord] = ()) -> None:
        """Add figures to the round's line in metrics.jsonl, and lines to uploads.csv."""
        self._record |= figures
        self._uploads += uploads

    def count(self, name: str) -> int:
        """Increment the counter of a kind of problem; return its value in this round."""
        self._record[name] += 1
        return int(self._record[name])

    def take_part(self, client: int, participant: Participant) -> None:
        """Note that a client takes part; its first request of the round determines its cost."""
        self._taking_part.setdefault(client, participant)

    def take_in(self, report: ClientReport, rank: int) -> None:
        """Count a client's report received from this rank."""
        self._spans.setdefault(rank, []).append(report.spans)
        self._reports.append(report)

    def take_out(self, client: int, round: int) -> None:
        """Remove a client's reports of a round: its later messages could not be used."""
        self._reports = [report for report in self._reports if (report.client, report.round) != (client, round)]

    def sum_reports(self) -> dict[str, float]:
        """Return the sums of the reports so far and reset them; empty when no report could be used."""
        reports, self._reports = self._reports, []
        return sums(reports) if reports else {}

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Exclude replayed uploads, needed after an interruption, from this round's metrics."""
        before, taking_part, reports = self.bytes(), dict(self._taking_part), list(self._reports)
        yield
        self._taking_part, self._reports = taking_part, reports
        moved = (b - a for a, b in zip(before, self.bytes(), strict=True))
        self._bytes_before = [a + b for a, b in zip(self._bytes_before, moved, strict=True)]

    @contextmanager
    def clients_phase(self) -> Iterator[None]:
        """Time the clients' part of the round: `wire_s` is the server's receiving of payloads, `client_s` the rest.

        Raises `WireError` when none of the clients' uploads can be used.
        """
        received_s, trained_s = (self._timeline.seconds(phase) for phase in ("receive", "server train"))
        self.begin_clients_time()
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

    def begin_clients_time(self) -> None:
        """Start the clients' part of the round now."""
        self._clients_began = time.perf_counter()

    def end(self, server_samples: int | None) -> FinishedRound:
        """End the round; `server_samples` is the number of samples in a server epoch (None: those of the participants).

        Unless costs have been noted before, as in asynchronous training, they are those of a synchronous round.
        """
        record = self._record
        if BYTES[0] not in record:
            cost = asdict(self._price(self._taking_part, server_samples, self.virtual_s))
            self.virtual_s += cost["virtual_s"]
            moved = (b - a for a, b in zip(self._bytes_before, self.bytes(), strict=True))
            record |= cost | dict(zip(BYTES, moved, strict=True))
        finished = FinishedRound(record, self._spans, self._uploads, self.virtual_s)
        self._record, self._spans, self._uploads = dict.fromkeys(_COUNTS, 0), {}, []
        return finished


def sums(reports: Sequence[ClientReport]) -> dict[str, float]:
    """Return the figures of these reports as in metrics.jsonl.

    A client may report twice in a round: once after training, once after uploading.
    """
    metrics = [report.metrics for report in reports]
    samples = sum(m.samples for m in metrics)
    figures: dict[str, float] = {"participants": len({report.client for report in reports})}
    if samples:  # missing with client.epochs 0, or where the server computes the losses
        figures["client_train_loss"] = loss = sum(m.loss_sum for m in metrics) / samples
        figures["client_cross_entropy"] = sum(m.cross_entropy_sum for m in metrics) / samples
        if loss - figures["client_cross_entropy"] > _ROUNDING * loss:
            figures["client_distillation"] = loss - figures["client_cross_entropy"]
        figures["client_train_accuracy"] = sum(m.correct for m in metrics) / samples
    figures["worker_peak_mib"] = max(m.peak_mib for m in metrics)
    seconds: dict[tuple[int, int], float] = {}
    for report in reports:
        key = report.client, report.round
        seconds[key] = seconds.get(key, 0.0) + report.metrics.train_s + report.metrics.upload_s
    figures["slowest_client_s"] = max(seconds.values())
    return figures
