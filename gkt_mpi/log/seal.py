"""What a checkpoint knows of the log: the newest records, and of the older ones a digest.

So a checkpoint is as large in round 100,000 as in round 500, and yet no line of metrics.jsonl can change unnoticed: the
newest come from the checkpoint, and of the others it is known whether they are as they were written.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

NEWEST = 256  # records that a checkpoint has at least, where there are so many; at most twice as many


class Seal:
    """The digest of the oldest records of a log; these are `num_rounds`, all but the newest."""

    def __init__(self, records: Sequence[dict[str, Any]] = ()) -> None:
        """Begin with what the log has already."""
        self.num_rounds = 0
        self._digest = hashlib.sha256()
        self.follow(records)

    def follow(self, records: Sequence[dict[str, Any]]) -> None:
        """Take in what is no longer new; `records` are all of the log, which only grows."""
        while len(records) - self.num_rounds >= 2 * NEWEST:
            for record in records[self.num_rounds : self.num_rounds + NEWEST]:
                self._digest.update(as_line(record).encode())
            self.num_rounds += NEWEST

    @property
    def digest(self) -> str:
        """The digest so far, in hexadecimal digits."""
        return self._digest.hexdigest()


def as_line(record: dict[str, Any]) -> str:
    """Return a record as a line of metrics.jsonl."""
    return json.dumps(record) + "\n"


def digest_of(records: Sequence[dict[str, Any]]) -> str:
    """Return the digest that a seal over just these records has."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(as_line(record).encode())
    return digest.hexdigest()
