"""The checkpoint's knowledge of the log: the newest records, and a digest of the older ones.

A checkpoint in round 100,000 is therefore as large as in round 500, and yet no change of metrics.jsonl goes unnoticed:
the newest lines are restored from the checkpoint, and the digest detects changes of the others.
"""

import hashlib
import json
from collections.abc import Sequence

from gkt_mpi.plain import Json

NEWEST = 256  # minimum number of records in a checkpoint, if there are as many; at most twice as many


class Seal:
    """The digest of the oldest `num_rounds` records of a log, all except the newest."""

    def __init__(self, records: Sequence[Json] = ()) -> None:
        """Start with the existing records of the log."""
        self.num_rounds = 0
        self._digest = hashlib.sha256()
        self.follow(records)

    def follow(self, records: Sequence[Json]) -> None:
        """Add records that are no longer new; `records` are all of the log, which only grows."""
        while len(records) - self.num_rounds >= 2 * NEWEST:
            for record in records[self.num_rounds : self.num_rounds + NEWEST]:
                self._digest.update(as_line(record).encode())
            self.num_rounds += NEWEST

    @property
    def digest(self) -> str:
        """The digest so far, in hexadecimal digits."""
        return self._digest.hexdigest()


def as_line(record: Json) -> str:
    """Return a record as a line of metrics.jsonl."""
    return json.dumps(record) + "\n"


def digest_of(records: Sequence[Json]) -> str:
    """Return the digest of a seal over exactly these records."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(as_line(record).encode())
    return digest.hexdigest()
