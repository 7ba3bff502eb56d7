"""Start tiny runs with injected faults (plant.py), compare their results, and check that no process is left."""

import contextlib
import io
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from gkt_mpi.config import parse
from tests.conftest import arguments, read_metrics, run_in_threads
from tests.launch import Done, mpirun

RESULTS = ("round", "test_accuracy", "client_test_accuracy", "server_train_loss", "client_train_loss")


def plant(
    ranks: int,
    faults: list[str],
    path: Path,
    mpi_options: Sequence[str] = (),
    begin: Sequence[str] = (),
    python: str = sys.executable,
    **changes,
) -> Done:
    """Run gkt_mpi.main on so many ranks with these faults and changes of the tiny configuration, in a folder."""
    pids = path / "pids"
    pids.mkdir(exist_ok=True)
    program = ["tests/e2e/plant.py", *faults, "--", *arguments(path, **changes)]
    note = (pids / "launcher").write_text
    env = {"PLANT_PIDS": str(pids)}
    return mpirun(ranks, program, 120, mpi_options, begin, python, env=env, on_start=lambda pid: note(str(pid)))


def undisturbed(path: Path, ranks: int = 3, **changes) -> list[dict]:
    """Return the results of the undisturbed tiny run: without MPI, with its ranks as threads of this process."""
    folder = path / "undisturbed"
    run_in_threads(parse(arguments(folder, **changes)), ranks)
    return results(folder)


def resumed(path: Path, ranks: int = 2, **changes) -> str:
    """Restart a run of a folder with the settings of `undisturbed`, expect completion, and return its results."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        run_in_threads(parse(arguments(path, **changes)), ranks)
    return said.getvalue()


def struck(path: Path) -> list[str]:
    """Return the injected faults that have happened in the runs of a folder, in order."""
    return [what for what, _ in moments(path, "struck")]


def moments(path: Path, name: str) -> list[tuple[str, float]]:
    """Return the faults that "struck" in the runs of a folder, or those the server "noticed", each with its time."""
    file = path / "pids" / name
    lines = file.read_text().splitlines() if file.exists() else []
    return [(what, float(when)) for what, when in (line.split("\t") for line in lines)]


def results(path: Path, name: str = "run") -> list[dict]:
    """Return a run's results, round by round: every figure that faults may not change."""
    return [{key: record.get(key) for key in RESULTS} for record in read_metrics(path / "runs" / name)]


def left_behind(folder: Path | str) -> list[str]:
    """Return the command lines of all processes that mention this folder, after reaping ended ones."""
    deadline = time.monotonic() + 10
    while (found := processes_with(folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return list(found.values())


def processes_with(folder: Path | str) -> dict[int, str]:
    """Return number and command line of each process whose command line mentions this folder."""
    found = {}
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = Path(f"/proc/{process}/cmdline").read_text()
        except OSError:
            continue
        if str(folder) in command:
            found[int(process)] = command
    return found
