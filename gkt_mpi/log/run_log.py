"""The files that record a run: config.yaml, metrics.jsonl, summary.json, trace.json, and its sinks.

Also clients.csv and uploads.csv, see csv_log.py, and at the end confusion.csv.

Every figure of a round is one key of one flat JSON object, a line in metrics.jsonl; docs/metrics.md explains each of
them.
"""

import csv
import fcntl
import json
import logging
import math
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import yaml
from torch import Tensor

from gkt_mpi.errors import ConfigError, GktError, what_to_do
from gkt_mpi.log.csv_log import ClientRecord, CsvLog, UploadRecord
from gkt_mpi.log.lines import write_whole
from gkt_mpi.log.resume import Known, agree
from gkt_mpi.log.seal import Seal, as_line
from gkt_mpi.log.sinks.sink import OpenSinks, Sink, SinkRun
from gkt_mpi.log.timeline import Trace
from gkt_mpi.plain import Json

logger = logging.getLogger(__name__)

_PATIENCE_S = 120.0  # an NFS server releases the locks of a dead node after 90 s
_LOOK_EVERY_S = 0.5


@contextmanager
def hold_folder(folder: Path, patience_s: float = _PATIENCE_S) -> Iterator[None]:
    """Create a run's folder and lock it for the duration of a `with`.

    Waits for a while if another run holds it: that run may be about to end, or a file server may not yet have detected
    that its node died. Raises `ConfigError` if the folder stays locked, or cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w", encoding="utf-8")  # noqa: SIM115 - open as long as the folder is held
    except OSError as error:
        raise _unwritable(folder, error) from error
    with lock:
        until, is_waiting = time.monotonic() + patience_s, False
        while not _is_locked(lock):
            if time.monotonic() > until:
                raise ConfigError(f"another run is using {folder}; wait for it to end, or choose another --name")
            if not is_waiting:
                logger.warning(f"another run is using {folder}; waiting up to {patience_s:.0f} s for it to end")
                is_waiting = True
            time.sleep(_LOOK_EVERY_S)
        yield


def _is_locked(lock: IO[str]) -> bool:
    """Whether a file is now locked by this process, or cannot be locked at all, as on some file systems."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _unwritable(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(f"cannot write the run folder {folder}: {error}; set out to a folder you may write")


