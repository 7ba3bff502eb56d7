"""Files of a run folder that have a line for each of many records of one kind, whose fields are the columns.

uploads.csv   every upload that the server has learnt from, where clients are not in step    UploadRecord
clients.csv   every client at every evaluation                                               ClientRecord
"""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar


class UploadRecord(NamedTuple):
    """One upload of a client; seconds are those of the run's clock, virtual or real, from the start of the run."""

    round: int  # of the run, in which the server learnt from it
    client: int
    upload: int  # how many this client had sent before
    asked_s: float  # when the client was asked for it
    done_s: float  # when all of it was there
    taken_s: float  # when the server began to learn from it
    answered_s: float  # when the client was asked for its next
    staleness: float  # rounds from asked to taken
    is_used: int  # 0 of one that could not be used, or was too stale


class ClientRecord(NamedTuple):
    """One client's part of an evaluation."""

    round: int  # after which it was
    is_final: int  # 1 in the evaluation at the end of the run, which is on the whole test set
    client: int
    images: int  # test images that its stem has seen
    test_accuracy: float  # share of them classified correctly by what the algorithm yields
    client_test_accuracy: float  # share classified correctly by the client's edge model alone


Record = TypeVar("Record", UploadRecord, ClientRecord)


class CsvLog(Generic[Record]):
    """Such a file, made with its first line."""

    def __init__(self, path: Path, kind: type[Record]) -> None:
        self._path = path
        self._kind: type[Record] = kind

    def begin(self, rounds_done: int, saved: Iterable[Sequence[Any]]) -> None:
        """Go on after `rounds_done` rounds, the last of them as a checkpoint has `saved` it. Raises `OSError`."""
        last: list[Record] = [self._kind(*values) for values in saved]
        before = rounds_done - (1 if last else 0)
        kept = [record for record in read_records_of(self._kind, self._path) if record.round < before]
        self._path.unlink(missing_ok=True)
        self.append(kept + last)

    def append(self, records: Sequence[Record]) -> None:
        """Write these lines. Raises `OSError`."""
        if not records:
            return
        is_new = not self._path.exists()
        with open(self._path, "a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if is_new:
                writer.writerow(self._kind._fields)
            writer.writerows(records)


def read_records_of(kind: type[Record], path: Path) -> list[Record]:
    """Return the lines that are whole, none when there is no file: the last one may have been cut off."""
    if not path.exists():
        return []
    found = []
    for line in csv.DictReader(path.read_text().splitlines()):
        try:
            found.append(kind(*(make(line[name]) for name, make in kind.__annotations__.items())))
        except (TypeError, ValueError):
            break
    return found
