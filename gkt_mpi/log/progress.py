"""Live progress on rank 0: one updating line on a terminal, plain lines elsewhere."""

import logging
import os
import sys
import time
from typing import TextIO

import numpy as np
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

from gkt_mpi.facts import facts_of
from gkt_mpi.log.output import ERRORS
from gkt_mpi.plain import Json

logger = logging.getLogger(__name__)

_PLAIN_WIDTH = 100  # columns, where there is no terminal or its width is unknown
CLIENTS_TRAIN, SERVER_TRAINS = "clients train and upload", "server trains"  # phases of a round
_LONG_S = 60.0  # a run that will take longer reports this in its first round
_KNOWN_AFTER = 0.02  # of the last phase of the first round: then its pace is known
_SHORT = 5  # characters of a class's name in a table
_PLAIN_EVERY_S = 30.0  # interval of progress lines in a phase that lasts longer


def make_console() -> Console:
    """Return a console on standard output, or on mpirun's terminal if the job runs on one.

    mpirun gives every rank a pseudo-terminal even when its own output goes to a file, and turns the carriage returns of
    an updating line into line feeds. On its node it is the rank's parent: its output shows whether there is a terminal,
    and can be written to directly.
    """
    under_mpirun = "OMPI_COMM_WORLD_RANK" in os.environ or "PMIX_RANK" in os.environ
    try:
        if under_mpirun:
            descriptor = os.open(f"/proc/{os.getppid()}/fd/1", os.O_WRONLY | os.O_NOCTTY | os.O_APPEND)
        else:
            descriptor = os.dup(sys.stdout.fileno())
    except (OSError, ValueError):
        return _console(None, _PLAIN_WIDTH)
    if not os.isatty(descriptor):
        os.close(descriptor)
        return _console(None, _PLAIN_WIDTH)
    terminal = os.fdopen(descriptor, "w", buffering=1, errors=ERRORS)
    return _console(terminal, os.get_terminal_size(descriptor).columns or _PLAIN_WIDTH)


def _console(terminal: TextIO | None, width: int) -> Console:
    """Return a console on a terminal, or on standard output; brackets in a path are not interpreted as markup."""
    return Console(file=terminal, force_terminal=terminal is not None, width=width, markup=False, emoji=False)


