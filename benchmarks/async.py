"""Asynchronous beside synchronous FedGKT where one of four clients is ten times slower: make bench-async.

    python benchmarks/async.py [--seeds N] [--cifar DIR] [--skip-real] [--out DIR] [--json FILE]

virtual  the devices phone, phone, phone and phone_slow of gkt_mpi/profiles, by the virtual clock: digits, homo and
         hetero (Dirichlet 0.5), and with --cifar, the folder of cifar-10-batches-py, 1,000 images of CIFAR-10
real     digits by the real clock: the worker of one client is stopped for nine tenths of the time (slowed.py)

For each: final accuracy, seconds to the target, which is 0.95 of what synchronous training ends with, idle shares of
server and clients. Mean and sample standard deviation over the seeds. Asynchronous runs do twice as many rounds; by the
virtual clock they take a quarter of the time all the same. Complete runs are not repeated. About half an hour on two
cores, and with --cifar an hour and a half more.
"""

import argparse
import json
import statistics
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import ROOT, is_complete, machine, mean_and_spread, summary_of
from rich.console import Console
from rich.table import Table

from gkt_mpi.log.timeline import idle_shares
from gkt_mpi.report.run_folder import Run

SKEW = 10
SKEWED = ["--devices.edge", "[phone, phone, phone, phone_slow]"]
TARGET = 0.95
SMALL = ["--data.limit", "1000", "--data.test_limit", "500"]
FIXED = ["--compute.precision", "float32", "--compute.compile", "false"]  # no choice by measurement: all runs alike
WAYS = {
    "synchronous": ["--algorithm", "fedgkt"],
    "asynchronous": ["--algorithm", "fedgkt_async"],
    "  no overtime": ["--algorithm", "fedgkt_async", "--async.overtime", "0"],
    "  buffer of 2": ["--algorithm", "fedgkt_async", "--async.buffer", "2"],
}


@dataclass(frozen=True)
class Part:
    """One comparison: a configuration, which ways of training, and by which clock."""

    label: str
    config: str
    fields: list[str]
    rounds: int  # in synchronous training
    ways: tuple[str, ...] = ("synchronous", "asynchronous")
    is_real: bool = False


