"""docs/metrics.md explains every figure: the keys and columns of real runs are listed there."""

import json
from pathlib import Path

import pytest

from gkt_mpi.log.csv_log import UploadRecord
from tests.conftest import ROOT, run_in_threads

PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm": "fedgkt"},
        {"client__share": "stem"},
        {"algorithm": "fedgkt_async"},
        {"algorithm": "fedgkt_async", "clock": "real"},
        {"algorithm": "fedavg"},
        {"algorithm": "standalone"},
    ],
    ids=lambda changes: "-".join(changes.values()),
)
def test_every_key_is_explained(tiny, changes):
    config = tiny(**changes)
    records = run_in_threads(config, 3)
    summary = json.loads((Path(config.out) / config.name / "summary.json").read_text())
    by_round, of_run = PAGE.split("## summary.json")
    assert [key for record in records for key in record if f"`{key}`" not in by_round] == []
    assert [key for key in summary if f"`{key}`" not in of_run] == []


def test_every_column_of_the_uploads_is_explained():
    section = PAGE.split("## uploads.csv")[1].split("\n## ")[0]
    assert [name for name in UploadRecord._fields if f"| `{name}` |" not in section] == []


def test_a_real_clock_has_no_virtual_figures(tiny):
    by_clock = {
        clock: run_in_threads(tiny(algorithm="fedgkt_async", clock=clock, name=clock), 3)
        for clock in ("virtual", "real")
    }
    virtual = {key for record in by_clock["virtual"] for key in record if key.startswith("virtual_")}
    assert virtual == {"virtual_s", "virtual_server_idle", "virtual_client_idle"}
    assert not any(key.startswith("virtual_") for record in by_clock["real"] for key in record)
