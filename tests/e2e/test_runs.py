"""Whole runs under mpirun: the files they leave, and that configuration and seed alone determine their results."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gkt_mpi.config import parse
from gkt_mpi.log.run_log import hold_folder
from tests.conftest import arguments, figures, read_metrics, run_in_threads
from tests.launch import mpirun, run_in_terminal

MAIN = ["-m", "gkt_mpi.main"]


def num_opened(path):
    """Return the number of other processes that have a file open."""
    count = 0
    for process in Path("/proc").glob("[0-9]*/fd"):
        with contextlib.suppress(OSError):  # it has ended
            is_open = any(each.readlink() == path for each in process.iterdir())
            count += is_open and process.parent.name != str(os.getpid())
    return count


@pytest.mark.grid
def test_two_resumes_at_once_of_one_run_wait_for_each_other(tmp_path):
    """Both end well: one of them does the work, the other finds it done."""
    run_in_threads(parse(arguments(tmp_path, rounds=1)), 2)
    folder = tmp_path / "runs/run"
    with ThreadPoolExecutor(2) as both:
        with hold_folder(folder):  # so that both meet here, however unequal their starts
            resumes = [both.submit(mpirun, ranks, [*MAIN, *arguments(tmp_path, rounds=4)]) for ranks in (2, 3)]
            while num_opened(folder / ".lock") < 2 and not any(each.done() for each in resumes):
                time.sleep(0.05)
        done = [each.result() for each in resumes]
    assert [each.status for each in done] == [0, 0], done
    assert any("another run is using" in each.out for each in done)
    undisturbed = run_in_threads(parse(arguments(tmp_path / "undisturbed", rounds=4)), 2)
    assert figures(read_metrics(tmp_path / "runs/run")) == figures(undisturbed)


METRICS = {
    *("round", "test_accuracy", "client_test_accuracy", "server_train_loss", "client_train_loss", "upload_bytes"),
    *("download_bytes", "simulation_bytes", "client_s", "wire_s", "server_s", "evaluate_s", "round_s"),
    *("server_peak_mib", "lost_workers", "refused_messages"),
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


@pytest.fixture(scope="module")
def whole(made_once):
    """A tiny run of 3 rounds on 3 ranks, in folders with spaces in their names: its folder, and its output."""

    def fill(folder):
        done = complete(3, folder, name="a run", rounds=3, data__partition="hetero", log__report="auto")
        (folder / "printed").write_text(done.out)

    folder = made_once("a folder with spaces", fill)
    return folder / "runs" / "a run", (folder / "printed").read_text()


def test_the_image_file_can_be_created_before_any_run_and_without_mpirun(tmp_path):
    command = [sys.executable, *MAIN, "--prepare", "--data.name", "digits", "--data.dir", str(tmp_path / "data")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == ""
    last = done.stdout.splitlines()[-1]
    assert last == f"{tmp_path}/data/digits.h5: 1,438 training images and 359 testing images"
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    command[command.index("digits")] = "cifar10"
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "--data.download true" in done.stderr


def test_creating_the_image_file_ends_at_ctrl_c_with_one_line_and_leaves_nothing(tmp_path):
    big = [f"--data.synthetic.{name}={value}" for name, value in {"train": 100_000, "size": 32}.items()]
    command = [sys.executable, *MAIN, "--prepare", "--data.name=synthetic", f"--data.dir={tmp_path}", *big]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as program:
        try:
            assert program.stdout.readline().startswith("decoding")
            program.send_signal(signal.SIGINT)
            _, said = program.communicate(timeout=60)
        finally:
            program.kill()
    assert program.returncode == 75 and said == "gkt_mpi: interrupted by SIGINT\n"
    assert list(tmp_path.iterdir()) == []


def test_a_run_leaves_its_folder_with_the_promised_names(whole):
    folder, out = whole
    assert {path.name for path in folder.iterdir()} == {
        *(
            "config.yaml",
            "metrics.jsonl",
            "clients.csv",
            "confusion.csv",
            "summary.json",
            "partition.npz",
            "checkpoints",
            "tensorboard",
            "report.html",
            "run.json",
            "figures",
            "trace.json",
            ".lock",
        ),
    }
    records = read_metrics(folder)
    assert [record["round"] for record in records] == [1, 2, 3]
    assert all(record.keys() >= METRICS for record in records)
    assert all(not isinstance(value, dict | list) for record in records for value in record.values())
    summary = json.loads((folder / "summary.json").read_text())
    assert summary.keys() >= SUMMARY
    assert summary["status"] == "completed"
    assert f"run folder: {folder}" in out
    for record in records:
        parts = sum(record[key] for key in ("client_s", "wire_s", "server_s", "evaluate_s", "checkpoint_s"))
        assert parts <= record["round_s"] + 1e-6


def test_output_that_goes_to_no_terminal_has_no_control_characters(whole):
    assert "\x1b" not in whole[1] and "\r" not in whole[1]


def test_on_a_terminal_progress_is_one_updating_line(tmp_path):
    """mpirun in a pseudo-terminal of 110 columns, as a person would see it."""
    command = ["sh", "launch/mpirun.sh", "-np", "2", sys.executable, *MAIN, *arguments(tmp_path, rounds=1)]
    status, shown = run_in_terminal(command)
    assert status == 0, shown
    for text in ("round 1/1", "server trains", "evaluation", "run folder: "):
        assert text in shown
    assert "\r" in shown and "\x1b[2K" in shown  # the line is updated in place
    assert shown.count("\n") < 40


def test_the_run_folders_configuration_starts_the_same_run_again(whole, tmp_path):
    folder, _ = whole
    changes = ["--config", folder / "config.yaml", "--out", tmp_path / "runs"]
    done = mpirun(2, [*MAIN, *changes])
    assert done.status == 0, done.err
    assert figures(read_metrics(tmp_path / "runs" / "a run")) == figures(read_metrics(folder))


@pytest.mark.parametrize("ranks", [0, pytest.param(5, marks=pytest.mark.grid)])
def test_any_number_of_ranks_gives_bit_identical_results(whole, tmp_path, ranks):
    """4 clients hosted by 1 (the test above), 2 and 4 workers; and without processes (0), by threads of this one."""
    changes = {"rounds": 3, "data__partition": "hetero"}
    if ranks:
        complete(ranks, tmp_path, **changes)
    else:
        run_in_threads(parse(arguments(tmp_path, **changes)), 3)
    assert figures(read_metrics(tmp_path / "runs" / "run")) == figures(read_metrics(whole[0]))


def test_a_bank_on_disk_and_a_worker_that_sends_bad_messages_do_not_change_results(whole, tmp_path):
    """Two of the four clients' features (266 kB) fit into the limit; before each block rank 1 sends bad messages."""
    options = {"name": "spill", "rounds": 3, "data__partition": "hetero", "bank__memory_mib": 0.14}
    spill = tmp_path / "a fast disk"
    program = ["tests/e2e/rubbish.py", *arguments(tmp_path, bank__spill_dir=spill, **options)]
    done = mpirun(2, program)
    assert done.status == 0, done.err
    assert "refused: rank 1 sent a message whose round is" in done.out
    assert list(spill.iterdir()) == []
    records = figures(read_metrics(tmp_path / "runs" / "spill"))
    assert all(record["refused_messages"] > 0 for record in records)
    undisturbed = figures(read_metrics(whole[0]))
    assert [r | {"refused_messages": 0} for r in records] == undisturbed