class Progress:
    """Shows round, phase, accuracy, bytes and remaining time."""

    def __init__(self, num_rounds: int, console: Console, last_phase: str = SERVER_TRAINS) -> None:
        """Initialise for a run of `num_rounds` rounds; `last_phase` is the last phase of a round's training."""
        self.console = console
        self._num_rounds, self._last_phase = num_rounds, last_phase
        self._round = 0
        self._phase, self._phase_done, self._phase_total = "", 0, 0
        self._round_s: list[float] = []
        self._first_round_s = 0.0  # as estimated in the first round
        self._round_began = self._last_line = time.monotonic()
        self._accuracy, self._uploaded = "", 0
        self._bar: Bar | None = None
        if console.is_terminal:
            self._bar = Bar(
                TextColumn("{task.fields[round]}"),
                TextColumn("[cyan]{task.description:<24}"),
                BarColumn(bar_width=None),
                TaskProgressColumn(),
                TextColumn("{task.fields[status]}"),
                console=console,
                transient=True,
                refresh_per_second=4,
            )
            self._task = self._bar.add_task("starting", total=None, round="", status="")

    def begin_round(self, round: int) -> None:
        """Begin a round (numbers from 0; shown from 1)."""
        self._round, self._round_began = round, time.monotonic()
        if self._bar is not None:
            self._bar.start()
            self.console.show_cursor()  # a killed rank could not restore the cursor

    def begin_phase(self, name: str, total: int) -> None:
        """Begin a phase of `total` samples."""
        self._phase, self._phase_done, self._phase_total = name, 0, total
        self._phase_began = time.monotonic()
        self._show()

    def advance(self, samples: int) -> None:
        """Advance the phase by this many samples."""
        self._phase_done += samples
        self._estimate()
        if self._bar is not None:
            self._bar.update(self._task, completed=self._phase_done, status=self._status())
        elif time.monotonic() - self._last_line > _PLAIN_EVERY_S:
            percent = 100 * self._phase_done // max(1, self._phase_total)
            self._line(f"{self._round_name()}  {self._phase} {percent} %  {self._status()}")

    def end_round(self, record: Json) -> None:
        """Show a finished round; `record` is its line in metrics.jsonl."""
        self._round_s.append(record["round_s"])
        self._uploaded += record["upload_bytes"]
        accuracy = "not evaluated"
        if "test_accuracy" in record:
            self._accuracy = f"accuracy {record['test_accuracy']:.4f}"
            accuracy = self._accuracy
            if "client_test_accuracy" in record and "server_train_loss" in record:  # otherwise it is the same
                accuracy += f"  edge {record['client_test_accuracy']:.4f}"
        losses = [record[key] for key in ("server_train_loss", "client_train_loss") if key in record]
        loss = f"loss {losses[0]:.4f}" if losses else "untrained"
        moved = f"up {decimal(record['upload_bytes'])} down {decimal(record['download_bytes'])}"
        name = self._round_name()
        self._round, self._round_began = self._round + 1, time.monotonic()
        self._line(f"{name}  {accuracy}  {loss}  {moved}  {record['round_s']:.1f} s  {self._time_left()}")

    def end_run(self) -> None:
        """Clear the updating line."""
        if self._bar is not None:
            self._bar.stop()

    def _line(self, text: str) -> None:
        logger.info(text)
        self._last_line = time.monotonic()

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.update(
                self._task,
                description=self._phase,
                completed=0,
                total=self._phase_total,
                round=self._round_name(),
                status=self._status(),
                refresh=True,  # on a terminal every phase is shown, however short
            )

    def _round_name(self) -> str:
        width = len(str(self._num_rounds))
        return f"round {min(self._round + 1, self._num_rounds):>{width}}/{self._num_rounds}"

    def _status(self) -> str:
        uploaded = f"up {decimal(self._uploaded)}" if self._uploaded else ""
        return "  ".join(filter(None, (self._accuracy, uploaded, self._time_left())))

    def _time_left(self) -> str:
        """Return the mean round time times the remaining rounds, less the current round's; "" before it is known."""
        round_s = sum(self._round_s) / len(self._round_s) if self._round_s else self._first_round_s
        if not round_s:
            return ""
        return f"{_clock(round_s * (self._num_rounds - self._round) - (time.monotonic() - self._round_began))} left"

    def _estimate(self) -> None:
        """In the first round of a run, estimate the duration of a round from the pace of its last phase.

        Evaluation is not included. Reports once how long all rounds will take, if that is long.
        """
        is_known = self._phase == self._last_phase and self._phase_done >= _KNOWN_AFTER * self._phase_total > 0
        if self._round_s or self._first_round_s or not is_known:
            return
        now = time.monotonic()
        phase_s = (now - self._phase_began) * self._phase_total / self._phase_done
        self._first_round_s = self._phase_began - self._round_began + phase_s
        total_s = self._first_round_s * (self._num_rounds - self._round)
        if total_s > _LONG_S:
            logger.info(f"at this pace all rounds will take about {_clock(total_s)}")


def _clock(seconds: float) -> str:
    """Return a duration as h:mm:ss or m:ss."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def summary_table(summary: Json, name: str, algorithm: str) -> Table:
    """Return the summary table shown at the end of a run."""
    table = Table(title=f"{name}: {summary['status']} after {summary['rounds']} rounds", show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right")
    final = {"final test accuracy": summary["final_test_accuracy"]}
    edge = summary.get("final_client_test_accuracy")
    if edge is not None and not facts_of(algorithm).has_edges_alone:  # there are two kinds of models
        final = {f"server model, {name}": value for name, value in final.items()}
        final["edge models alone, final test accuracy"] = edge
    if "final_global_test_accuracy" in summary:
        final["one model for everybody, final test accuracy"] = summary["final_global_test_accuracy"]
    for label, value in (
        *((name, f"{value:.4f}") for name, value in final.items()),
        (
            "best test accuracy between rounds",
            f"{summary['best_test_accuracy']:.4f} (round {summary['best_round']})",
        ),
        ("uploaded", decimal(summary["upload_bytes"])),
        ("downloaded", decimal(summary["download_bytes"])),
        ("simulation's own bytes", decimal(summary["simulation_bytes"])),
        ("time", _clock(summary["total_s"])),
    ):
        table.add_row(label, value)
    return table


def partition_table(counts: np.ndarray, classes: list[str]) -> Table | None:
    """Return the partition as a table of clients by classes, or None if it would not fit a screen."""
    if len(counts) > 32 or len(classes) > 20:
        return None
    table = Table(title="training images of each client by class", padding=(0, 1), show_lines=False)
    table.add_column("client", justify="right")
    for name in _short(classes):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("all", justify="right")
    for client, row in enumerate(counts):
        table.add_row(str(client), *(str(n) if n else "." for n in row), str(sum(row)))
    return table


def _short(names: list[str]) -> list[str]:
    """Return distinct short forms of names: their first characters, or last ones, or numbers from 0."""
    for shown in ([name[:_SHORT] for name in names], [name[-_SHORT:] for name in names]):
        if len(set(shown)) == len(names):
            return shown
    return list(map(str, range(len(names))))
