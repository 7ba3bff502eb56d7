"""Runs from Python: gkt.run, gkt.load, and what an import loads."""

import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import gkt_mpi as gkt
from gkt_mpi import lookup
from gkt_mpi.config import RunConfig, parse
from gkt_mpi.errors import ConfigError, DataError
from tests.conftest import ROOT, TINY, arguments, figures, run_in_threads


def fields(tmp_path, **changes):
    """Return the fields of a tiny run, dotted."""
    return TINY | {"out": str(tmp_path / "runs"), "data.dir": str(tmp_path / "data")} | changes


def test_the_import_is_light_and_every_exported_name_exists():
    code = "import sys, gkt_mpi as gkt; gkt.run, gkt.load; print({'torch', 'mpi4py', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.stdout == "set()\n", done.stderr
    assert set(gkt.__all__) <= set(dir(gkt))
    for name in gkt.__all__:
        assert getattr(gkt, name) is not None
    assert gkt.Partition is importlib.import_module("gkt_mpi.data.partition").Partition
    with pytest.raises(AttributeError, match="no attribute 'rum'"):
        gkt.rum  # noqa: B018


def test_processes_and_threads_started_from_python_give_the_run_of_the_command_line(tmp_path, capsys):
    """Fields as nested, dotted and with underscores; the expected run is configured by words and runs in threads."""
    given = fields(tmp_path, name="processes")
    del given["client.lr"], given["data.synthetic.size"], given["rounds"]
    run = gkt.run(given, workers=2, rounds=2, client__lr=0.003, data={"synthetic": {"size": 8}})
    shown = capsys.readouterr().out
    assert "4 clients on 2 workers" in shown and "round 2/2" in shown and "\x1b" not in shown
    assert run.folder == tmp_path / "runs/processes" and run.summary["status"] == "completed"
    threads = gkt.run(parse(arguments(tmp_path)), workers="threads", name="threads")
    expected = run_in_threads(parse(arguments(tmp_path, name="words")), 3)
    assert figures(run.records) == figures(threads.records) == figures(expected)
    assert isinstance(run.config, RunConfig) and run.config.client.lr == 0.003
    assert gkt.load(str(run.folder)) == run
    assert run.report().stat().st_size > 50_000


@pytest.mark.grid
def test_a_network_beside_the_configuration_can_be_loaded_after_the_run(tmp_path, monkeypatch):
    study = tmp_path / "study"
    study.mkdir()
    (study / "api_nets.py").write_text(
        "from gkt_mpi.models.networks import EDGE_FAMILIES\nEDGE = EDGE_FAMILIES['resnet4']\n"
    )
    (study / "run.yaml").write_text("rounds: 1\nclient: {model: 'api_nets:EDGE'}\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(lookup, "searched", [])
    run = gkt.run(study / "run.yaml", workers=1, **{**fields(tmp_path), "rounds": 1})
    assert run.config.client.model == "api_nets:EDGE"
    assert run.model(client=0)(torch.zeros(2, 3, 8, 8)).shape == (2, 10)


def test_the_frame_has_a_row_for_each_round(tmp_path):
    pytest.importorskip("pandas")
    run_in_threads(parse(arguments(tmp_path)), 2)
    run = gkt.load(tmp_path / "runs/run")
    frame = run.frame()
    assert frame["round"].tolist() == [1, 2]
    assert frame["test_accuracy"].tolist() == [record["test_accuracy"] for record in run.records]


def test_a_folder_that_is_no_run_is_one_line(tmp_path):
    with pytest.raises(DataError, match="is not a run folder"):
        gkt.load(tmp_path)


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.grid), "threads"])
def test_a_failure_carries_the_message_of_the_rank(tmp_path, workers, capsys):
    wrong = {"data.name": "cifar10", "data.dir": str(tmp_path / "none"), "out": str(tmp_path)}
    with pytest.raises(gkt.RunFailed, match="^cifar10 was not found: there is no .*data_batch_1") as raised:
        gkt.run(fields(tmp_path) | wrong, workers=workers)
    assert raised.value.exit_status == 2 and "\n" not in str(raised.value)
    assert "cifar10 was not found" not in capsys.readouterr().out


def test_an_unknown_name_fails_before_anything_starts():
    with pytest.raises(ConfigError, match=r"did you mean digits\?"):
        gkt.run("digit")


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.grid), "threads"])
def test_ctrl_c_saves_the_state_raises_and_the_same_call_resumes(tmp_path, workers):
    """A real SIGINT to this process when the first round is logged, as from a notebook's stop button."""
    folder, ended = tmp_path / "runs/run", threading.Event()

    def stop_after_a_round():
        metrics = folder / "metrics.jsonl"
        while not ended.wait(0.05):
            if metrics.exists() and metrics.read_text():
                os.kill(os.getpid(), signal.SIGINT)
                return

    long, stopper = fields(tmp_path, rounds=500), threading.Thread(target=stop_after_a_round)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    stopper.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            gkt.run(long, workers=workers)
    finally:
        ended.set()
        stopper.join()
        signal.signal(signal.SIGINT, before)
    run = gkt.load(folder)
    done = run.summary["rounds"]
    assert run.summary["status"] == "interrupted" and 1 <= done < 500
    assert not ranks_of(tmp_path)
    again = gkt.run(long, workers="threads", rounds=done + 1)
    assert again.summary["status"] == "completed" and len(again.records) == done + 1


def ranks_of(tmp_path):
    """Return the processes with this folder on their command line."""
    found, deadline = [0], time.monotonic() + 30
    while found and time.monotonic() < deadline:
        found = [path for path in Path("/proc").glob("[0-9]*/cmdline") if names(path, str(tmp_path))]
    return found


def names(path, text):
    try:
        return text.encode() in path.read_bytes() and int(path.parent.name) != os.getpid()
    except OSError:
        return False
