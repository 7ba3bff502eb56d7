"""Start real processes for the tests, with a time limit, and leave none running."""

import contextlib
import fcntl
import os
import pty
import select
import shlex
import signal
import struct
import subprocess
import sys
import sysconfig
import termios
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str


def run(
    command: list[str],
    timeout_s: float = 300,
    cwd: Path = ROOT,
    env: dict[str, str] | None = None,
    on_start: Callable[[int], object] = lambda pid: None,
) -> Done:
    """Run a command in a process group of its own and end the whole group if it takes too long.

    `on_start` is told the number of its process.
    """
    environment = _environment() | (env or {})
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        cwd=cwd,
        env=environment,
        start_new_session=True,
        preexec_fn=_heed_ctrl_c,
    )
    on_start(process.pid)
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        # The launch wrapper passes a warning on, and at the second signal has mpirun end all ranks by force.
        for _ in range(2):
            with contextlib.suppress(subprocess.TimeoutExpired):
                os.killpg(process.pid, signal.SIGTERM)
                process.communicate(timeout=10)
                break
        raise AssertionError(f"no end after {timeout_s} s: {shlex.join(map(str, command))}") from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return Done(process.returncode, out, err)


def mpirun(
    ranks: int,
    program: list,
    timeout_s: float = 300,
    mpi_options: Sequence[str] = (),
    begin: Sequence[str] = (),
    python: str = sys.executable,
    **options,
) -> Done:
    """Run a Python program (the words after `python`) on this many ranks, through the launch wrapper.

    `begin` is an optional prefix of the command, such as one that starts it on another host; `python` may be that of
    another environment, whose MPI is then used.
    """
    venv = str(Path(python).parent.parent)
    launch = ["sh", str(ROOT / "launch/mpirun.sh"), "-np", str(ranks), *mpi_options]
    command = [*launch, python, *map(str, program)]
    command = [*begin, shlex.join(command)] if begin else command
    return run(command, timeout_s, env={"VENV": venv} | options.pop("env", {}), **options)


def make_environment(folder: Path) -> None:
    """Create an environment in which the packages of this one can be imported, but neither gkt_mpi nor its programs.

    What is then installed into it takes precedence.
    """
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, capture_output=True, timeout=120)
    packages = sysconfig.get_path("purelib")
    (folder / Path(packages).relative_to(sys.prefix) / "inherited.pth").write_text(packages)


def run_in_terminal(command: list[str], timeout_s: float = 300) -> tuple[int, str]:
    """Run a command in a pseudo-terminal of 110 columns; return its status and everything it wrote there."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 110, 0, 0))
    environment = _environment() | {"VENV": str(Path(sys.executable).parent.parent), "TERM": "xterm-256color"}
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, env=environment, start_new_session=True
    )
    os.close(theirs)
    shown, deadline = b"", time.monotonic() + timeout_s
    try:
        while time.monotonic() < deadline:
            if select.select([ours], [], [], 1)[0]:
                try:
                    shown += os.read(ours, 65536)
                except OSError:  # the other end is closed
                    return process.wait(10), shown.decode(errors="replace")
        raise AssertionError(f"no end after {timeout_s} s: {shlex.join(command)}")
    finally:
        os.close(ours)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # mpirun then gets SIGTERM
            process.wait(10)


def _heed_ctrl_c() -> None:
    """Restore SIGINT's default, as in a terminal: shells make background jobs, possibly these tests, ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _environment() -> dict[str, str]:
    """Return this process's environment without variables of an mpirun or make around it."""
    inherited = ("OMPI_", "PMIX_", "PRTE_", "MAKE", "MFLAGS", "ARGS")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(inherited)}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error::UserWarning"}
