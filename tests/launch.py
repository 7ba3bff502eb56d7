"""Start real processes for the tests, with a time limit, and leave none behind."""

import os
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str


def run(command: list[str], timeout_s: float = 120, cwd: Path = ROOT, env: dict[str, str] | None = None) -> Done:
    """Run a command in a process group of its own and kill the whole group when it ends or takes too long."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMPI_", "PMIX_", "PRTE_"))}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error::UserWarning"} | (env or {})
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        cwd=cwd,
        env=environment,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)  # mpirun ends its ranks, which have process groups of their own
        try:
            process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"no end after {timeout_s} s: {shlex.join(map(str, command))}") from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return Done(process.returncode, out, err)


def mpirun(ranks: int, program: list[str], timeout_s: float = 120, **options) -> Done:
    """Run a Python program (what follows `python`) on so many ranks, through the launch wrapper."""
    venv = str(Path(sys.executable).parent.parent)
    command = ["sh", str(ROOT / "launch/mpirun.sh"), "-np", str(ranks), sys.executable, *map(str, program)]
    return run(command, timeout_s, env={"VENV": venv} | options.pop("env", {}), **options)
