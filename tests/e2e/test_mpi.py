"""The message layer's own suite, tests/mpi, under mpirun at 1, 2, 3 and 5 ranks."""

import json
import re

import pytest

from tests.conftest import arguments
from tests.launch import mpirun

PYTEST = "-m pytest -q -p no:cacheprovider -p no:xdist -p no:hypothesispytest".split()


@pytest.mark.parametrize(
    ("ranks", "attacks"), [(1, 0), (2, 1000), (3, 1000), (5, 1000), pytest.param(3, 10_000, marks=pytest.mark.grid)]
)
def test_the_transport_suite_passes_on(ranks, attacks):
    done = mpirun(ranks, [*PYTEST, "tests/mpi"], env={"GKT_TEST_ATTACKS": str(attacks)})
    assert done.status == 0, done.out + done.err
    assert int(re.search(r"(\d+) passed", done.out)[1]) >= 14  # the others need a GPU or a peer


def test_a_failing_rank_ends_the_suite_instead_of_hanging_it(tmp_path):
    """A check of the suite itself: an assertion on one rank must not leave the others waiting."""
    (tmp_path / "conftest.py").write_text("from tests.mpi.conftest import *\n")
    (tmp_path / "test_bad.py").write_text(
        "from mpi4py import MPI\n"
        "def test_bad():\n"
        "    assert MPI.COMM_WORLD.rank != 1, 'rank 1 fails'\n"
        "    MPI.COMM_WORLD.recv(source=1)\n"
    )
    done = mpirun(3, [*PYTEST, tmp_path], timeout_s=60)
    assert done.status != 0
    assert "rank 1 fails" in done.err


def test_the_ledger_counts_every_byte_that_went_through_mpi(tmp_path):
    """A whole run, its ledgers compared with the traffic between each pair of ranks in Open MPI's own monitoring.

    Monitoring of kind 2 separates MPI's own traffic, that of collectives. It is not available with fault tolerance.
    """
    monitoring = ["enable 2", "enable_output 3", f"filename {tmp_path / 'seen'}"]
    options = ["--with-ft", "no"] + [
        word for option in monitoring for word in f"--mca pml_monitoring_{option}".split(" ", 2)
    ]
    done = mpirun(3, ["tests/e2e/ledger.py", tmp_path, *arguments(tmp_path)], mpi_options=options)
    assert done.status == 0, done.err
    ledgers = [json.loads((tmp_path / f"ledger.{rank}.json").read_text()) for rank in range(3)]
    seen = {}
    for rank in range(3):
        text = (tmp_path / f"seen.{rank}.prof").read_text()
        for source, target, size in re.findall(r"^E\t(\d)\t(\d)\t(\d+) bytes", text, flags=re.MULTILINE):
            seen[int(source), int(target)] = int(size)
    assert seen.keys() == {(0, 1), (0, 2), (1, 0), (2, 0)}  # workers do not communicate with each other
    assert seen[0, 1] + seen[0, 2] == sum(ledgers[0]["sent"].values())
    for worker in (1, 2):
        assert seen[worker, 0] == sum(ledgers[worker]["sent"].values())
        assert seen[0, worker] == sum(ledgers[worker]["received"].values())
    for column in ("algorithm", "simulation"):
        assert ledgers[0]["received"][column] == sum(ledgers[worker]["sent"][column] for worker in (1, 2)) > 0
        assert ledgers[0]["sent"][column] == sum(ledgers[worker]["received"][column] for worker in (1, 2)) > 0


def test_a_message_over_a_network_arrives_while_its_sender_is_busy(tmp_path):
    over_tcp = ["--mca", "pml", "ob1", "--mca", "btl", "tcp,self"]
    done = mpirun(2, ["tests/e2e/away.py", tmp_path / "arrived"], timeout_s=90, mpi_options=over_tcp)
    assert done.status == 0, done.err