OTHERS = {
    "fedgkt_async": {"algorithm": "fedgkt_async", "devices__edge": "[phone, phone_new, phone_old]"},
    "fedavg": {"algorithm": "fedavg"},
    "split_learning": {"algorithm": "split_learning"},
    "standalone": {"algorithm": "standalone"},
    "centralized": {"algorithm": "centralized"},
}


@pytest.mark.parametrize("changes", OTHERS.values(), ids=OTHERS.keys())
def test_every_algorithm_gives_the_same_results_over_mpi(changes, tmp_path):
    """One or two processes beside three threads of this one, to the last bit. FedGKT itself: the tests above."""
    complete(1 if changes["algorithm"] == "centralized" else 2, tmp_path, name="processes", **changes)
    threads = run_in_threads(parse(arguments(tmp_path, name="threads", **changes)), 3)
    assert figures(read_metrics(tmp_path / "runs" / "processes")) == figures(threads)


@pytest.mark.grid
def test_an_interrupted_run_gives_the_same_results_on_another_number_of_ranks(whole, tmp_path):
    complete(2, tmp_path, name="cut", rounds=1, data__partition="hetero")
    done = complete(4, tmp_path, name="cut", rounds=3, data__partition="hetero")
    assert "resumed after round 1 of 3" in done.out
    assert figures(read_metrics(tmp_path / "runs" / "cut")) == figures(read_metrics(whole[0]))


@pytest.mark.grid
def test_twenty_clients_on_twenty_workers_of_this_machine(tmp_path):
    complete(21, tmp_path, rounds=1, clients=20, data__synthetic__train=220)
    assert len(read_metrics(tmp_path / "runs" / "run")) == 1


@pytest.mark.grid
def test_real_cifar10_images_train_both_sides(real_images, tmp_path):
    """Two hundred real images: the server's loss falls, and the edge learns its images far better than by chance.

    So few images do not generalise; docs/accuracy.md has the accuracy with thousands.
    """
    changes = {"client__batch_size": 25, "server__batch_size": 32, "client__epochs": 5, "rounds": 4}
    fields = arguments(tmp_path, data__name="cifar10", data__limit=200, data__test_limit=50, **changes)
    done = mpirun(3, [*MAIN, *fields, "--data.augment=none", "--data.dir", real_images])
    assert done.status == 0, done.err
    first, *_, last = read_metrics(tmp_path / "runs" / "run")
    assert last["server_train_loss"] < 0.9 * first["server_train_loss"]
    assert last["client_train_accuracy"] > max(0.3, first["client_train_accuracy"])


def test_fewer_rounds_than_are_done_are_reported_and_change_nothing(tiny, tmp_path, capsys):
    records = run_in_threads(tiny(rounds=2), 2)
    folder = tmp_path / "runs" / "run"
    config = (folder / "config.yaml").read_text()
    capsys.readouterr()
    assert run_in_threads(tiny(rounds=1), 2) == records
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("the run has already completed 2 rounds, more than the 1 requested; nothing is trained") == 1, (
        said
    )
    assert "of 1" not in said
    assert (folder / "config.yaml").read_text() == config
