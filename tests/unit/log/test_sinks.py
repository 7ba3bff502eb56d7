"""Trackers: what TensorBoard, Weights & Biases (offline) and MLflow (database and files) have received."""

import json
import struct
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gkt_mpi.config import RunConfig
from gkt_mpi.errors import ConfigError
from gkt_mpi.log.logger import LogConfig
from gkt_mpi.log.sinks import SINKS
from gkt_mpi.log.sinks.sink import OpenSinks, Sink, SinkRun
from tests.conftest import read_metrics, run_in_threads

BLOCK = 2**15  # bytes of a block in a LevelDB log


@pytest.fixture
def run(tmp_path):
    return SinkRun(tmp_path, "a run", {"seed": 3, "server": {"lr": 0.1}}, 0)


def record(round, accuracy):
    return {"round": round, "test_accuracy": accuracy, "client_s": 2.0, "upload_bytes": 10}


def test_tensorboard_has_every_figure_of_every_round_also_of_a_resumed_run(tiny):
    for rounds in (1, 3):
        config = tiny(rounds=rounds)
        run_in_threads(config, 2)
    folder = Path(config.out) / config.name
    scalars = EventAccumulator(str(folder / "tensorboard")).Reload()
    for name in ("test_accuracy", "server_train_loss"):
        tag = f"{'accuracy' if 'accuracy' in name else 'loss'}/{name}"
        expected = [(r["round"], pytest.approx(r[name])) for r in read_metrics(folder)]
        assert [(event.step, event.value) for event in scalars.Scalars(tag)] == expected


def records_of(path):
    """Yield the records of an offline run of Weights & Biases: a LevelDB log of protobuf messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = path.read_bytes(), 7, b""  # after the header of the file
    while at < len(data):
        if BLOCK - at % BLOCK < 7:  # the rest of a block is too short for the header of a record
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def test_weights_and_biases_has_figures_summary_and_report_in_a_folder_that_can_be_synced(run, monkeypatch, tmp_path):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "report.html").write_text("the report")
    sinks = OpenSinks([SINKS["wandb"]], run)
    sinks.append(record(0, 0.25))
    sinks.append(record(1, 0.75))
    sinks.close({"status": "completed", "final_test_accuracy": 0.7}, [tmp_path / "report.html"])
    assert wandb.run is None
    wandb.teardown()  # as at the end of the process: its service has written everything
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    history, summary, config = [], {}, {}
    for written in records_of(path):
        items = {"/".join(item.nested_key) or item.key: item.value_json for item in written.history.item}
        if items:
            history.append({key: json.loads(value) for key, value in items.items()})
        summary |= {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in written.summary.update}
        config |= {i.key: json.loads(i.value_json) for i in written.run.config.update}
    assert [(each["_step"], each["accuracy/test_accuracy"]) for each in history] == [(0, 0.25), (1, 0.75)]
    assert summary["final_test_accuracy"] == 0.7 and config["seed"] == 3
    assert (tmp_path / "wandb/run_id").read_text() in path.name


@pytest.mark.parametrize("store", ["files", pytest.param("database", marks=pytest.mark.grid)])
def test_mlflow_has_configuration_figures_summary_and_report_also_of_a_resumed_run(run, monkeypatch, tmp_path, store):
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path.parent.resolve()}/mlflow.db"  # the default
    if store == "files":
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # as its users must, since it is no longer developed
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri := (tmp_path / "a store").as_uri())
    (tmp_path / "report.html").write_text("the report")
    first = OpenSinks([SINKS["mlflow"]], run)
    first.append(record(0, 0.25))
    first.close({"status": "interrupted"})
    again = OpenSinks([SINKS["mlflow"]], SinkRun(run.folder, run.name, run.config, 1))
    again.append(record(1, 0.75))
    again.close({"status": "completed", "final_test_accuracy": 0.7}, [tmp_path / "report.html"])
    client = mlflow.MlflowClient(tracking_uri=uri)
    (found,) = client.search_runs([client.get_experiment_by_name("gkt_mpi").experiment_id])
    assert found.info.run_name == "a run" and found.info.status == "FINISHED"
    assert found.data.params == {"seed": "3", "server.lr": "0.1"}
    history = client.get_metric_history(found.info.run_id, "accuracy/test_accuracy")
    assert [(each.step, each.value) for each in history] == [(0, 0.25), (1, 0.75)]
    assert found.data.metrics["summary/final_test_accuracy"] == 0.7
    assert [each.path for each in client.list_artifacts(found.info.run_id)] == ["report.html"]


class Failing:
    def append(self, round, figures):
        raise ConnectionError("no such host")

    def close(self, summary, artefacts):
        raise AssertionError("it has been given up")


def test_a_tracker_that_fails_is_given_up_with_a_warning(run, caplog):
    sinks = OpenSinks([Sink("own", lambda run: Failing())], run)
    for round in range(2):
        sinks.append(record(round, 0.5))
    sinks.close({})
    assert caplog.messages == ["own has failed (ConnectionError: no such host); the run continues without it"]


def test_a_failure_of_tensorboard_which_writes_into_the_run_folder_ends_the_run(run):
    sinks = OpenSinks([Sink("own", lambda run: Failing(), is_required=True)], run)
    with pytest.raises(ConnectionError):
        sinks.append(record(0, 0.5))


def test_a_tracker_that_is_not_installed_is_one_line_with_its_extra(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        ConfigError, match=r"log.sinks needs wandb, which cannot be imported .*pip install 'gkt_mpi\[wandb\]'"
    ):
        OpenSinks([SINKS["wandb"]], run)


def test_a_users_own_sink_is_named_in_the_configuration():
    own = f"{__name__}:OWN"
    assert RunConfig(log=LogConfig(sinks=[own])).log.sinks == [own]
    with pytest.raises(ConfigError, match="log.sinks is tensorbord; expected tensorboard, "):
        LogConfig(sinks=["tensorbord"])


OWN = Sink("own", lambda run: Failing())
