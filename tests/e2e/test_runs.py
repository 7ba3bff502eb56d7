"""Whole runs under mpirun: what they leave behind, and that nothing but configuration and seed decides their figures."""

import json
import subprocess
import sys

import pytest
import yaml

from gkt_mpi.config import parse
from tests.conftest import REAL_IMAGES, arguments, figures, read_metrics
from tests.launch import mpirun

MAIN = ["-m", "gkt_mpi.main"]
# (client, server) training loss by round of the tiny hetero run below, on an x86-64 CPU with AVX2.
GOLDEN = [(0.0, 0.0)] * 3
METRICS = {
    *("round", "test_accuracy", "client_test_accuracy", "server_train_loss", "client_train_loss", "upload_bytes"),
    *("download_bytes", "simulation_bytes", "client_s", "wire_s", "server_s", "evaluate_s", "round_s"),
    *("server_peak_mib", "lost_workers"),
}
SUMMARY = {
    *("final_test_accuracy", "best_test_accuracy", "best_round", "rounds", "upload_bytes", "download_bytes"),
    *("simulation_bytes", "total_s", "status"),
}


def complete(ranks, tmp_path, **changes):
    done = mpirun(ranks, [*MAIN, *arguments(tmp_path, **changes)])
    assert done.status == 0, done.out + done.err
    assert done.err == ""
    return done


def test_a_run_leaves_its_folder_with_the_promised_names(tmp_path):
    done = complete(3, tmp_path, name="a run")
    folder = tmp_path / "runs" / "a run"
    assert {path.name for path in folder.iterdir()} == {
        *("config.yaml", "metrics.jsonl", "summary.json", "partition.npz", "checkpoints", "tensorboard"),
    }
    records = read_metrics(folder)
    assert [record["round"] for record in records] == [0, 1]
    assert all(record.keys() >= METRICS for record in records)
    assert all(not isinstance(value, dict | list) for record in records for value in record.values())
    summary = json.loads((folder / "summary.json").read_text())
    assert summary.keys() >= SUMMARY
    assert summary["status"] == "completed"
    config = parse(["--config", str(folder / "config.yaml")])
    assert yaml.safe_load((folder / "config.yaml").read_text())["clients"] == 4
    assert config.name == "a run"
    assert f"run folder: {folder}" in done.out
    for record in records:
        parts = sum(record[key] for key in ("client_s", "wire_s", "server_s", "evaluate_s", "checkpoint_s"))
        assert parts <= record["round_s"] + 1e-6


def test_2_3_and_5_ranks_give_the_same_figures_to_the_last_bit(tmp_path):
    """4 clients hosted by 1, 2 and 4 workers, one thread a rank; golden figures of this very run stand below."""
    runs = []
    for ranks in (2, 3, 5):
        complete(ranks, tmp_path, name=f"r{ranks}", rounds=3, data__partition="hetero")
        runs.append(figures(read_metrics(tmp_path / "runs" / f"r{ranks}")))
    assert runs[0] == runs[1] == runs[2]
    losses = [(record["client_train_loss"], record["server_train_loss"]) for record in runs[0]]
    for found, golden in zip(losses, GOLDEN, strict=True):
        # Another processor may round differently, and a new deep network makes that grow from round to round.
        assert found == pytest.approx(golden, rel=0.02)


def test_an_interrupted_run_goes_on_to_the_same_figures_on_another_number_of_ranks(tmp_path):
    complete(3, tmp_path, name="whole", rounds=3)
    complete(3, tmp_path, name="cut", rounds=1)
    done = complete(5, tmp_path, name="cut", rounds=3)
    assert "resumed after round 1 of 3" in done.out
    whole, cut = (figures(read_metrics(tmp_path / "runs" / name)) for name in ("whole", "cut"))
    assert whole == cut


def test_twenty_clients_on_twenty_workers_of_this_machine(tmp_path):
    complete(21, tmp_path, rounds=1, clients=20, data__synthetic__train=220)
    assert len(read_metrics(tmp_path / "runs" / "run")) == 1


def test_a_folder_with_spaces_is_no_surprise(tmp_path):
    place = tmp_path / "a folder with spaces"
    complete(2, place, rounds=1)
    assert (place / "runs" / "run" / "summary.json").exists()


def test_real_cifar10_images_train_both_sides(tmp_path):
    """A few hundred real images: both accuracies end well above chance."""
    if not (REAL_IMAGES / "unpack.py").exists():
        pytest.skip("there are no real images beside the project (GKT_TEST_IMAGES)")
    data = tmp_path / "data"
    subprocess.run([sys.executable, REAL_IMAGES / "unpack.py", data, "cifar10"], check=True, timeout=120)
    changes = {"client__batch_size": 32, "server__batch_size": 32, "client__epochs": 3, "server__epochs": 2}
    complete(3, tmp_path, data__name="cifar10", data__limit=400, data__test_limit=200, rounds=4, **changes)
    records = read_metrics(tmp_path / "runs" / "run")
    assert records[-1]["server_train_loss"] < 0.9 * records[0]["server_train_loss"]
    assert records[-1]["test_accuracy"] > 0.18
    assert records[-1]["client_test_accuracy"] > 0.15
