"""The message layer's own suite, tests/mpi, under mpirun at 1, 2, 3 and 5 ranks."""

import pytest

from tests.launch import mpirun


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_the_transport_suite_passes_on(ranks):
    done = mpirun(ranks, ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/mpi"])
    assert done.status == 0, done.out + done.err
    assert f"{10 if ranks == 1 else 11} passed" in done.out


def test_a_failing_rank_ends_the_suite_instead_of_hanging_it(tmp_path):
    """The suite's own safety: an assertion on one rank must not leave the others waiting."""
    (tmp_path / "conftest.py").write_text("from tests.mpi.conftest import *\n")
    (tmp_path / "test_bad.py").write_text(
        "from mpi4py import MPI\n"
        "def test_bad():\n"
        "    assert MPI.COMM_WORLD.rank != 1, 'rank 1 fails'\n"
        "    MPI.COMM_WORLD.recv(source=1)\n"
    )
    done = mpirun(3, ["-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path], timeout_s=60)
    assert done.status != 0
    assert "rank 1 fails" in done.err
