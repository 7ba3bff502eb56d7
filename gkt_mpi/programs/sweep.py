"""Runs every combination of a grid: `gkt-mpi sweep compare`, the same as `python -m gkt_mpi.programs.sweep compare`.

Completed runs are skipped and interrupted ones resumed, so that the same command continues. A failed run does not stop
the others. Ends with the page that compares all runs. See grid.py for the format of a grid.
"""

import argparse
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from gkt_mpi.cores import usable_cores
from gkt_mpi.errors import ConfigError, GktError
from gkt_mpi.launching import find_file, interrupt, num_ranks_for, packaged, split_options, start, what_went_wrong
from gkt_mpi.log.output import never_fail_on_encoding
from gkt_mpi.log.records import read_summary
from gkt_mpi.programs.grid import Cell, Grid, read_grid
from gkt_mpi.programs.slurm_array import submit

_INTERRUPTED = 75  # as errors.Interrupted.exit_status
_LOGS = "logs"  # folder of the runs' output


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="gkt-mpi sweep",
        description="Run every combination of a grid, and compare the results.",
        epilog="exit status: 0 complete, 1 a run failed, 2 an invalid grid, 75 interrupted: start the same command "
        "again. docs/command.md describes grids.",
        allow_abbrev=False,
    )
    parser.add_argument("grid", metavar="GRID", nargs="?", help="a YAML file, or the name of a packaged grid")
    parser.add_argument("--out", type=Path, help="folder of the run folders (default: runs/GRID)")
    parser.add_argument("--seeds", type=int, metavar="N", help="seeds 0 to N-1, instead of the grid's")
    parser.add_argument("--jobs", type=int, metavar="N", default=1, help="runs at a time, with the cores divided")
    parser.add_argument("-np", "-n", type=int, metavar="N", dest="num_ranks", help="ranks of each run")
    parser.add_argument("--mpi", metavar="OPTIONS", default="", help='for mpirun: --mpi "--hostfile hosts"')
    slurm = 'submit a Slurm array job instead; options for sbatch follow =: --slurm="--time=10:00:00"'
    parser.add_argument("--slurm", nargs="?", const="", metavar="OPTIONS", help=slurm)
    parser.add_argument("--list", action="store_true", help="list the runs of the grid, or without a grid the grids")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is not complete, write the comparison, and return the exit status."""
    never_fail_on_encoding()
    options = make_parser().parse_args(arguments)
    if options.list and options.grid is None:
        print("\n".join(packaged("grids")))
        return 0
    try:
        return _sweep(options)
    except GktError as error:
        print(f"gkt_mpi: {error}", file=sys.stderr)
        return error.exit_status


def _sweep(options: argparse.Namespace) -> int:
    for name in ("seeds", "jobs", "num_ranks"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise ConfigError(f"--{name.replace('num_ranks', 'np')} is {value}; expected at least 1")
    if options.grid is None:
        raise ConfigError("which grid? Give a YAML file or a packaged name (--list)")
    grid = read_grid(find_file(options.grid, "grids"), options.seeds)
    out = (options.out or Path("runs") / grid.name).expanduser().resolve()
    to_do = [cell for cell in grid.cells if not cell.is_complete(out)]
    if options.list:
        for cell in grid.cells:
            print(f"{'to do' if cell in to_do else 'complete':<9} {cell.name}")
        return 0
    print(f"{len(grid.cells)} runs, {len(grid.cells) - len(to_do)} of them complete in {out}", flush=True)
    ranks = options.num_ranks or grid.ranks
    if options.slurm is not None and to_do:
        num_ranks = ranks or max(2, *(num_ranks_for(cell.complete_fields()) for cell in to_do))
        print(submit(grid.name, to_do, out, num_ranks, split_options(options.slurm)))
        return 0
    sweep = _Sweep(out, ranks, split_options(options.mpi))
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        failed = sweep.run(to_do, options.jobs)
    except KeyboardInterrupt:
        print("gkt_mpi: interrupted; start the same command again to continue", file=sys.stderr)
        return _INTERRUPTED
    _compare(grid, out)
    for name, why in failed.items():
        print(f"gkt_mpi: {name} failed: {why}; its output is in {out / _LOGS / name}.txt", file=sys.stderr)
    return 1 if failed else 0


@dataclass
class _Sweep:
    """The runs in progress."""

    out: Path
    num_ranks: int | None
    mpi_options: list[str]
    running: "set[subprocess.Popen[str]]" = field(default_factory=set)
    is_stopped: threading.Event = field(default_factory=threading.Event)

    def run(self, cells: list[Cell], jobs: int) -> dict[str, str]:
        """Run the cells, `jobs` at a time, and return the reason of each failure by the run's name.

        On `KeyboardInterrupt` the runs are interrupted, and it is raised again when they have ended.
        """
        (self.out / _LOGS).mkdir(parents=True, exist_ok=True)
        shares = _shares_of_cores(jobs)
        failed, began, width = {}, time.monotonic(), max((len(cell.name) for cell in cells), default=0)
        with ThreadPoolExecutor(jobs, initializer=lambda: _use(shares.get())) as pool:
            try:
                futures = {pool.submit(self._run, cell): cell for cell in cells}
                for done, future in enumerate(as_completed(futures), 1):
                    cell = futures[future]
                    why = future.result()
                    if why is not None:
                        failed[cell.name] = why
                    left_min = (time.monotonic() - began) / done * (len(cells) - done) / 60
                    result = "failed" if why is not None else _result(self.out / cell.name)
                    print(f"{done}/{len(cells)}  {cell.name:<{width}}  {result}  {left_min:.0f} min left", flush=True)
            except BaseException:
                self.is_stopped.set()
                for process in list(self.running):
                    interrupt(process)
                raise
        return failed

    def _run(self, cell: Cell) -> str | None:
        """Run one cell; return why it failed, or None."""
        log = self.out / _LOGS / f"{cell.name}.txt"
        with open(log, "w", encoding="utf-8") as file:
            if self.is_stopped.is_set():
                return "not started"
            ranks = self.num_ranks or num_ranks_for(cell.complete_fields())
            process = start(cell.arguments(self.out), ranks, file, subprocess.STDOUT, self.mpi_options)
            self.running.add(process)
            status = process.wait()
            self.running.discard(process)
        if status == 0:
            return None if cell.is_complete(self.out) else f"ended with status 0 without a summary; see {log}"
        text = log.read_text(encoding="utf-8", errors="replace")
        return f"status {status}: {what_went_wrong(text).splitlines()[-1]}" if text.strip() else f"status {status}"


def _use(cores: set[int]) -> None:
    """Keep this thread, and the processes it starts, on some cores; on macOS they may use all."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def _shares_of_cores(jobs: int) -> "queue.SimpleQueue[set[int]]":
    """Return the cores for each of `jobs` threads; a thread's processes inherit its cores."""
    cores = usable_cores()
    shares: queue.SimpleQueue[set[int]] = queue.SimpleQueue()
    for job in range(jobs):
        shares.put(set(cores[job::jobs]) or {cores[job % len(cores)]})
    return shares


def _result(folder: Path) -> str:
    summary = read_summary(folder)
    return f"test accuracy {summary['final_test_accuracy']:.4f}  {summary['total_s']:.0f} s"


def _compare(grid: Grid, out: Path) -> None:
    """Write the page that compares the completed runs of a grid, and print its path and the table of accuracies."""
    from gkt_mpi.report.page import write_report  # imports matplotlib
    from gkt_mpi.report.terminal import print_accuracies

    folders = [out / cell.name for cell in grid.cells if cell.is_complete(out)]
    if not folders:
        return
    page = write_report(folders)
    if len(folders) > 1:
        print_accuracies(folders)
    print(f"report: {page}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
