"""Make the log of a run agree with what its checkpoint knows, before the run goes on.

metrics.jsonl               the newest rounds from the checkpoint (but for the last one's two times), of the older ones
                            it is known whether they are as they were written
uploads.csv, clients.csv    the last round's lines from the checkpoint, earlier ones from the log
trace.json                  from the log: no checkpoint has anything of it

Lines of rounds that no checkpoint covers are dropped, and lines that were lost or cut off come from the checkpoint.
Of a file with damage in it a copy as it is goes aside, as NAME.damaged, and that is told in a line.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gkt_mpi.log.csv_log import ClientRecord, Record, UploadRecord, find_records_of
from gkt_mpi.log.lines import name_lines
from gkt_mpi.log.records import find_records
from gkt_mpi.log.seal import digest_of
from gkt_mpi.log.timeline import find_events

_KNOWN_LATER = ("checkpoint_s", "round_s")  # of a round: only when its checkpoint has been written
_BETWEEN_S = 0.1  # at most, from the end of the checkpoint to the end of the round


@dataclass(frozen=True)
class Known:
    """What a checkpoint knows of the log: how many rounds are done, their newest records, and the last one's lines.

    Of the oldest `sealed` records it has the digest only (seal.py).
    """

    rounds_done: int
    records: Sequence[dict[str, Any]]
    uploads: Sequence[UploadRecord]
    clients: Sequence[ClientRecord]
    sealed: int = 0
    digest: str = ""


@dataclass(frozen=True)
class Agreed:
    """What the files of the log are to hold before the run goes on; `events` are the spans of trace.json."""

    records: list[dict[str, Any]]
    uploads: list[UploadRecord]
    clients: list[ClientRecord]
    events: list[dict[str, Any]]


def agree(folder: Path, known: Known, say: Callable[[str], None]) -> Agreed:
    """Return what the log of a run folder is to hold; damage is told to `say`, and put aside. Raises `OSError`."""
    if known.rounds_done == 0:  # nothing of what is there is of this run
        return Agreed([], [], [], [])
    return Agreed(
        records=_agree_on_records(folder / "metrics.jsonl", known, say),
        uploads=_agree_on_lines(UploadRecord, folder / "uploads.csv", known.rounds_done, known.uploads, say),
        clients=_agree_on_lines(ClientRecord, folder / "clients.csv", known.rounds_done, known.clients, say),
        events=_agree_on_events(folder / "trace.json", known.rounds_done, say),
    )


def _agree_on_records(path: Path, known: Known, say: Callable[[str], None]) -> list[dict[str, Any]]:
    found, wrong = find_records(path), []
    agreed = {record["round"]: record for record in known.records}
    saved_rounds = set(agreed)
    for number, record in found.numbered:
        round = record["round"]
        if round >= known.rounds_done:
            continue
        if round not in saved_rounds:
            agreed.setdefault(round, record)
        elif round == known.rounds_done - 1 and _is_completed(agreed[round], record):
            agreed[round] = record
        elif not _are_equal(agreed[round], record):
            wrong.append(number)
    records = [agreed[round] for round in sorted(agreed) if round < known.rounds_done]
    is_whole = not known.sealed or digest_of(records[: known.sealed]) == known.digest
    if is_whole:
        _put_aside(path, [*found.damaged, *wrong], "its figures come from the checkpoint", say)
    else:
        aside = _copy_aside(path)
        say(
            f"{path} is damaged: its first {known.sealed} lines are not as they were written, and no checkpoint has "
            f"them; a copy is put aside as {aside}, and the run goes on with what can be read"
        )
    return records


def _are_equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two records say the same, nan being equal to nan."""
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def _is_completed(saved: dict[str, Any], record: dict[str, Any]) -> bool:
    """Whether a record is a checkpoint's with the times that were known only later, and these can be right."""
    if not _are_equal(saved, record | {name: saved[name] for name in _KNOWN_LATER if name in saved}):
        return False
    checkpoint_s, round_s = (record.get(name) for name in _KNOWN_LATER)
    if "round_s" not in saved or not isinstance(checkpoint_s, int | float) or not isinstance(round_s, int | float):
        return False
    return checkpoint_s >= 0 and abs(round_s - saved["round_s"] - checkpoint_s) < _BETWEEN_S


def _agree_on_lines(
    kind: type[Record], path: Path, rounds_done: int, last: Sequence[Record], say: Callable[[str], None]
) -> list[Record]:
    found = find_records_of(kind, path)
    before = rounds_done - (1 if last else 0)
    known = {*last}
    wrong = [
        number
        for number, record in found.numbered
        if before <= record.round < rounds_done and record not in known and not getattr(record, "is_final", 0)
    ]
    _put_aside(path, [*found.damaged, *wrong], "it goes on without these, the last round as the checkpoint has it", say)
    return [*(record for record in found.items if record.round < before), *last]


def _agree_on_events(path: Path, rounds_done: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    found = find_events(path)
    _put_aside(path, found.damaged, "it goes on without these", say)
    return [event for event in found.items if event["ph"] == "X" and event["args"]["round"] < rounds_done]


def _put_aside(path: Path, lines: Sequence[int], what_else: str, say: Callable[[str], None]) -> None:
    """Keep a copy of a damaged file, and say so; nothing where no line is damaged."""
    if lines:
        aside = _copy_aside(path)
        say(f"{path} is damaged ({name_lines(sorted(lines))}); a copy is put aside as {aside}, and {what_else}")


def _copy_aside(path: Path) -> str:
    """Keep a copy of a file, if it is there; return its name."""
    aside = path.with_name(path.name + ".damaged")
    number = 2
    while aside.exists():  # nothing that was put aside before is lost
        aside, number = path.with_name(f"{path.name}.damaged{number}"), number + 1
    if path.exists():
        shutil.copyfile(path, aside)
    return aside.name