class RunLog:
    """Writes the log of one run into its folder; only the server has one."""

    def __init__(
        self,
        folder: Path,
        config: Json,
        note: str,
        classes: Sequence[str] = (),
        sinks: Sequence[Sink] = (),
    ) -> None:
        """Create the folder and write config.yaml, with `note` as its first comment line. Raises `ConfigError`.

        `classes` are the names of the data set's classes.
        """
        self.folder = folder
        self._config, self._classes, self._sinks = config, classes, sinks
        self._metrics_path = folder / "metrics.jsonl"
        self._summary_path = folder / "summary.json"
        self._trace = Trace(folder / "trace.json")
        self._uploads = CsvLog(folder / "uploads.csv", UploadRecord)
        self._clients = CsvLog(folder / "clients.csv", ClientRecord)
        self.records: list[Json] = []
        self.summary: Json = {}
        self._seal = Seal()
        self.best_accuracy = -1.0  # between rounds so far, if any
        try:
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            text = f"# {note}\n" + yaml.safe_dump(config, sort_keys=False)
            (folder / "config.yaml").write_text(text, encoding="utf-8")
        except OSError as error:
            raise _unwritable(folder, error) from error

    def save_about(self, about: Mapping[str, object]) -> None:
        """Write run.json (about.py). Raises `ConfigError` when it cannot be written."""
        path = self.folder / "run.json"
        try:
            path.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise _unwritable(self.folder, error) from error

    def save_partition(self, shards: list[np.ndarray], counts: np.ndarray, classes: list[str]) -> None:
        """Write partition.npz: sample_id of all clients, first (where each begins), count by client and class.

        Raises `ConfigError` when it cannot be written.
        """
        first = np.cumsum([0, *map(len, shards)])
        path = self.folder / "partition.npz"
        try:
            np.savez_compressed(path, sample_id=np.concatenate(shards), first=first, count=counts, classes=classes)
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error}; free some space or set another out") from error

    def begin(
        self,
        rounds_done: int,
        num_ranks: int,
        saved: Mapping[str, Any] | None = None,
        uploads: Iterable[Sequence[Any]] = (),
        clients: Iterable[Sequence[Any]] = (),
    ) -> None:
        """Begin to log after `rounds_done` rounds; `saved` is what `saved()` returned then. Raises `ConfigError`.

        Existing files are reconciled with the checkpoint, which also has `uploads` and `clients` of the last round;
        damage is reported (resume.py).
        """
        saved = saved or {"newest": [], "sealed": 0, "digest": ""}
        known = Known(
            rounds_done,
            saved["newest"],
            [UploadRecord(*values) for values in uploads],
            [ClientRecord(*values) for values in clients],
            saved["sealed"],
            saved["digest"],
        )
        try:
            agreed = agree(self.folder, known)
            self.records = agreed.records
            self._seal = Seal(self.records)
            self.best_accuracy = max((record.get("test_accuracy", -1.0) for record in self.records), default=-1.0)
            write_whole(self._metrics_path, "".join(map(as_line, self.records)))
            self._trace.begin(agreed.events, num_ranks)
            self._uploads.begin(agreed.uploads)
            self._clients.begin(agreed.clients)
            self._summary_path.unlink(missing_ok=True)
            self._open_sinks = OpenSinks(self._sinks, SinkRun(self.folder, self.folder.name, self._config, rounds_done))
        except OSError as error:
            raise ConfigError(f"cannot write the run folder {self.folder}: {error}; free or repair it") from error
        self._earlier_s = sum(record["round_s"] for record in self.records)
        self._began = time.perf_counter()

    def append(
        self,
        record: Json,
        spans: dict[int, Tensor],
        uploads: Sequence[UploadRecord] = (),
        clients: Sequence[ClientRecord] = (),
    ) -> None:
        """Log a round: its figures in metrics.jsonl and the sinks, its spans by rank, and its uploads.

        Also logs its evaluation of each client.

        Raises `GktError` when the files cannot be written.
        """
        self.records.append(record)
        self.best_accuracy = max(self.best_accuracy, record.get("test_accuracy", -1.0))
        self._seal.follow(self.records)
        with self._explained():
            with open(self._metrics_path, "a", encoding="utf-8") as file:
                file.write(as_line(record))
            self._open_sinks.append(record)
            self._trace.append(record["round"], spans)
            self._uploads.append(uploads)
            self._clients.append(clients)

    def saved(self, *record: Json) -> Json:
        """Return the log's part of a checkpoint, with the record of a round that is not logged yet, if any."""
        sealed = self._seal.num_rounds
        return {"newest": [*self.records[sealed:], *record], "sealed": sealed, "digest": self._seal.digest}

    def finish(
        self,
        accuracy: dict[str, float],
        compute: Json,
        clients: Sequence[ClientRecord] = (),
        confusion: Tensor | None = None,
    ) -> None:
        """Write summary.json from all lines of metrics.jsonl, the final accuracies, precision and compilation.

        `accuracy` has the names of a round's record. The final evaluation's `clients` go to clients.csv, and
        `confusion`, int64 (C, C), to confusion.csv: a line for each true class, a column for each predicted class.

        Raises `GktError` when it cannot be written.
        """
        evaluated = [record for record in self.records if "test_accuracy" in record]
        best = max(evaluated, key=lambda record: record["test_accuracy"], default=None)
        self.summary = {
            **{f"final_{name}": value for name, value in accuracy.items()},
            **_spread([client.test_accuracy for client in clients]),
            "best_test_accuracy": best["test_accuracy"] if best else math.nan,
            "best_round": best["round"] if best else 0,
            **self._so_far("completed"),
            **compute,
        }
        with self._explained():
            self._clients.append(clients)
            if confusion is not None:
                lines = [["true class", *self._classes]]
                lines += [[name, *map(str, row)] for name, row in zip(self._classes, confusion.tolist(), strict=True)]
                with open(
                    self.folder / "confusion.csv", "w", newline="", encoding="utf-8", errors="surrogateescape"
                ) as file:
                    csv.writer(file, lineterminator="\n").writerows(lines)
        self._write_summary()

    def interrupt(self, rounds_done: int) -> None:
        """Write a summary.json that states after how many rounds the run was interrupted.

        Raises `GktError` when it cannot be written.
        """
        self.records = self.records[:rounds_done]
        self.summary = self._so_far("interrupted")
        self._write_summary()

    def close(self, *artefacts: Path) -> None:
        """Close the sinks, and give them files such as the report. Raises `GktError`."""
        with self._explained():
            self._open_sinks.close(self.summary, artefacts)

    def _so_far(self, status: str) -> Json:
        """Return the part of the summary that all runs have, completed or not."""
        sums = ("upload_bytes", "download_bytes", "simulation_bytes", "edge_flops", "virtual_s")
        return {
            "rounds": len(self.records),
            **{name: sum(r[name] for r in self.records) for name in sums if all(name in r for r in self.records)},
            "total_s": self._earlier_s + time.perf_counter() - self._began,
            "status": status,
        }

    def _write_summary(self) -> None:
        with self._explained():
            self._summary_path.write_text(json.dumps(self.summary, indent=2) + "\n", encoding="utf-8")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Convert write errors of the system into an error that advises what to do."""
        try:
            yield
        except OSError as error:
            raise GktError(f"cannot write the log in {self.folder}: {error}; {what_to_do(self.folder)}") from error


def _spread(accuracies: list[float]) -> dict[str, float]:
    """Return minimum, maximum and deviation of the clients' final accuracies; empty for fewer than two."""
    if len(accuracies) < 2:
        return {}
    values = {"min": min(accuracies), "max": max(accuracies), "sd": statistics.stdev(accuracies)}
    return {f"final_test_accuracy_{name}_of_clients": value for name, value in values.items()}
