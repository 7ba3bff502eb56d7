"""make compare: runs what is missing, and ends with the table and the page."""

import sys
from pathlib import Path

import pytest

from tests.conftest import read_metrics
from tests.launch import run
from tests.made_runs import make_run

VENV = str(Path(sys.executable).parent.parent)
ALGORITHMS = ("fedgkt", "fedavg", "split_learning", "centralized", "standalone")


@pytest.mark.grid
def test_an_interrupted_comparison_continues_and_ends_with_its_page(tmp_path):
    out = tmp_path / "o u t"
    out.mkdir()
    names = [(a, p) for a in ALGORITHMS for p in ("homo", "hetero") if (a, p) != ("centralized", "hetero")]
    for algorithm, partition in names:
        status = "interrupted" if (algorithm, partition) == ("standalone", "homo") else "completed"
        changes = {"data__name": "digits", "data__partition": partition}
        make_run(out / "compare" / f"{algorithm}-{partition}-0", algorithm, status=status, **changes)
    done = run(["make", "compare", f"OUT={out}", f"VENV={VENV}", "ARGS=--seeds 1"])
    assert done.status == 0, done.out + done.err
    assert "9 runs, 8 of them complete" in done.out
    assert "1/1  standalone-homo-0" in done.out
    assert len(read_metrics(out / "compare" / "standalone-homo-0")) == 10
    table = done.out[done.out.index("final test accuracy") :]
    for name in ("FedGKT", "FedAvg", "split learning", "centralized", "edge alone"):
        assert name in table
    page = out / "compare" / "comparison" / "report.html"
    assert f"report: {page}" in done.out and page.exists()
    assert (page.parent / "tables" / "accuracy.tex").exists()
