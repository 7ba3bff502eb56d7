"""Property tests have no deadline: their first example may import half of torch. Runs that several files test."""

from pathlib import Path

import hypothesis
import pytest

from gkt_mpi.algorithms import ALGORITHMS
from gkt_mpi.config import parse
from tests.conftest import arguments, run_in_threads

hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

LEARNS = {"data.synthetic.train": 120, "data.synthetic.test": 200, "client.model": "resnet4", "checkpoint.best": True}
SHARED = {"client.share": "edge", "client.model": "[resnet4, resnet6]"}


@pytest.fixture(scope="session")
def trained_runs(made_once) -> Path:
    """Return a folder of tiny runs: one of every algorithm, and `shared` with averaged edge models of two kinds."""

    def fill(folder: Path) -> None:
        runs = {name: {"algorithm": name} for name in ALGORITHMS} | {"shared": SHARED}
        for name, fields in runs.items():
            changes = LEARNS | fields | {"name": name, "evaluate.mode": "full"}
            run_in_threads(parse(arguments(folder, **changes)), 3)

    return made_once("trained", fill) / "runs"
