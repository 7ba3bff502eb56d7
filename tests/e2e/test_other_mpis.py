"""Whole runs with MPICH and Intel MPI, each from its wheel: results, exit statuses, deaths, signals, resuming.

The package index, or pip's cache, provides MPI and mpi4py; everything else is that of the environment of the tests.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import arguments
from tests.e2e.planted import left_behind, plant, results, undisturbed
from tests.launch import make_environment, mpirun

pytestmark = [pytest.mark.grid, pytest.mark.slow]
ROUNDS = 3


@pytest.fixture(scope="module", params=["mpich", "impi-rt"])
def other(request, made_once):
    """Return the Python of an environment with another MPI; skip where it cannot be installed."""

    wheel = request.param

    def fill(folder: Path) -> None:
        make_environment(folder)
        install = [folder / "bin/python", "-m", "pip", "install", "-q", wheel, "mpi4py"]
        subprocess.run(install, check=True, capture_output=True, timeout=240)

    try:
        return str(made_once(wheel, fill) / "bin/python")
    except subprocess.SubprocessError as error:
        pytest.skip(f"the wheel {wheel} cannot be installed: {error}")


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Return the results of the undisturbed run."""
    return undisturbed(tmp_path_factory.mktemp("undisturbed"), rounds=ROUNDS)


def test_a_killed_worker_ends_the_job_with_status_1_and_advice_and_the_run_resumes(expected, other, tmp_path):
    """Neither has fault tolerance; on two ranks instead of three, the figures are those of the undisturbed run."""
    done = plant(3, ["2,worker while training,8,kill"], tmp_path, python=other, rounds=ROUNDS)
    assert done.status == 1, done
    assert done.err == "gkt_mpi: a rank was killed; start the same command again to resume\n"
    assert "BAD TERMINATION" in done.out
    assert not left_behind(tmp_path)
    done = plant(2, [], tmp_path, python=other, rounds=ROUNDS)
    assert (done.status, done.err) == (0, ""), done
    assert results(tmp_path) == expected


@pytest.mark.parametrize("name", ["term", "int"])
def test_a_signal_to_the_launcher_saves_the_run_with_status_75(name, expected, other, tmp_path):
    """The signal comes in the second round, whose predecessor has been saved."""
    done = plant(3, [f"0,server while training,8,{name}-launcher"], tmp_path, python=other, rounds=ROUNDS)
    assert (done.status, done.err) == (75, ""), done
    assert "interrupted by SIGUSR1 after 1 of 3 rounds; start the same command again to resume" in done.out
    assert not left_behind(tmp_path)
    done = plant(3, [], tmp_path, python=other, rounds=ROUNDS)
    assert (done.status, done.err) == (0, ""), done
    assert "resumed after round 1 of 3" in done.out
    assert results(tmp_path) == expected


def test_a_failure_of_a_worker_ends_the_job_with_status_1(other, tmp_path):
    done = plant(3, ["2,worker while training,3,fail"], tmp_path, python=other, rounds=ROUNDS)
    assert done.status == 1, done
    assert "[rank 2]" in done.err and "planted in the worker while training" in done.err
    assert not left_behind(tmp_path)


def test_a_worker_that_hangs_is_given_up(expected, other, tmp_path):
    done = plant(3, ["2,worker while training,8,stop"], tmp_path, python=other, rounds=ROUNDS, faults__timeout_s=3)
    assert done.status == 0, done
    assert "rank 2 has not answered for 3 s" in done.out
    assert results(tmp_path) == expected
    assert not left_behind(tmp_path)


def test_a_check_names_the_library_and_what_it_lacks(other, tmp_path):
    done = mpirun(2, ["-m", "gkt_mpi.main", "--check", *arguments(tmp_path)], 120, python=other)
    assert (done.status, done.out.splitlines()[-1]) == (0, "ready"), done
    lines = {line[:22].strip(): line[22:].strip() for line in done.out.splitlines()}
    assert re.fullmatch(r"(MPICH|Intel\(R\) MPI Library) [\d.]+", lines["MPI"]), lines
    assert lines["survives lost workers"] == "no"


def test_open_mpi_and_another_are_not_mixed(other, tmp_path):
    """The launcher of one and the library of the other, either way."""
    program = ["-m", "gkt_mpi.main", *arguments(tmp_path)]
    ours = Path(sys.executable).parent
    done = mpirun(3, program, 90, python=other, env={"MPIRUN": str(ours / "mpirun")})
    assert done.status == 2, done
    assert re.fullmatch(r"gkt_mpi: mpirun is Open MPI's, but mpi4py loads (MPICH|Intel MPI): .*\n", done.err), done.err
    done = mpirun(3, program, 90, env={"MPIRUN": str(Path(other).parent / "mpiexec.hydra")})
    assert done.status == 2, done
    assert "gkt_mpi: mpirun started 3 processes, but each sees itself alone" in done.err, done.err
    assert not left_behind(tmp_path)
