"""Files of a run folder that have a line for each of many records of one kind, whose fields are the columns.

uploads.csv   every upload that the server has learnt from, where clients are not in step    UploadRecord
clients.csv   every client at every evaluation                                               ClientRecord
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from gkt_mpi.log.lines import Found, parse_lines, split_lines, write_whole


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


Record = TypeVar("Record", bound=UploadRecord | ClientRecord)
_NUMBERS = re.compile("[-+.e0-9,]*")  # Python would also take spaces and underscores
_MOST_COUNT, _LONGEST_S = 10**9, 1e15


class CsvLog(Generic[Record]):
    """Such a file, made with its first line."""

    def __init__(self, path: Path, kind: type[Record]) -> None:
        self._path = path
        self._kind: type[Record] = kind

    def begin(self, kept: Sequence[Record]) -> None:
        """Go on with these lines instead of what is there. Raises `OSError`."""
        if kept:
            write_whole(self._path, self._text([self._kind._fields, *kept]))
        else:
            self._path.unlink(missing_ok=True)

    def append(self, records: Sequence[Record]) -> None:
        """Write these lines. Raises `OSError`."""
        if not records:
            return
        header = [] if self._path.exists() else [self._kind._fields]
        with open(self._path, "a", newline="", encoding="utf-8") as file:
            file.write(self._text([*header, *records]))

    def _text(self, rows: Iterable[Sequence[Any]]) -> str:
        return "".join(",".join(map(str, row)) + "\n" for row in rows)


def find_records_of(kind: type[Record], path: Path) -> Found[Record]:
    """Return the lines of such a file, none without it, and which lines are damaged. Raises `OSError`.

    The columns are those that the first line names; where that is damaged, as `kind` has them.
    """
    lines, _ = split_lines(path)  # what is cut off may look like a shorter number
    if not lines:
        return Found([], [])
    names = lines[0].split(",")
    is_header = set(kind._fields) <= set(names)
    columns = [(names if is_header else kind._fields).index(name) for name in kind._fields]
    width = len(names if is_header else kind._fields)

    def parse(line: str) -> Record:
        cells = line.split(",")
        if len(cells) != width or not _NUMBERS.fullmatch(line):
            raise ValueError(f"{line!r} is no line of {width} numbers")
        makes = kind.__annotations__.values()
        record = kind(*(make(cells[column]) for column, make in zip(columns, makes, strict=True)))
        if not all(_can_be(name, value) for name, value in zip(kind._fields, record, strict=True)):
            raise ValueError(f"{line!r} is no {kind.__name__}")
        return record

    found: Found[Record] = parse_lines(lines[1:], parse, first=2)
    return found if is_header else Found(found.numbered, [1, *found.damaged])


def read_records_of(kind: type[Record], path: Path) -> list[Record]:
    """Return the lines that are whole, none when there is no file. Raises `OSError`."""
    return find_records_of(kind, path).items


def _can_be(name: str, value: float) -> bool:
    """Whether a column can have this value."""
    if name.endswith("accuracy"):
        return 0 <= value <= 1
    return 0 <= value < _MOST_COUNT if isinstance(value, int) else abs(value) < _LONGEST_S
