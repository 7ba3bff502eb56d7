"""Trained networks, read back from run folders, against what the runs themselves recorded."""

import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gkt_mpi.algorithms import ALGORITHMS
from gkt_mpi.data.datasets import ImageFile, file_path, prepare
from gkt_mpi.errors import CheckpointError, ConfigError, DataError
from gkt_mpi.log.csv_log import ClientRecord, read_records_of
from gkt_mpi.trained import load
from tests.conftest import ROOT, read_metrics

PER_CLIENT = ["fedgkt", "fedgkt_async", "standalone", "shared"]  # with a model for each client


def matrix_of(run, client=None, which="last"):
    """Classify the test images with a run's model; count them by true and predicted class, in numpy."""
    file = ImageFile(file_path(run.config.data))
    labels = file.labels("test")
    image = torch.from_numpy(file.images("test", np.arange(len(labels)))).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        logit = run.model(client, which)(image)
    assert logit.dtype == torch.float32 and logit.shape == (len(labels), len(run.classes))
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (labels, logit.argmax(1).numpy()), 1)
    return counts


def recorded_matrix(run):
    (_, *classes), *rows = csv.reader((run.folder / "confusion.csv").read_text().splitlines())
    assert classes == run.classes
    return np.array([list(map(int, row[1:])) for row in rows])


@pytest.mark.parametrize("name", PER_CLIENT)
def test_each_clients_model_classifies_as_it_did_in_its_run(trained_runs, name):
    run = load(trained_runs / name)
    records = [r for r in read_records_of(ClientRecord, run.folder / "clients.csv") if r.is_final]
    matrices = [matrix_of(run, record.client) for record in records]
    assert [m.trace() / m.sum() for m in matrices] == [record.test_accuracy for record in records]
    assert len({record.test_accuracy for record in records}) > 1
    assert (sum(matrices) == recorded_matrix(run)).all()


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name not in PER_CLIENT])
def test_the_network_for_everybody_classifies_as_it_did_in_its_run(trained_runs, name):
    run = load(trained_runs / name)
    found = matrix_of(run)
    assert found.trace() / found.sum() == run.summary["final_test_accuracy"]
    assert (found == recorded_matrix(run)).all()
    assert (found == matrix_of(run, client=3)).all()


def test_the_mean_of_shared_stems_is_the_network_for_everybody(trained_runs):
    run = load(trained_runs / "shared")
    found = matrix_of(run)
    assert found.trace() / found.sum() == run.summary["final_global_test_accuracy"]


def test_the_best_checkpoint_is_that_of_the_best_round(trained_runs):
    run = load(trained_runs / "fedavg")
    accuracies = [record["test_accuracy"] for record in read_metrics(run.folder)]
    found = matrix_of(run, which="best")
    assert found.trace() / found.sum() == max(accuracies)
    assert run.rounds_done("best") == 1 + np.argmax(accuracies)


def test_models_are_independent_of_each_other(trained_runs):
    run = load(trained_runs / "fedgkt")
    first, image = run.model(0), torch.rand(2, 3, 8, 8)
    before = first(image)
    with torch.no_grad():
        for parameter in run.model(1).parameters():
            parameter.zero_()
    assert torch.equal(first(image), before) and torch.equal(run.model(0)(image), before)
    memory = {tensor.untyped_storage().data_ptr() for tensor in first.state_dict().values()}
    assert len(memory) == len(first.state_dict())


def test_neither_mpi_nor_the_data_set_is_needed(trained_runs, tmp_path):
    folder = shutil.copytree(trained_runs / "fedgkt", tmp_path / "run")
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace(str(trained_runs.parent / "data"), "/no/such/folder"))
    program = (
        "import sys; sys.modules['mpi4py'] = None\n"
        "import torch; from gkt_mpi.trained import load\n"
        "run = load(sys.argv[1]); assert run.config.data.dir == '/no/such/folder'\n"
        "print(run.model(0)(torch.zeros(1, 3, 8, 8)).tolist(), run.classes)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, folder], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    run = load(trained_runs / "fedgkt")
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout == f"{run.model(0)(torch.zeros(1, 3, 8, 8)).tolist()} {[str(k) for k in range(10)]}\n"


def without_input(folder):
    """Write a run's newest checkpoint again, as versions did that saved no statistics."""
    path = sorted((folder / "checkpoints").glob("round-*.pt"))[-1]
    saved = torch.load(path, weights_only=True)
    del saved["config"]["input"]
    torch.save(saved, path)


def test_an_older_checkpoint_takes_the_statistics_from_the_image_file(trained_runs, tmp_path):
    folder = shutil.copytree(trained_runs / "fedgkt", tmp_path / "run")
    without_input(folder)
    image = torch.rand(2, 3, 8, 8)
    assert torch.equal(load(folder).model(0)(image), load(trained_runs / "fedgkt").model(0)(image))
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace(str(trained_runs.parent / "data"), "/no/such/folder"))
    with pytest.raises(DataError, match="did not save the images' statistics, and /no/such/folder/.*h5.* is missing"):
        load(folder).model(0)


