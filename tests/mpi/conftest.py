"""Under mpirun only rank 0 shows pytest's output, unless another rank fails."""

import io
import sys

import pytest
from mpi4py import MPI

_RANK = MPI.COMM_WORLD.rank


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    if _RANK > 0:
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        reporter._tw._file = io.StringIO()


def pytest_runtest_logreport(report):
    """A failing rank tells what failed and ends the job: the others would wait for it for ever."""
    if report.failed:
        print(f"[rank {_RANK}] {report.nodeid}\n{report.longreprtext}", file=sys.__stderr__, flush=True)
        MPI.COMM_WORLD.Abort(1)
