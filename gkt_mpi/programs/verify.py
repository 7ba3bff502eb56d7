"""Repeats the first rounds of a run and compares every figure to the last bit: `gkt-mpi verify runs/digits`.

The same as `python -m gkt_mpi.programs.verify RUN`. The run is started with its own configuration in a temporary
folder, on another number of ranks, and stopped after these rounds: its schedules need all rounds. The verdict is
printed, and written to RUN/certificate.json.
"""

import argparse
import hashlib
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gkt_mpi.errors import ConfigError, DataError, GktError
from gkt_mpi.launching import interrupt, read_fields, split_options, start, what_went_wrong
from gkt_mpi.log.output import never_fail_on_encoding
from gkt_mpi.log.records import read_records, read_summary, reproducible
from gkt_mpi.log.timeline import read_trace
from gkt_mpi.plain import Json

_LOOK_EVERY_S = 0.2
_MOST_SHOWN = 10  # differences
_OF_FAULTS = ("lost_workers", "refused_messages")  # what a disturbance adds; results do not depend on it
_NAME = "repeated"


@dataclass(frozen=True)
class Difference:
    """A figure of a round, counted from 1, that was not repeated; None where it is missing."""

    round: int
    figure: str
    run: Any
    repeated: Any

    def __str__(self) -> str:
        return f"round {self.round}, {self.figure}: {self.run} in the run, {self.repeated} repeated"