def test_an_older_checkpoint_refuses_the_statistics_of_other_images(trained_runs, tmp_path):
    folder = shutil.copytree(trained_runs / "fedgkt", tmp_path / "run")
    without_input(folder)
    config = load(folder).config.data
    file = file_path(config)
    prepare(replace(config, dir=str(tmp_path), synthetic=replace(config.synthetic, seed=7)), lambda done, total: None)
    (made,) = tmp_path.glob("*.h5")
    made.rename(tmp_path / file.name)
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace(str(file.parent), str(tmp_path)))
    with pytest.raises(DataError, match=f"{file.name} has other images than those that .* was trained on"):
        load(folder).model(0)


@pytest.mark.parametrize(
    ("name", "client", "which", "message"),
    [
        ("fedgkt", None, "last", "every client of this run has a model of its own; choose a client from 0 to 3"),
        ("standalone", None, "last", "every client of this run has a model of its own; choose a client from 0 to 3"),
        ("fedgkt", 4, "last", "client is 4; .*/fedgkt has clients 0 to 3"),
        ("fedavg", -1, "last", "client is -1; .*/fedavg has clients 0 to 3"),
    ],
)
def test_a_client_or_model_that_does_not_exist_is_refused(trained_runs, name, client, which, message):
    with pytest.raises(ConfigError, match=message):
        load(trained_runs / name).model(client, which)


def test_missing_and_damaged_checkpoints_are_refused_and_left_as_they_are(trained_runs, tmp_path):
    folder = shutil.copytree(trained_runs / "fedavg", tmp_path / "run")
    newest = sorted((folder / "checkpoints").glob("round-*.pt"))[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="round-00002.pt is damaged"):
        load(folder).model()
    assert newest.exists()
    for path in (folder / "checkpoints").iterdir():
        path.unlink()
    with pytest.raises(CheckpointError, match="checkpoints has no checkpoint"):
        load(folder).model()
    with pytest.raises(CheckpointError, match=r"has no best.pt; .* --checkpoint.best true"):
        load(folder).model(which="best")
    with pytest.raises(ConfigError, match="which is 'first'; expected last or best"):
        load(folder).model(which="first")
    assert load(folder).summary["status"] == "completed"


def test_a_checkpoint_of_another_network_is_refused_in_one_line(trained_runs, tmp_path):
    folder = shutil.copytree(trained_runs / "fedgkt", tmp_path / "run")
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("model: resnet11", "model: resnet56"))
    with pytest.raises(CheckpointError, match=r"round-00002.pt does not fit .*config.yaml") as caught:
        load(folder).model(0)
    assert "\n" not in str(caught.value)


def test_a_run_folder_brings_no_code(trained_runs, tmp_path):
    folder = shutil.copytree(trained_runs / "fedgkt", tmp_path / "run")
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("model: resnet11", "model: brought_along:NET"))
    (folder / "brought_along.py").write_text("raise SystemExit('the run folder ran code')")
    with pytest.raises(DataError, match=r"config.yaml cannot be used: .*no module brought_along on PYTHONPATH"):
        load(folder)
    done = predict(Path(), folder)
    assert "no module brought_along on PYTHONPATH\n" in done.stderr and "did you mean" not in done.stderr


def predict(run, cwd):
    """Start the installed command, whose path lacks the current folder (-P), in a folder."""
    command = [sys.executable, "-P", "-m", "gkt_mpi.cli", "predict", str(run), "none.png"]
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd, env=variables)


def test_the_command_finds_a_network_in_the_current_folder(trained_runs, tmp_path):
    folder = shutil.copytree(trained_runs / "centralized", tmp_path / "runs" / "own")
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("model: resnet11", "model: her_net:NET"))
    (tmp_path / "her_net.py").write_text(
        "from gkt_mpi.models.networks import SERVER_FAMILIES\nNET = SERVER_FAMILIES['resnet11']\n"
    )
    done = predict("runs/own", tmp_path)
    assert done.stderr.startswith("gkt_mpi: none.png cannot be read") and done.returncode == 2
    elsewhere = predict(folder, tmp_path / "runs")
    assert f"no module her_net on PYTHONPATH or in {tmp_path}/runs\n" in elsewhere.stderr


def test_a_folder_without_a_run_and_a_damaged_summary_are_refused(trained_runs, tmp_path):
    with pytest.raises(DataError, match="is not the folder of a run: there is no config.yaml"):
        load(tmp_path)
    folder = shutil.copytree(trained_runs / "fedavg", tmp_path / "run")
    (folder / "summary.json").write_text(json.dumps([1]))
    with pytest.raises(DataError, match="summary.json is damaged"):
        _ = load(folder).summary
    (folder / "summary.json").unlink()
    assert load(folder).summary == {}
