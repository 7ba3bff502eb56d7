"""Reconcile the log of a run with its checkpoint, before the run continues.

    metrics.jsonl               the newest rounds from the checkpoint (except the last one's two times); of the older
                                ones the checkpoint has a digest that detects changes
    uploads.csv, clients.csv    the last round's lines from the checkpoint, earlier ones from the log
    trace.json                  from the log: checkpoints do not contain it

Lines of rounds beyond the checkpoint are dropped, and lost or truncated lines are restored from the checkpoint.
A damaged file is first copied to NAME.damaged, and the damage is reported in one line.
"""

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gkt_mpi.log.csv_log import ClientRecord, Record, UploadRecord, find_records_of
from gkt_mpi.log.lines import name_lines
from gkt_mpi.log.records import find_records
from gkt_mpi.log.seal import digest_of
from gkt_mpi.log.timeline import find_events
from gkt_mpi.plain import Json

logger = logging.getLogger(__name__)

_KNOWN_LATER = ("checkpoint_s", "round_s")  # times that are known only after the round's checkpoint has been written
_BETWEEN_S = 0.1  # upper bound, from the end of the checkpoint to the end of the round


@dataclass(frozen=True)
class Known:
    """The checkpoint's knowledge of the log: the number of rounds, their newest records, and the last one's lines.

    Of the oldest `sealed` records it has only the digest (seal.py).
    """

    rounds_done: int
    records: Sequence[Json]
    uploads: Sequence[UploadRecord]
    clients: Sequence[ClientRecord]
    sealed: int = 0
    digest: str = ""


@dataclass(frozen=True)
class Agreed:
    """The contents of the log's files before the run continues; `events` are the spans of trace.json."""

    records: list[Json]
    uploads: list[UploadRecord]
    clients: list[ClientRecord]
    events: list[Json]


def agree(folder: Path, known: Known) -> Agreed:
    """Return the contents for a run folder's log; damaged files are reported, and copied. Raises `OSError`."""
    if known.rounds_done == 0:  # existing files do not belong to this run
        return Agreed([], [], [], [])
    return Agreed(
        records=_agree_on_records(folder / "metrics.jsonl", known),
        uploads=_agree_on_lines(UploadRecord, folder / "uploads.csv", known.rounds_done, known.uploads),
        clients=_agree_on_lines(ClientRecord, folder / "clients.csv", known.rounds_done, known.clients),
        events=_agree_on_events(folder / "trace.json", known.rounds_done),
    )


def _agree_on_records(path: Path, known: Known) -> list[Json]:
    found, wrong = find_records(path), []
    agreed = {record["round"]: record for record in known.records}
    saved_rounds = set(agreed)
    for number, record in found.numbered:
        round = record["round"]
        if round > known.rounds_done:
            continue
        if round < 1:
            wrong.append(number)
        elif round not in saved_rounds:
            agreed.setdefault(round, record)
        elif round == known.rounds_done and _is_completed(agreed[round], record):
            agreed[round] = record
        elif not _are_equal(agreed[round], record):
            wrong.append(number)
    records = [agreed[round] for round in sorted(agreed) if round <= known.rounds_done]
    is_whole = not known.sealed or digest_of(records[: known.sealed]) == known.digest
    if is_whole:
        _put_aside(path, [*found.damaged, *wrong], "its figures come from the checkpoint")
    else:
        aside = _copy_aside(path)
        logger.warning(
            f"{path} is damaged: its first {known.sealed} lines have changed, and no checkpoint contains "
            f"them; a copy is kept as {aside}, and the run continues with the readable lines"
        )
    return records


def _are_equal(a: Json, b: Json) -> bool:
    """Whether two records are equal, treating nan as equal to nan."""
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def _is_completed(saved: Json, record: Json) -> bool:
    """Whether a record equals a checkpoint's plus the times known only later, and these are plausible."""
    if not _are_equal(saved, record | {name: saved[name] for name in _KNOWN_LATER if name in saved}):
        return False
    checkpoint_s, round_s = (record.get(name) for name in _KNOWN_LATER)
    if "round_s" not in saved or not isinstance(checkpoint_s, int | float) or not isinstance(round_s, int | float):
        return False
    return checkpoint_s >= 0 and abs(round_s - saved["round_s"] - checkpoint_s) < _BETWEEN_S


def _agree_on_lines(kind: type[Record], path: Path, rounds_done: int, last: Sequence[Record]) -> list[Record]:
    found = find_records_of(kind, path)
    kept = rounds_done - (1 if last else 0)  # rounds whose lines come from the log
    known = {*last}
    wrong = [
        number
        for number, record in found.numbered
        if kept < record.round <= rounds_done and record not in known and not getattr(record, "is_final", 0)
    ]
    _put_aside(
        path,
        [*found.damaged, *wrong],
        "these are dropped, except for the last round's, which come from the checkpoint",
    )
    return [*(record for record in found.items if record.round <= kept), *last]


def _agree_on_events(path: Path, rounds_done: int) -> list[Json]:
    found = find_events(path)
    _put_aside(path, found.damaged, "these are dropped")
    return [event for event in found.items if event["ph"] == "X" and event["args"]["round"] <= rounds_done]


def _put_aside(path: Path, lines: Sequence[int], what_else: str) -> None:
    """Keep a copy of a damaged file and report it; do nothing if no line is damaged."""
    if lines:
        aside = _copy_aside(path)
        logger.warning(f"{path} is damaged ({name_lines(sorted(lines))}); a copy is kept as {aside}, and {what_else}")


def _copy_aside(path: Path) -> str:
    """Keep a copy of a file, if it exists; return its name."""
    aside = path.with_name(path.name + ".damaged")
    number = 2
    while aside.exists():  # do not overwrite earlier copies
        aside, number = path.with_name(f"{path.name}.damaged{number}"), number + 1
    if path.exists():
        shutil.copyfile(path, aside)
    return aside.name