@dataclass(frozen=True)
class Certificate:
    """What was compared, and the verdict.

    `figures_sha256` is the digest of the run's compared figures; `threads` is the configuration's placement.threads.
    """

    verdict: str
    run: str
    configuration_sha256: str
    figures_sha256: str
    rounds: int
    figures: int
    num_ranks: int
    num_ranks_of_run: int | None
    threads: str
    software: str
    software_of_run: str
    differences: list[Difference]


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="gkt-mpi verify",
        description="Repeat the first rounds of a run and compare every figure to the last bit.",
        epilog="exit status: 0 identical, 1 a figure differs, 2 the run cannot be repeated",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="run folder, such as runs/digits")
    ranks = "number of ranks, server included (default: 2, or 3 if the run had 2)"
    parser.add_argument("-np", "-n", metavar="N", type=int, dest="num_ranks", help=ranks)
    parser.add_argument("--rounds", metavar="K", type=int, default=2, help="rounds to repeat (default: 2)")
    parser.add_argument("--mpi", metavar="OPTIONS", default="", help='for mpirun: --mpi "--hostfile hosts"')
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Repeat the run, print the verdict, write the certificate, and return the exit status."""
    never_fail_on_encoding()
    options = make_parser().parse_args(arguments)
    try:
        certificate = verify(options.run, options.num_ranks, options.rounds, split_options(options.mpi))
    except GktError as error:
        print(f"gkt_mpi: {error}", file=sys.stderr)
        return error.exit_status
    path = options.run / "certificate.json"
    path.write_text(json.dumps(asdict(certificate), indent=2) + "\n", encoding="utf-8")
    for difference in certificate.differences[:_MOST_SHOWN]:
        print(difference)
    if len(certificate.differences) > _MOST_SHOWN:
        print(f"and {len(certificate.differences) - _MOST_SHOWN} more, see {path}")
    if certificate.differences and certificate.threads == "auto":
        print("placement.threads is auto: the number of threads depends on the ranks, and so does the rounding of sums")
    if certificate.software != certificate.software_of_run:
        print(f"the run: {certificate.software_of_run}\nrepeated: {certificate.software}")
    ranks = f"{certificate.num_ranks} ranks (the run: {certificate.num_ranks_of_run or 'unknown'})"
    print(f"{certificate.verdict}: {certificate.figures} figures of {certificate.rounds} rounds, on {ranks}")
    print(f"certificate: {path}")
    return 0 if certificate.verdict == "identical" else 1


def verify(run: Path, num_ranks: int | None, rounds: int, mpi_options: Sequence[str] = ()) -> Certificate:
    """Repeat the first `rounds` rounds of a run and compare them.

    Raises `ConfigError` and `DataError` where this is impossible, `GktError` when the repeated run fails.
    """
    if rounds < 1 or (num_ranks is not None and num_ranks < 1):
        raise ConfigError(f"--rounds is {rounds} and -np {num_ranks}; expected at least 1 each")
    fields = read_fields(run / "config.yaml")
    records = read_records(run / "metrics.jsonl")[:rounds]
    if not fields or not records:
        raise DataError(f"{run} is not a run folder with at least one finished round; expected one such as runs/digits")
    if fields.get("algorithm") == "fedgkt_async" and fields.get("clock") == "real":
        raise ConfigError(f"{run} has clock: real, so its figures depend on the machine's speed and cannot be repeated")
    before = _num_ranks_of(run)
    ranks = num_ranks or (3 if before == 2 else 2)
    print(f"repeating {len(records)} of {fields.get('rounds')} rounds of {run} on {ranks} ranks", flush=True)
    with tempfile.TemporaryDirectory(prefix="gkt_mpi-") as folder:
        out = Path(folder)
        repeated = _repeat(run, out, len(records), ranks, mpi_options)
        software = _software(out / _NAME)
    compared = [reproducible(record) for record in records]
    differences = compare(compared, [reproducible(record) for record in repeated])
    return Certificate(
        verdict="different" if differences else "identical",
        run=str(run),
        configuration_sha256=_digest({key: fields[key] for key in fields if key not in ("name", "out")}),
        figures_sha256=_digest(compared),
        rounds=len(records),
        figures=sum(len(record) for record in compared),
        num_ranks=ranks,
        num_ranks_of_run=before,
        threads=str((fields.get("placement") or {}).get("threads", "auto")),
        software=software,
        software_of_run=_software(run),
        differences=differences,
    )


def compare(run: Sequence[Mapping[str, Any]], repeated: Sequence[Mapping[str, Any]]) -> list[Difference]:
    """Return the figures that differ between two runs' records; a lost worker's counts and bytes are not compared."""
    differences = []
    for number, (a, b) in enumerate(zip(run, repeated, strict=True), 1):
        has_lost = any(record.get("lost_workers") for record in (a, b))
        for key in dict.fromkeys([*a, *b]):
            if key in _OF_FAULTS or (has_lost and key.endswith("_bytes")):
                continue
            if not _are_equal(a.get(key), b.get(key)):
                differences.append(Difference(number, key, a.get(key), b.get(key)))
    return differences


def _are_equal(a: object, b: object) -> bool:
    both_nan = isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b)
    return both_nan or a == b


def _repeat(run: Path, out: Path, rounds: int, num_ranks: int, mpi_options: Sequence[str]) -> list[Json]:
    """Run again into `out`, stop after the rounds, and return their records."""
    words = ["--config", str(run / "config.yaml"), "--out", str(out), "--name", _NAME, "--log.report", "never"]
    words += _chosen_by_machine(run)
    log = out / f"{_NAME}.txt"
    records: list[Json] = []
    with open(log, "w+", encoding="utf-8", errors="replace") as file:
        process = start(words, num_ranks, file, subprocess.STDOUT, mpi_options)
        try:
            while process.poll() is None and len(records) < rounds:
                time.sleep(_LOOK_EVERY_S)
                records = read_records(out / _NAME / "metrics.jsonl")
        finally:
            interrupt(process)
            process.wait()
    records = read_records(out / _NAME / "metrics.jsonl")[:rounds]
    if len(records) < rounds:
        raise GktError(f"the repeated run failed: {what_went_wrong(log.read_text(encoding='utf-8', errors='replace'))}")
    return records


def _chosen_by_machine(run: Path) -> list[str]:
    """Return the fields that the run chose from the machine, which its summary has, as a command line."""
    fields, words = read_fields(run / "config.yaml"), []
    chosen = {key: value for key, value in read_summary(run).items() if key in ("precision", "compile")}
    for key, value in chosen.items():
        if (fields.get("compute") or {}).get(key) == "auto":
            words.append(f"--compute.{key}={str(value).lower()}")
    return words


def _num_ranks_of(run: Path) -> int | None:
    """Return the number of ranks of a run from its timeline; None if it has none."""
    return len({event["tid"] for event in read_trace(run / "trace.json") if event["ph"] == "M"}) or None


def _software(run: Path) -> str:
    """Return versions and processor of a run, the first line of its config.yaml."""
    first = (run / "config.yaml").read_text(encoding="utf-8").splitlines()[0]
    return first.removeprefix("# ") if first.startswith("# ") else "unknown"


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
