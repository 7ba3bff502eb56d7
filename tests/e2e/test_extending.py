"""The samples of docs/extending.md, as one file of a user's, train together."""

import re
import sys

import pytest

from gkt_mpi import lookup
from gkt_mpi.config import parse
from gkt_mpi.trained import load
from tests.conftest import ROOT, run_in_threads

SMALL = ["--placement.device=cpu", "--placement.threads=1", "--log.report=never", "--compute.precision=float32"]


def blocks(language):
    text = (ROOT / "docs/extending.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The folder with mine.py and mine.yaml; the module is forgotten afterwards."""
    (tmp_path / "mine.py").write_text("\n".join(blocks("python")))
    (tmp_path / "mine.yaml").write_text("".join(blocks("yaml")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(lookup, "searched", [])
    yield tmp_path
    sys.modules.pop("mine", None)
    lookup.imported.pop("mine", None)


def test_the_samples_are_one_run_that_learns(mine):
    metrics = run_in_threads(parse(["--config", "mine.yaml", *SMALL]), 3)
    assert metrics[-1]["test_accuracy"] == 1  # two shades of grey, half of the images each
    lines = (mine / "runs/mine/accuracy.txt").read_text().splitlines()
    assert lines == [f"{record['round']} {record['test_accuracy']}" for record in metrics]
    # Two clients upload 20 features of 6x6x6, one byte for each value, with logits, labels and ids (8 to 24 bytes).
    for record in metrics:
        assert 40 * (216 + 8) < record["upload_bytes"] < 40 * (216 + 40)
    layers = load("runs/mine").parts(client=0).stem
    assert next(layers.parameters()).abs().max() < 0.7  # clipped to 0.5 before the last round
