"""Shared by all tests: tiny configurations, whole runs in one process, and the project folder."""

import fcntl
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gkt_mpi.config import RunConfig, parse
from gkt_mpi.errors import Interrupted
from gkt_mpi.federation.server import Server
from gkt_mpi.in_threads import run_in_threads as run_ranks
from gkt_mpi.log.records import reproducible
from gkt_mpi.ranks.rank import run_rank
from gkt_mpi.wire.local import run_local

gc.freeze()  # torch's modules are never garbage, as in gkt_mpi/main.py
gc.enable()
ROOT = Path(__file__).parent.parent
# Where real images lie in compact form on the machines of this project; elsewhere the tests that need them skip.
REAL_IMAGES = Path(os.environ.get("GKT_TEST_IMAGES", ROOT.parent / "shared" / "data"))

TINY = {
    "rounds": 2,
    "clients": 4,
    "data.name": "synthetic",
    "data.synthetic.train": 66,
    "data.synthetic.test": 20,
    "data.synthetic.size": 8,
    "client.batch_size": 8,
    "client.lr": 0.003,
    "server.epochs": 1,
    "server.batch_size": 16,
    "server.lr": 0.003,
    "placement.device": "cpu",
    "placement.threads": 1,
    "compute.precision": "float32",
    "server.model": "resnet11",
    "log.report": "never",
}


def arguments(tmp_path: Path, **changes) -> list[str]:
    """Return a tiny run's command line; `changes` use __ for the dot of a field."""
    fields = TINY | {"out": tmp_path / "runs", "data.dir": tmp_path / "data"}
    fields |= {name.replace("__", "."): value for name, value in changes.items()}
    return [f"--{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in fields.items()]


def run_in_threads(config: RunConfig, num_ranks: int) -> list[dict]:
    """Run server and workers as threads of this process and return the lines of metrics.jsonl."""
    assert run_ranks(config, num_ranks, timeout_s=300) == [0] * num_ranks
    return read_metrics(Path(config.out) / config.name)


def stop_after(config: RunConfig, rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run this many rounds of a run on three ranks, and interrupt it."""
    every = Server.rounds

    def some(server, *arguments, **options):
        for round in every(server, *arguments, **options):
            if round == rounds:
                raise Interrupted("for a test")
            yield round

    with monkeypatch.context() as patch:
        patch.setattr(Server, "rounds", some)
        statuses = run_local(3, lambda transport: run_rank(config, transport, (transport.rank, 3, True)))
    assert statuses[0] == Interrupted.exit_status


def read_metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def figures(records: list[dict]) -> list[dict]:
    """Return the records without figures that depend on the clock and the machine."""
    return [reproducible(record) for record in records]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The package's log lines from `info` up."""
    caplog.set_level("INFO", "gkt_mpi")
    return caplog


@pytest.fixture
def tiny(tmp_path):
    """Return a function that returns the configuration of a tiny synthetic run, with any field changed."""

    def make(**changes) -> RunConfig:
        return parse(arguments(tmp_path, **changes))

    return make


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """Return a function that fills a folder once for all of xdist's workers: `made_once(name, fill)` returns the
    folder.
    """
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def make(name: str, fill: Callable[[Path], None]) -> Path:
        with open(root / f"{name}.lock", "a+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
            lock.seek(0)
            if not lock.read():
                fill(root / name)
                lock.write("made")
        return root / name

    return make


@pytest.fixture(scope="session")
def real_images(made_once) -> Path:
    """Return a folder with real images in their official layouts: CIFAR-10, parts of CIFAR-100 and CINIC-10."""
    if not (REAL_IMAGES / "unpack.py").exists():
        pytest.skip("there are no real images beside the project (GKT_TEST_IMAGES)")
    unpack = [sys.executable, REAL_IMAGES / "unpack.py"]
    return made_once(
        "images", lambda folder: subprocess.run([*unpack, folder], check=True, timeout=120, capture_output=True)
    )


@pytest.fixture(autouse=True)
def one_thread():
    """Run every test with one thread, so that sums are in a fixed order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
