import io
from contextlib import contextmanager

import numpy as np
import pytest
from rich.console import Console

from gkt_mpi.log import progress as module
from gkt_mpi.log.logger import LogConfig, logging_to
from gkt_mpi.log.progress import CLIENTS_TRAIN, SERVER_TRAINS, Progress, partition_table, summary_table

RECORD = {
    "round_s": 2.0,
    "upload_bytes": 3_000_000,
    "download_bytes": 2000,
    "test_accuracy": 0.91234,
    "client_test_accuracy": 0.5,
    "server_train_loss": 0.25,
}

SUMMARY = {
    "status": "completed",
    "rounds": 8,
    "final_test_accuracy": 0.97,
    "final_client_test_accuracy": 0.9,
    "best_test_accuracy": 0.98,
    "best_round": 7,
    "upload_bytes": 10**9,
    "download_bytes": 10**6,
    "simulation_bytes": 10**3,
    "total_s": 75.2,
}


@contextmanager
def printed():
    """A console that is no terminal, and prints the log; with what it has printed."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=False, width=100)
    with logging_to(LogConfig(), 0, console):
        yield console, out


def run(console, rounds=3):
    progress = Progress(rounds, console)
    for round in range(rounds):
        progress.begin_round(round)
        for phase in ("clients train and upload", "server trains"):
            progress.begin_phase(phase, 100)
            for _ in range(10):
                progress.advance(10)
        progress.end_round(RECORD)
    progress.end_run()


def test_without_a_terminal_progress_is_one_plain_line_per_round():
    with printed() as (console, out):
        run(console)
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert "\x1b" not in out.getvalue()
    for text in ("round 2/3", "accuracy 0.9123", "edge 0.5000", "loss 0.2500", "up 3.0 MB", "down 2.0 kB", "2.0 s"):
        assert text in lines[1]
    assert lines[0].endswith("0:04 left")


def test_a_long_phase_without_a_terminal_shows_its_progress(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with printed() as (console, out):
        progress = Progress(2, console)
        progress.begin_round(0)
        progress.begin_phase("server trains", 100)
        for _ in range(4):
            now[0] += 18
            progress.advance(25)
    assert [line.strip() for line in out.getvalue().splitlines()] == [
        "at this pace all rounds will take about 2:24",
        "round 1/2  server trains 50 %  1:48 left",
        "round 1/2  server trains 100 %  1:12 left",
    ]


def test_the_first_round_reports_the_total_duration_once_the_pace_is_known(monkeypatch):
    """10 s for the clients, then the server's 100 samples, of which two take 1 s: 60 s a round."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with printed() as (console, out):
        progress = Progress(90, console)
        progress.begin_round(0)
        progress.begin_phase(CLIENTS_TRAIN, 100)
        now[0] += 10
        progress.advance(100)
        progress.begin_phase(SERVER_TRAINS, 100)
        for _ in range(50):
            now[0] += 1
            progress.advance(2)
    assert [line.strip() for line in out.getvalue().splitlines()] == [
        "at this pace all rounds will take about 1:30:00",
        "round  1/90  server trains 42 %  1:29:29 left",
    ]


def test_on_a_terminal_an_updating_line_shows_phase_accuracy_and_bytes():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=160)
    progress = Progress(3, console)
    progress.begin_round(0)
    progress.end_round(RECORD)
    progress.begin_round(1)
    progress.begin_phase("server trains", 100)
    progress.advance(50)
    progress.end_run()
    text = out.getvalue()
    for expected in ("round 2/3", "server trains", "50%", "accuracy 0.9123", "up 3.0 MB", "left"):
        assert expected in text


def test_the_tables_show_what_they_are_given():
    out = io.StringIO()
    console = Console(file=out, force_terminal=False, width=100)
    console.print(summary_table(SUMMARY, "digits", "fedgkt"))
    console.print(partition_table(np.array([[1, 0], [20, 3]]), ["cat", "dog"]))
    text = out.getvalue()
    for expected in (
        "0.9700",
        "0.9800 (round 7)",
        "1.0 GB",
        "1:15",
        "digits: completed after 8 rounds",
        "cat",
        "23",
    ):
        assert expected in text
    assert partition_table(np.zeros((33, 10), int), ["x"] * 10) is None
    assert partition_table(np.zeros((3, 100), int), ["x"] * 100) is None


def test_the_edge_models_have_a_row_of_their_own_also_when_both_accuracies_coincide():
    def rows(algorithm, **changes):
        out = io.StringIO()
        Console(file=out, width=100).print(summary_table(SUMMARY | changes, "x", algorithm))
        return [line for line in out.getvalue().splitlines() if "final test accuracy" in line]

    server, edge = rows("fedgkt", final_client_test_accuracy=0.97)
    assert "server model" in server and "edge models alone" in edge and "0.9700" in edge
    (alone,) = rows("standalone", final_client_test_accuracy=0.97)  # its results are the edge models
    assert "edge models" not in alone
    without = {key: value for key, value in SUMMARY.items() if key != "final_client_test_accuracy"}
    out = io.StringIO()
    Console(file=out, width=100).print(summary_table(without, "x", "fedavg"))
    assert "edge models" not in out.getvalue()


@pytest.mark.parametrize(
    ("classes", "shown"),
    [
        (["airplane", "automobile"], ["airpl", "autom"]),
        (["class_01", "class_02"], ["ss_01", "ss_02"]),
        (["a cat in a box", "a dog in a box", "an elk in a box", "a cat in a car"], ["0", "1", "2", "3"]),
    ],
)
def test_classes_with_similar_names_are_told_apart(classes, shown):
    table = partition_table(np.ones((2, len(classes)), int), classes)
    assert [column.header for column in table.columns] == ["client", *shown, "all"]
