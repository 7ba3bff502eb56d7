"""Faults in a job's first seconds, before MPI has started: real ranks, real signals, real deaths."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, arguments
from tests.e2e.planted import left_behind
from tests.launch import mpirun, run

# A rank that gets this instead of torch exits during its import.
ENDS = {
    "is killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "exits": "import os; os._exit(3)",
    "lacks a library": "raise ImportError('libtorch_cpu.so: cannot open shared object file')",
}
PROGRAM = """
import os, sys
if os.environ["PMIX_RANK"] == sys.argv[1]:
    sys.path.insert(0, sys.argv[2])
from gkt_mpi.main import main
sys.exit(main(sys.argv[3:]))
"""


@pytest.mark.parametrize(
    ("rank", "end"),
    [
        (1, "is killed"),
        pytest.param(0, "is killed", marks=pytest.mark.grid),
        pytest.param(2, "exits", marks=pytest.mark.grid),
        (0, "lacks a library"),
        pytest.param(2, "lacks a library", marks=pytest.mark.grid),
    ],
)
def test_a_rank_that_ends_before_mpi_starts_ends_the_job_and_is_named(rank, end, tmp_path):
    broken = tmp_path / "broken" / "torch"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text(ENDS[end])
    (tmp_path / "program.py").write_text(PROGRAM)
    done = mpirun(3, [tmp_path / "program.py", rank, broken.parent, *arguments(tmp_path)], timeout_s=90)
    assert done.status not in (0, 75), done
    if end == "lacks a library":
        assert f"[rank {rank}] gkt_mpi: libtorch_cpu.so: cannot open shared object file; is the environment" in done.err
    assert f"gkt_mpi: rank {rank} ended before MPI had started" in done.err
    assert done.err.count("before MPI had started") == 1
    assert "Traceback" not in done.err
    assert not (tmp_path / "runs").exists()
    assert not left_behind(tmp_path)


def test_a_rank_that_never_starts_ends_the_job_after_the_time_limit(tmp_path):
    hang = tmp_path / "broken" / "torch"
    hang.mkdir(parents=True)
    (hang / "__init__.py").write_text("import signal; signal.pause()")
    (tmp_path / "program.py").write_text(PROGRAM)
    program = [tmp_path / "program.py", 1, hang.parent, *arguments(tmp_path)]
    # The hanging one does not belong to this job; its launcher receives the signal.
    command = ["sh", str(ROOT / "launch/mpirun.sh"), "-np", "3", sys.executable, *map(str, program)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment(GKT_MPI_START_S="3")
    )
    assert process.stderr is not None
    lines = []
    try:
        for line in process.stderr:  # until two of three ranks have timed out
            lines.append(line)
            if "not all ranks have started" in line:
                break
    finally:
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert "gkt_mpi: after 3 s not all ranks have started" in lines[-1]
    assert process.returncode not in (0, None)
    assert not left_behind(tmp_path)


def environment(**changes):
    return os.environ | {"VENV": str(ROOT / ".venv"), "PYTHONPATH": str(ROOT)} | changes


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.grid)])
@pytest.mark.parametrize("moment", ["ranks are started", "torch is imported"])
def test_a_signal_in_the_first_seconds_is_status_75_and_a_line(number, moment, tmp_path):
    """The signal comes as soon as the launcher has started, or when every rank is importing."""
    (tmp_path / "slow").mkdir()
    # Ranks signal in one file each that they have reached the import of torch, and then wait there.
    (tmp_path / "slow" / "torch").mkdir()
    text = f"import os, signal; open(r'{tmp_path}/here-' + os.environ['PMIX_RANK'], 'w').close(); signal.pause()"
    (tmp_path / "slow" / "torch" / "__init__.py").write_text(text)
    path = [str(ROOT)] if moment == "ranks are started" else [str(tmp_path / "slow"), str(ROOT)]

    def strike(pid):
        until, children = time.monotonic() + 60, Path(f"/proc/{pid}/task/{pid}/children")

        def has_come():
            return children.read_text() if moment == "ranks are started" else len(list(tmp_path.glob("here-*"))) == 3

        while not has_come() and time.monotonic() < until:
            time.sleep(0.01)
        os.kill(pid, number)

    done = mpirun(
        3,
        ["-m", "gkt_mpi.main", *arguments(tmp_path)],
        timeout_s=90,
        env={"PYTHONPATH": ":".join(path)},
        on_start=strike,
    )
    assert done.status == 75, done
    assert done.err.count("start the same command again") == 1, done.err
    assert not (tmp_path / "runs").exists()
    assert not left_behind(tmp_path)


def test_ctrl_c_while_the_help_is_made_is_one_line_and_status_130(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)")
    command = [sys.executable, "-m", "gkt_mpi.main", "--help"]
    done = run(command, timeout_s=60, env={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    assert (done.status, done.err) == (130, "gkt_mpi: interrupted by SIGINT\n")


def test_make_passes_the_status_of_an_early_signal_on(tmp_path):
    """make itself exits with 2 when one of its commands has failed; commands after && are not run."""
    command = f'make -s digits OUT="{tmp_path}" && touch "{tmp_path}/went-on"'
    done = run(["sh", "-c", command], timeout_s=90, on_start=lambda pid: os.killpg(pid, signal.SIGINT))
    assert done.status != 0
    assert not (tmp_path / "went-on").exists()


def test_a_server_killed_after_training_is_not_a_success(tmp_path):
    """During the report mpirun would return 0: the workers have ended normally, and it has no status of the server."""
    kill = "import os, signal, sys; os.kill(os.getpid(), signal.SIGKILL)"
    (tmp_path / "kill").mkdir()
    (tmp_path / "kill" / "jinja2.py").write_text(kill)  # a module that only the report imports
    path = f"{tmp_path / 'kill'}:{ROOT}"
    changes = {"log__report": "auto", "rounds": 1}
    done = mpirun(2, ["-m", "gkt_mpi.main", *arguments(tmp_path, **changes)], timeout_s=90, env={"PYTHONPATH": path})
    assert done.status == 1, done
    assert "the server was killed; start the same command again" in done.err
    assert not left_behind(tmp_path)


def test_a_launcher_that_starts_nothing_is_ended_with_one_line(tmp_path):
    launcher = tmp_path / "mpirun"
    version = '[ "$1" = --version ] && { echo "mpirun (Open MPI) 5.0.11"; exit; }'
    launcher.write_text(f"#!/bin/sh\n{version}\nexec sleep 600\n")
    launcher.chmod(0o755)
    program = ["-m", "gkt_mpi.main", *arguments(tmp_path)]
    done = mpirun(3, program, timeout_s=60, env={"MPIRUN": str(launcher), "GKT_MPI_START_S": "1"})
    assert done.status not in (0, 75), done
    assert done.err.count("has not started the server within 1 s; see --check, or set GKT_MPI_START_S") == 1
    assert not left_behind(tmp_path)
