import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gkt_mpi.errors import ConfigError
from gkt_mpi.log import run_log
from gkt_mpi.log.run_log import RunLog, hold_folder
from gkt_mpi.log.sinks.tensorboard import TENSORBOARD

CONFIG = {"name": "x", "server": {"lr": 0.1}}


def record(round, accuracy=None):
    values = {"round": round, "round_s": 2.0, "upload_bytes": 10, "download_bytes": 3, "simulation_bytes": 1}
    values |= {"edge_flops": 100, "virtual_s": 0.5}
    return values | ({"test_accuracy": accuracy} if accuracy is not None else {})


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_folder_has_one_run_at_a_time(tmp_path):
    folder = tmp_path / "runs" / "x"
    with hold_folder(folder):
        with (
            pytest.raises(ConfigError, match="another run is using .*x; wait for it to end, or choose another"),
            hold_folder(folder, patience_s=0),
        ):
            pytest.fail("let in")
        with hold_folder(tmp_path / "runs" / "y"):
            pass
    with hold_folder(folder):
        pass


def test_a_folder_that_another_run_releases_in_time_is_waited_for(tmp_path, monkeypatch):
    with ThreadPoolExecutor(1) as pool:
        is_told = threading.Event()
        with hold_folder(tmp_path):
            monkeypatch.setattr(run_log.logger, "warning", lambda text: is_told.set())

            def wait_for_it():
                with hold_folder(tmp_path):
                    return "in"

            waiting = pool.submit(wait_for_it)
            assert is_told.wait(60)
        assert waiting.result(60) == "in"


def test_a_run_leaves_configuration_metrics_summary_and_scalars(tmp_path):
    folder = tmp_path / "x"
    log = RunLog(folder, CONFIG, "made by a test", sinks=[TENSORBOARD])
    log.begin(0, 2)
    for number, accuracy in enumerate([0.5, None, 0.75, 0.7], 1):
        log.append(record(number, accuracy), {})
    log.finish({"test_accuracy": 0.72, "client_test_accuracy": 0.4}, {"precision": "float32"})
    assert (folder / "config.yaml").read_text().startswith("# made by a test\n")
    assert yaml.safe_load((folder / "config.yaml").read_text()) == CONFIG
    assert [r["round"] for r in lines(folder)] == [1, 2, 3, 4]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["total_s"] >= 0
    del summary["total_s"]
    assert summary == {
        "final_test_accuracy": 0.72,
        "final_client_test_accuracy": 0.4,
        "best_test_accuracy": 0.75,
        "best_round": 3,
        "rounds": 4,
        "upload_bytes": 40,
        "download_bytes": 12,
        "simulation_bytes": 4,
        "edge_flops": 400,
        "virtual_s": 2.0,
        "precision": "float32",
        "status": "completed",
    }
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    found = [(event.step, round(event.value, 6)) for event in events.Scalars("accuracy/test_accuracy")]
    assert found == [(1, 0.5), (3, 0.75), (4, 0.7)]


def test_a_resume_drops_lines_beyond_the_checkpoint_and_a_truncated_line(tmp_path):
    log = RunLog(tmp_path, CONFIG, "", sinks=[TENSORBOARD])
    log.begin(0, 2)
    for round in (1, 2, 3):
        log.append(record(round, 0.1), {})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"round": 4, "rou')
    again = RunLog(tmp_path, CONFIG, "", sinks=[TENSORBOARD])
    again.begin(2, 2)
    assert [r["round"] for r in lines(tmp_path)] == [1, 2]
    again.append(record(3, 0.9), {})
    again.finish({"test_accuracy": 0.9}, {})
    assert again.summary["rounds"] == 3
    assert again.summary["total_s"] >= 4.0  # the two completed rounds count as well


def test_a_resume_restores_lines_that_the_checkpoint_has_and_the_log_lost(tmp_path):
    log = RunLog(tmp_path, CONFIG, "", sinks=[TENSORBOARD])
    log.begin(0, 2)
    log.append(record(1, 0.5), {})
    again = RunLog(tmp_path, CONFIG, "", sinks=[TENSORBOARD])
    again.begin(2, 2, {"newest": [record(1, 0.5), record(2, 0.2)], "sealed": 0, "digest": ""})
    assert [(r["round"], r["test_accuracy"]) for r in lines(tmp_path)] == [(1, 0.5), (2, 0.2)]


def test_a_log_that_cannot_be_written_is_one_error(tmp_path):
    log = RunLog(tmp_path, CONFIG, "", sinks=[TENSORBOARD])
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(ConfigError, match="cannot write the run folder"):
        log.begin(0, 2)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file/run"):
        RunLog(tmp_path / "file" / "run", CONFIG, "")
