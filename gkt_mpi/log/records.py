"""Reads metrics.jsonl, which has one record per round, and summary.json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gkt_mpi.log.lines import Found, parse_lines, split_lines
from gkt_mpi.plain import Json


def find_records(path: Path) -> Found[Json]:
    """Return the valid records of a metrics.jsonl, none if it is missing, and the damaged lines. Raises `OSError`."""
    lines, rest = split_lines(path)
    found = parse_lines(lines, _parse_record)
    last = parse_lines([rest], _parse_record, first=1 + len(lines))  # possibly complete except for its line feed
    return Found(found.numbered + last.numbered, found.damaged)


def read_records(path: Path) -> list[Json]:
    """Return the valid records of a metrics.jsonl. Raises `OSError`."""
    return find_records(path).items


def _parse_record(line: str) -> Json:
    """Return a line's record, which has the number of its round. Raises `ValueError`."""
    record = json.loads(line)
    if not isinstance(record, dict) or type(record.get("round")) is not int or record["round"] < 0:
        raise ValueError(f"{line!r} is not a record of a round")
    return record


def read_summary(folder: Path) -> Json:
    """Return the summary.json of a run folder; empty if it is missing or damaged."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return summary if isinstance(summary, dict) else {}


def reproducible(record: Mapping[str, Any]) -> Json:
    """Return the figures of a record that configuration and seed determine: all but times and memory of the machine."""
    by_machine = ("_s", "_peak_mib")
    return {key: value for key, value in record.items() if key == "virtual_s" or not key.endswith(by_machine)}
