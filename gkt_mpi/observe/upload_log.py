"""uploads.csv: where clients are not in step, every upload that the server has learnt from, a line each.

Seconds are those of the run's clock, virtual or real, from the start of the run.
"""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple


class UploadRecord(NamedTuple):
    """One upload of a client."""

    round: int  # of the run, in which the server learnt from it
    client: int
    upload: int  # how many this client had sent before
    asked_s: float  # when the client was asked for it
    done_s: float  # when all of it was there
    taken_s: float  # when the server began to learn from it
    answered_s: float  # when the client was asked for its next
    staleness: float  # rounds from asked to taken
    is_used: int  # 0 of one that could not be used, or was too stale


class UploadLog:
    """The file, made with the first line."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def begin(self, rounds_done: int, saved: Iterable[UploadRecord]) -> None:
        """Go on after `rounds_done` rounds, the last of them as a checkpoint has `saved` it. Raises `OSError`."""
        last = list(saved)
        kept = [upload for upload in read_uploads(self._path) if upload.round < rounds_done - (1 if last else 0)]
        self._path.unlink(missing_ok=True)
        self.append([*kept, *last])

    def append(self, uploads: Sequence[UploadRecord]) -> None:
        """Write these lines. Raises `OSError`."""
        if not uploads:
            return
        is_new = not self._path.exists()
        with open(self._path, "a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if is_new:
                writer.writerow(UploadRecord._fields)
            writer.writerows(uploads)


def read_uploads(path: Path) -> list[UploadRecord]:
    """Return the lines that are whole, none when there is no file: the last one may have been cut off."""
    if not path.exists():
        return []
    found = []
    for line in csv.DictReader(path.read_text().splitlines()):
        try:
            values = {name: kind(line[name]) for name, kind in UploadRecord.__annotations__.items()}
        except (TypeError, ValueError):
            break
        found.append(UploadRecord(**values))
    return found
