"""CSV files of a run folder, one line per record, with the record's fields as columns.

uploads.csv   every upload that the server has learnt from, in asynchronous training        UploadRecord
clients.csv   every client at every evaluation                                               ClientRecord
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from gkt_mpi.log.lines import Found, parse_lines, split_lines, write_whole


class UploadRecord(NamedTuple):
    """One upload of a client; seconds are on the run's clock, virtual or real, from the start of the run."""

    round: int  # of the run, from 1, in which the server learnt from it
    client: int
    upload: int  # number of earlier uploads of this client
    asked_s: float  # when the upload was requested
    done_s: float  # when the upload was complete
    taken_s: float  # when the server began to learn from it
    answered_s: float  # when the client was sent its next request
    staleness: float  # rounds from asked_s to taken_s
    is_used: int  # 0 if it could not be used, or was too stale


class ClientRecord(NamedTuple):
    """One client's part of an evaluation."""

    round: int  # the preceding round, from 1
    is_final: int  # 1 for the evaluation at the end of the run, which is on the whole test set
    client: int
    images: int  # test images classified with its stem
    test_accuracy: float  # share classified correctly by the algorithm's result
    client_test_accuracy: float  # share classified correctly by the client's edge model alone


Record = TypeVar("Record", bound=UploadRecord | ClientRecord)
_NUMBERS = re.compile("[-+.e0-9,]*")  # Python would also accept spaces and underscores
_MOST_COUNT, _LONGEST_S = 10**9, 1e15


class CsvLog(Generic[Record]):
    """A CSV file of records, with a header line."""

    def __init__(self, path: Path, kind: type[Record]) -> None:
        self._path = path
        self._kind: type[Record] = kind

    def begin(self, kept: Sequence[Record]) -> None:
        """Replace the file's contents by these lines. Raises `OSError`."""
        if kept:
            write_whole(self._path, self._text([self._kind._fields, *kept]))
        else:
            self._path.unlink(missing_ok=True)

    def append(self, records: Sequence[Record]) -> None:
        """Append these lines. Raises `OSError`."""
        if not records:
            return
        header = [] if self._path.exists() else [self._kind._fields]
        with open(self._path, "a", newline="", encoding="utf-8") as file:
            file.write(self._text([*header, *records]))

    def _text(self, rows: Iterable[Sequence[Any]]) -> str:
        return "".join(",".join(map(str, row)) + "\n" for row in rows)


def find_records_of(kind: type[Record], path: Path) -> Found[Record]:
    """Return the lines of such a file, none if it does not exist, and the damaged lines. Raises `OSError`.

    The columns are those of the header line; if that is damaged, the fields of `kind`.
    """
    lines, _ = split_lines(path)  # a truncated line may look like a shorter number
    if not lines:
        return Found([], [])
    names = lines[0].split(",")
    is_header = set(kind._fields) <= set(names)
    columns = [(names if is_header else kind._fields).index(name) for name in kind._fields]
    width = len(names if is_header else kind._fields)

    def parse(line: str) -> Record:
        """Return the record of a line. Raises `ValueError` if it is damaged."""
        cells = line.split(",")
        if len(cells) != width or not _NUMBERS.fullmatch(line):
            raise ValueError(f"{line!r} is not a line of {width} numbers")
        makes = kind.__annotations__.values()
        record = kind(*(make(cells[column]) for column, make in zip(columns, makes, strict=True)))
        if not all(_can_be(name, value) for name, value in zip(kind._fields, record, strict=True)):
            raise ValueError(f"{line!r} is not a valid {kind.__name__}")
        return record

    found: Found[Record] = parse_lines(lines[1:], parse, first=2)
    return found if is_header else Found(found.numbered, [1, *found.damaged])


def read_records_of(kind: type[Record], path: Path) -> list[Record]:
    """Return the valid lines, none if there is no file. Raises `OSError`."""
    return find_records_of(kind, path).items


def _can_be(name: str, value: float) -> bool:
    """Whether a value is possible in a column."""
    if name.endswith("accuracy"):
        return 0 <= value <= 1
    return 0 <= value < _MOST_COUNT if isinstance(value, int) else abs(value) < _LONGEST_S