def main() -> None:
    """Run what is missing and print a table for each clock."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "async")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cifar", type=Path, help="the folder in which cifar-10-batches-py lies")
    parser.add_argument("--skip-real", action="store_true", help="only the virtual clock")
    parser.add_argument("--json", type=Path, help="also write the tables here")
    options = parser.parse_args()
    hetero = ["--data.partition", "hetero", "--data.alpha", "0.5"]
    parts = [Part("digits homo", "digits", [], 10, tuple(WAYS)), Part("digits hetero", "digits", hetero, 10)]
    if options.cifar:
        fields = ["--data.dir", str(options.cifar.resolve()), *SMALL, *FIXED]
        parts.append(Part("CIFAR-10, 1,000 images", "cifar10_small", fields, 10))
    if not options.skip_real:
        parts.append(Part("digits homo", "digits", [], 10, is_real=True))
    rows = [row for part in parts for row in measure(part, options.out.resolve(), options.seeds)]
    for clock in ("virtual", "real"):
        own = [row for row in rows if row["clock"] == clock]
        if own:
            show(own, f"{clock} clock, {options.seeds} seeds; {machine()}")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")


def measure(part: Part, out: Path, seeds: int) -> list[dict[str, Any]]:
    """Return a row for each way of training, with a figure for each seed."""
    rows: list[dict[str, Any]] = []
    for way in part.ways:
        runs = [run_of(part, way, seed, out) for seed in range(seeds)]
        if not rows:
            targets = [TARGET * final(run) for run in runs]
        clock = (lambda record: record["round_s"]) if part.is_real else (lambda record: record["virtual_s"])
        row = {
            "data": part.label,
            "clock": "real" if part.is_real else "virtual",
            "way": way,
            "rounds": len(runs[0].records),
            "final_test_accuracy": [final(run) for run in runs],
            "final_client_test_accuracy": [run.final_client_accuracy for run in runs],
            "target": targets,
            "to_target_s": [seconds_to(run, target, clock) for run, target in zip(runs, targets, strict=True)],
            "total_s": [sum(map(clock, run.records)) for run in runs],
            "server_idle": [idle(run, part.is_real)[0] for run in runs],
            "client_idle": [idle(run, part.is_real)[1] for run in runs],
        }
        rows.append(row)
        print(*cells(row, rows[0]), sep="  ", flush=True)
    return rows


def run_of(part: Part, way: str, seed: int, out: Path) -> Run:
    """Make a run, unless it is there, and return it."""
    rounds = part.rounds if way == "synchronous" else 2 * part.rounds
    words = [part.label, "real" if part.is_real else "virtual", way, str(seed)]
    name = "-".join("-".join(words).replace(",", "").split())
    fields = [*WAYS[way], *part.fields, "--rounds", str(rounds), "--seed", str(seed)]
    if part.is_real:
        if not is_complete(out / name):
            run_slowed(part.config, name, out, [*fields, "--clock", "real"])
    else:
        summary_of(out, name, part.config, [*fields, *SKEWED])
    return Run.load(out / name)


def run_slowed(config: str, name: str, out: Path, fields: list[str]) -> None:
    """Run a configuration on 5 ranks, the last of which is slowed down by signals."""
    program = ["python", "-m", "gkt_mpi.main", "--config", f"launch/configs/{config}.yaml"]
    program += ["--name", name, "--out", str(out), "--checkpoint.resume", "never", *fields]
    slowed = ["-np", "1", "python", "benchmarks/slowed.py", str(SKEW), *program]
    command = ["sh", "launch/mpirun.sh", "-np", "4", *program, ":", *slowed]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def final(run: Run) -> float:
    """Return the final test accuracy of a complete run."""
    assert run.final_accuracy is not None
    return run.final_accuracy


def seconds_to(run: Run, target: float, clock: Callable[[dict[str, Any]], float]) -> float | None:
    """Return when the test accuracy first reached the target, by this clock; None if it never did."""
    elapsed = 0.0
    for record in run.records:
        elapsed += clock(record)
        if record["test_accuracy"] >= target:
            return elapsed
    return None


def idle(run: Run, is_real: bool) -> tuple[float, float]:
    """Return the idle shares of server and clients: by the virtual clock, or of the ranks' timelines."""
    if is_real:
        shares = idle_shares(run.trace)
        workers = [share for rank, share in shares.items() if rank != 0]
        return shares[0], statistics.mean(workers)
    total_s = run.total("virtual_s")
    assert total_s is not None
    server, clients = (
        sum(record[key] * record["virtual_s"] for record in run.records) / total_s
        for key in ("virtual_server_idle", "virtual_client_idle")
    )
    return server, clients


def cells(row: dict[str, Any], synchronous: dict[str, Any]) -> tuple[str, ...]:
    """Return a row of the table as text; the last is the speed-up over synchronous training."""
    times = row["to_target_s"]
    reached = [time for time in times if time is not None]
    synchronous_times = synchronous["to_target_s"]
    all_reached = None not in (*times, *synchronous_times)
    speed_up = [a / b for a, b in zip(synchronous_times, times, strict=True)] if all_reached else []
    to_target = f"{statistics.mean(reached):.1f}" if len(reached) == len(times) else f"{len(reached)} of {len(times)}"
    return (
        row["data"],
        row["way"],
        str(row["rounds"]),
        mean_and_spread(row["final_test_accuracy"]),
        mean_and_spread(row["final_client_test_accuracy"]),
        f"{statistics.mean(row['total_s']):.0f}",
        to_target,
        f"{statistics.median(speed_up):.2f}" if speed_up else "-",
        f"{statistics.mean(row['server_idle']):.1%}",
        f"{statistics.mean(row['client_idle']):.1%}",
    )


def show(rows: list[dict[str, Any]], title: str) -> None:
    """Print a table."""
    table = Table(title=title, title_justify="left")
    left = ("data", "training")
    for column in (*left, "rounds", "server model", "edge models", "total s", "s to target", "speed-up", "server idle"):
        table.add_column(column, justify="left" if column in left else "right")
    table.add_column("clients idle", justify="right")
    for row in rows:
        first = next(other for other in rows if other["data"] == row["data"])
        table.add_row(*cells(row, first))
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
