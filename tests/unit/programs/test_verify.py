"""Repeating a run and comparing its figures."""

import json
import math

import pytest

from gkt_mpi.config import parse
from gkt_mpi.errors import ConfigError
from gkt_mpi.programs.verify import compare, main, verify
from tests.conftest import arguments, read_metrics, run_in_threads
from tests.made_runs import make_run


def five_rounds(tmp_path):
    """Return the folder of a run of five rounds on three ranks, with a schedule over all of them."""
    run_in_threads(parse(arguments(tmp_path, rounds=5, server__schedule="cosine")), 3)
    return tmp_path / "runs/run"


def test_the_only_figure_that_was_changed_is_the_only_one_that_differs(tmp_path, capsys):
    """By the last bit; all others of the first round are repeated by processes instead of threads."""
    folder = five_rounds(tmp_path)
    records = read_metrics(folder)
    true = records[0]["server_train_loss"]
    records[0]["server_train_loss"] = changed = math.nextafter(true, 10)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert main([str(folder), "--rounds", "1"]) == 1
    said = capsys.readouterr().out
    assert f"round 1, server_train_loss: {changed} in the run, {true} repeated" in said
    assert "on 2 ranks (the run: 3)" in said
    certificate = json.loads((folder / "certificate.json").read_text())
    (difference,) = certificate["differences"]
    assert difference == {"round": 1, "figure": "server_train_loss", "run": changed, "repeated": true}
    assert certificate["software"] == certificate["software_of_run"] and "torch" in certificate["software"]


@pytest.mark.grid
@pytest.mark.parametrize("algorithm", ["fedgkt", "fedgkt_async", "fedavg", "split_learning", "standalone"])
def test_an_undisturbed_run_is_identical(tmp_path, algorithm):
    run_in_threads(parse(arguments(tmp_path, rounds=3, algorithm=algorithm)), 3)
    certificate = verify(tmp_path / "runs/run", 4, 2)
    assert (certificate.verdict, certificate.rounds, certificate.num_ranks) == ("identical", 2, 4)
    assert certificate.figures > 20


def test_figures_that_are_missing_or_nan_and_the_counts_of_faults_are_compared_as_they_should():
    run = [{"round": 0, "loss": math.nan, "upload_bytes": 2, "lost_workers": 1}, {"round": 1, "loss": 1.0}]
    same = [{"round": 0, "loss": math.nan, "upload_bytes": 1, "lost_workers": 0}, {"round": 1, "loss": 1.0}]
    assert compare(run, same) == []
    other = [same[0], {"round": 1, "drift": 2.0}]
    assert [str(each) for each in compare(run, other)] == [
        "round 2, loss: 1.0 in the run, None repeated",
        "round 2, drift: None in the run, 2.0 repeated",
    ]


def test_a_run_by_the_real_clock_cannot_be_repeated(tmp_path):
    folder = make_run(tmp_path / "async", "fedgkt_async", clock="real")
    with pytest.raises(ConfigError, match="clock: real"):
        verify(folder, None, 2)
