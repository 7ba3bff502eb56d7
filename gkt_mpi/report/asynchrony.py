"""Evaluation of uploads.csv of an asynchronous run: staleness, activity by client, cost of waiting.

Seconds are on the run's clock, from the start of the run; a round is as many uploads as there are clients.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gkt_mpi.log.csv_log import UploadRecord
from gkt_mpi.log.timeline import Span, clip_spans
from gkt_mpi.plain import Json

_OVERDUE = 2  # times the longest time of a client between two requests
_AWAY = 2  # times the median of a client's uploads; a longer one indicates an absence


@dataclass(frozen=True)
class Staleness:
    """Age of a client's uploads when the server began to learn from them, in rounds."""

    num_uploads: int
    mean: float
    least: float
    most: float


@dataclass(frozen=True)
class Lane:
    """A client's time: working from asked to done, waiting from done to answered."""

    work: list[Span]
    waiting: list[Span]
    open: list[Span]  # from its last answer on: its last request was not answered with an upload


@dataclass(frozen=True)
class SynchronousEstimate:
    """Estimated duration of the same number of rounds in synchronous training, from the uploads' durations."""

    num_rounds: int
    slowest_client: int
    slowest_client_s: float  # its median from asked to done
    absent_s: float  # delay by absences, at most of one client, in the whole run
    server_s: float  # per round, mean
    run_s: float  # the run's actual duration

    @property
    def total_s(self) -> float:
        """Estimated seconds: each round the server waits for the slowest client, then trains; absences count once."""
        return self.num_rounds * (self.slowest_client_s + self.server_s) + self.absent_s

    @property
    def ratio(self) -> float:
        """Ratio to the run's actual duration."""
        return self.total_s / self.run_s if self.run_s > 0 else math.nan


def by_client(uploads: Iterable[UploadRecord]) -> dict[int, list[UploadRecord]]:
    """Return each client's uploads in their order, clients ascending; those that never uploaded are missing."""
    found: dict[int, list[UploadRecord]] = {}
    for upload in sorted(uploads, key=lambda upload: (upload.client, upload.upload)):
        found.setdefault(upload.client, []).append(upload)
    return found


def silent_clients(uploads: Iterable[UploadRecord], num_clients: int) -> list[int]:
    """Return the clients that never uploaded, ascending."""
    return sorted(set(range(num_clients)) - {upload.client for upload in uploads})


def overdue_clients(uploads: Sequence[UploadRecord]) -> list[int]:
    """Return the clients that were answered, but then silent for twice as long as ever before: they may be gone."""
    end = end_s(uploads)
    return [
        client
        for client, own in by_client(uploads).items()
        if end - own[-1].answered_s > _OVERDUE * max(upload.answered_s - upload.asked_s for upload in own)
    ]


def staleness_by_client(uploads: Iterable[UploadRecord]) -> dict[int, Staleness]:
    """Return the staleness of the uploads of each client that has any."""
    ages = {client: [upload.staleness for upload in own] for client, own in by_client(uploads).items()}
    return {client: Staleness(len(own), statistics.fmean(own), min(own), max(own)) for client, own in ages.items()}


def flushes(uploads: Iterable[UploadRecord]) -> list[Span]:
    """Return the times at which the server learnt from uploads, ascending: uploads taken together are one flush."""
    answered: dict[float, float] = {}
    for upload in uploads:
        answered[upload.taken_s] = max(upload.answered_s, answered.get(upload.taken_s, upload.answered_s))
    return sorted(answered.items())


def end_s(uploads: Iterable[UploadRecord]) -> float:
    """Return when the last of these uploads was answered, 0 if there are none."""
    return max((upload.answered_s for upload in uploads), default=0.0)


def lane(own: Sequence[UploadRecord], run_s: float, until_s: float) -> Lane:
    """Return a client's use of time up to `until_s`; `own` are its uploads in order, of a run of `run_s` seconds."""
    shown = 0.0, until_s
    return Lane(
        work=clip_spans([(upload.asked_s, upload.done_s) for upload in own], shown),
        waiting=clip_spans([(upload.done_s, upload.answered_s) for upload in own], shown),
        open=clip_spans([(own[-1].answered_s if own else 0.0, run_s)], shown),
    )


def estimate_synchronous(uploads: Sequence[UploadRecord]) -> SynchronousEstimate:
    """Return the estimated duration of synchronous training with the clients that uploaded; at least one upload.

    It assumes that every client takes its median each time, although another client may be the slowest of a round.
    """
    median_s: dict[int, float] = {}
    absent_s = 0.0
    for client, own in by_client(uploads).items():
        seconds = [upload.done_s - upload.asked_s for upload in own]
        usual = median_s[client] = statistics.median(seconds)
        absent_s = max(absent_s, math.fsum(each - usual for each in seconds if each > _AWAY * usual))
    slowest = max(median_s, key=lambda client: median_s[client])
    num_rounds = max(upload.round for upload in uploads)
    learning_s = math.fsum(answered - taken for taken, answered in flushes(uploads))
    return SynchronousEstimate(
        num_rounds, slowest, median_s[slowest], absent_s, learning_s / num_rounds, end_s(uploads)
    )


def waiting_share(uploads: Iterable[UploadRecord]) -> float | None:
    """Return the share of time that a client waited for its answer, mean over the clients that uploaded."""
    shares = []
    for own in by_client(uploads).values():
        asked_s = math.fsum(upload.answered_s - upload.asked_s for upload in own)
        waited_s = math.fsum(upload.answered_s - upload.done_s for upload in own)
        if asked_s > 0:
            shares.append(waited_s / asked_s)
    return statistics.fmean(shares) if shares else None


def idle_share_of_run(records: Sequence[Json], key: str) -> float | None:
    """Return the run's average of a share of virtual seconds; None if a round lacks it."""
    if any(name not in record for record in records for name in (key, "virtual_s")):
        return None
    total_s = math.fsum(record["virtual_s"] for record in records)
    return math.fsum(record[key] * record["virtual_s"] for record in records) / total_s if total_s > 0 else None
