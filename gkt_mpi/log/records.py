"""Reads metrics.jsonl, which has one record per round, and summary.json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gkt_mpi.log.lines import Found, parse_lines, split_lines


def find_records(path: Path) -> Found[dict[str, Any]]:
    """Return the valid records of a metrics.jsonl, none if it is missing, and the damaged lines. Raises `OSError`."""
    lines, rest = split_lines(path)
    found = parse_lines(lines, _parse_record)
    last = parse_lines([rest], _parse_record, first=1 + len(lines))  # possibly complete except for its line feed
    return Found(found.numbered + last.numbered, found.damaged)


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the valid records of a metrics.jsonl. Raises `OSError`."""
    return find_records(path).items


def _parse_record(line: str) -> dict[str, Any]:
    """Return a line's record, which has the number of its round. Raises `ValueError`."""
    record = json.loads(line)
    if not isinstance(record, dict) or type(record.get("round")) is not int or record["round"] < 0:
        raise ValueError(f"{line!r} is not a record of a round")
    return record


def read_summary(folder: Path) -> dict[str, Any]:
    """Return the summary.json of a run folder; empty if it is missing or damaged."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return summary if isinstance(summary, dict) else {}


def reproducible(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of a record that configuration and seed determine: all but times and memory of the machine."""
    by_machine = ("_s", "_peak_mib")
    return {key: value for key, value in record.items() if key == "virtual_s" or not key.endswith(by_machine)}
