"""Real signals at chosen moments of real runs under mpirun: nothing is lost, and results do not change.

The tiny run has 4 clients of 16 or 17 images, in batches of 8; client 0 is on rank 1, client 1 on rank 2, and so on.
"""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from tests.conftest import read_metrics
from tests.e2e import soak
from tests.e2e.planted import left_behind, plant, processes_with, results, resumed, struck, undisturbed

ROUNDS = 3
NO_ULFM = ("--with-ft", "no")


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Return the results of the undisturbed run."""
    return undisturbed(tmp_path_factory.mktemp("undisturbed"), rounds=ROUNDS)


def lost_workers(path):
    return [record["lost_workers"] for record in read_metrics(path / "runs" / "run")]


def summary(path):
    return json.loads((path / "runs" / "run" / "summary.json").read_text())


def is_interrupted(path, done, by):
    """Whether a run has ended like one that a signal interrupted."""
    where = done.out + done.err
    assert f"interrupted by {by} after" in where and "start the same command again to resume" in where, where
    assert summary(path)["status"] == "interrupted"
    assert "Traceback" not in where
    return done.status == 75


MOMENTS = [
    "2,worker in the middle of a block,6,kill",  # its first block: header, ids and labels have been sent
    "0,server while training,7,kill-3",
    "4,worker while training,4,kill",
    "0,server while evaluating,3,kill-1",  # noticed at the end
]


@pytest.mark.parametrize(("ranks", "lost"), [(4, [2]), pytest.param(6, [3, 4], marks=pytest.mark.grid)])
def test_workers_may_die_at_any_moment(expected, tmp_path, ranks, lost):
    """All but one: in the middle of a block, while the server trains, while training, while the server evaluates."""
    done = plant(ranks, MOMENTS[: ranks - 2], tmp_path, rounds=ROUNDS)
    assert done.status == 0, done.out + done.err
    assert results(tmp_path) == expected
    assert sum(lost_workers(tmp_path)) in lost
    assert "rank 2 has died" in done.out and "its clients (1) move to other workers" in done.out
    assert done.err == ""
    assert not left_behind(tmp_path)


ALGORITHMS = {
    "fedavg": {"algorithm": "fedavg"},
    "split": {"algorithm": "split_learning"},
    "splitfed": {"algorithm": "split_learning", "split__mode": "parallel"},
    "standalone": {"algorithm": "standalone"},
    "some": {"participation": 0.5},
    "sharing": {"client__share": "edge", "client__extract": "shared"},
    "async": {"algorithm": "fedgkt_async", "devices__edge": "[phone, phone_new, phone_old]"},
}


@pytest.mark.grid
@pytest.mark.parametrize("changes", ALGORITHMS.values(), ids=ALGORITHMS.keys())
def test_every_algorithm_survives_dead_workers_and_a_dead_server(changes, tmp_path):
    """Two of three workers die during training, then the server; resumed on other ranks, the results are the same."""
    whole = undisturbed(tmp_path, rounds=ROUNDS, **changes)
    faults = ["1,worker while training,2,kill", "3,worker while training,4,kill", "0,server while logging,2,kill"]
    done = plant(4, faults, tmp_path, rounds=ROUNDS, **changes)
    assert done.status not in (0, 2), done.out + done.err
    assert "rank 1 has died" in done.out
    assert not left_behind(tmp_path)
    assert plant(2, [], tmp_path, rounds=ROUNDS, **changes).status == 0
    assert results(tmp_path) == whole


@pytest.mark.grid
def test_by_the_real_clock_training_continues_despite_dead_and_hung_workers(tmp_path):
    """One of three workers dies and one hangs for good; the third takes all clients, sooner or later."""
    faults = ["1,worker while training,3,kill", "2,worker while training,9,stop"]
    changes = {"algorithm": "fedgkt_async", "clock": "real", "faults__timeout_s": 2}
    done = plant(4, faults, tmp_path, rounds=12, **changes)
    assert done.status == 0, done.out + done.err
    assert len(results(tmp_path)) == 12
    assert sum(lost_workers(tmp_path)) in (1, 2)  # the hung one may not be noticed before the end
    assert "rank 1 has died" in done.out
    assert not left_behind(tmp_path)


@pytest.mark.grid
def test_two_workers_may_die_at_once_and_later_the_one_that_took_their_clients(expected, tmp_path):
    """Ranks 2 and 3 die while the server trains; rank 1, which took their clients, later; rank 4 takes all."""
    faults = ["0,server while training,7,kill-2", "0,server while training,7,kill-3", "1,worker while uploading,4,kill"]
    done = plant(5, faults, tmp_path, rounds=ROUNDS)
    assert done.status == 0, done.out + done.err
    assert results(tmp_path) == expected
    assert sum(lost_workers(tmp_path)) == 3


def test_when_the_last_worker_dies_the_run_is_saved_and_says_how_to_resume(expected, tmp_path):
    done = plant(2, ["1,worker while training,18,kill"], tmp_path, rounds=ROUNDS, checkpoint__every=5)
    assert done.status == 1, done.out + done.err
    assert "no worker is left; start the same command again to resume" in done.err
    assert "Traceback" not in done.err
    assert "resumed after round 1" in resumed(tmp_path, rounds=ROUNDS, checkpoint__every=5)
    assert results(tmp_path) == expected


@pytest.mark.parametrize("options", [(), pytest.param(NO_ULFM, marks=pytest.mark.grid)], ids=["ulfm", "no ulfm"])
def test_workers_that_hang_are_given_up_and_their_later_messages_refused(expected, tmp_path, options):
    """Rank 2 is stopped in the middle of a block and continues a round later; rank 3 never does."""
    faults = [
        "2,worker in the middle of a block,6,stop",
        "3,worker while training,4,stop",
        "0,server while training,8,cont-2",
    ]
    done = plant(4, faults, tmp_path, options, rounds=ROUNDS, faults__timeout_s=3)
    assert done.status == 0, done.out + done.err
    assert "rank 2 has not answered for 3 s; its clients (1) move to other workers" in done.out
    assert results(tmp_path) == expected
    assert lost_workers(tmp_path) == [1, 1, 0]
    assert not left_behind(tmp_path)


def test_without_fault_tolerance_a_death_ends_the_job_with_advice_to_resume(expected, tmp_path):
    done = plant(3, ["2,worker while training,8,kill"], tmp_path, NO_ULFM, rounds=ROUNDS)
    assert done.status not in (0, 2)
    assert "start the same command again to resume" in done.out
    assert not left_behind(tmp_path)
    assert "resumed after round 1" in resumed(tmp_path, rounds=ROUNDS)
    assert results(tmp_path) == expected


@pytest.mark.parametrize(
    "moments",
    [
        [("logging", 2)],
        # Interrupted in the middle of an upload, of a checkpoint, and before the line in the log.
        pytest.param([("taking a block in", 6), ("saving", 1), ("logging", 1)], marks=pytest.mark.grid),
    ],
    ids=["once", "three times"],
)
def test_the_servers_death_ends_the_job_and_a_resume_loses_only_the_current_round(expected, tmp_path, moments):
    for where, call in moments:
        done = plant(2, [f"0,server while {where},{call},kill"], tmp_path, rounds=ROUNDS)
        assert done.status != 0
        assert "the server; start the same command again to resume" in done.err
        assert not left_behind(tmp_path)
    assert "resumed after round 2" in resumed(tmp_path, 3, rounds=ROUNDS)
    assert results(tmp_path) == expected


@pytest.mark.parametrize(
    "signals",
    [
        # To the launch wrapper, as from a batch script or a person: it forwards SIGUSR1 for every signal.
        [("SIGUSR1", "1,worker while training,10,term-launcher")],
        pytest.param(
            [
                ("SIGTERM", "0,server while receiving,1,term"),  # no checkpoint yet
                ("SIGUSR1", "0,server while training,7,usr1"),
                ("SIGINT", "0,server while evaluating,2,int"),
                ("SIGTERM", "0,server at the end,1,term"),
            ],
            marks=pytest.mark.grid,
        ),
        pytest.param(
            [
                ("SIGUSR1", "1,worker while training,2,usr1-launcher"),
                ("SIGUSR1", "1,worker while training,5,term-launcher"),
                ("SIGUSR1", "0,server while predicting,1,int-launcher"),
            ],
            marks=pytest.mark.grid,
        ),
    ],
    ids=["once", "server", "launcher"],
)
def test_a_signal_saves_the_run_and_ends_it_with_status_75(expected, tmp_path, signals):
    """One after the other in a run that is resumed in between, with checkpoints less often than every round."""
    for name, fault in signals:
        done = plant(2, [fault], tmp_path, rounds=ROUNDS, checkpoint__every=10)
        assert is_interrupted(tmp_path, done, name)
        assert list((tmp_path / "runs" / "run" / "checkpoints").glob("*.pt"))
        assert not left_behind(tmp_path)
    done = plant(2, [], tmp_path, rounds=ROUNDS, checkpoint__every=10)
    assert done.status == 0 and "resumed after round" in done.out, done.out + done.err
    assert summary(tmp_path)["status"] == "completed"
    assert results(tmp_path) == expected


def test_a_stuck_run_is_killed_in_time_after_a_signal(tmp_path):
    """A hung worker blocks nobody; a server that hangs in the middle of a step is killed after the grace period."""
    fault = "0,server while training,2,hang"
    done = plant(2, [fault], tmp_path, rounds=ROUNDS, checkpoint__grace_s=1)
    assert done.status == 75, done.out + done.err
    assert not left_behind(tmp_path)


def test_a_suspended_job_continues_as_if_undisturbed(expected, tmp_path):
    """For longer than the timeout of a silent worker, and than a worker waits before it ends itself."""
    faults = ["1,worker while training,3,freeze"]
    done = plant(3, faults, tmp_path, rounds=ROUNDS, faults__timeout_s=2)
    assert done.status == 0, done.out + done.err
    assert struck(tmp_path) == faults
    assert results(tmp_path) == expected
    assert sum(lost_workers(tmp_path)) == 0
    assert not left_behind(tmp_path)


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.grid)])
@pytest.mark.parametrize("moment", ["rank before it connects", "rank after it has connected"])
def test_a_rank_that_dies_while_all_connect_is_one_line_with_advice(tmp_path, rank, moment):
    done = plant(3, [f"{rank},{moment},1,kill"], tmp_path)
    assert done.status == 75, done.out + done.err
    assert f"gkt_mpi: rank {rank} has died while the job started; start the same command again" in done.err
    assert "Traceback" not in done.err
    assert not left_behind(tmp_path)


def test_a_run_folder_that_is_deleted_during_the_run_is_one_line(tmp_path):
    done = plant(3, ["0,server while logging,2,vanish"], tmp_path, rounds=ROUNDS)
    assert done.status == 1, done.out + done.err
    assert "the run folder was deleted or moved during the run; start the same command again" in done.err
    assert "Traceback" not in done.err
    assert not left_behind(tmp_path)


@pytest.mark.parametrize("who", ["1,worker while training", "0,server while training"])
def test_running_out_of_memory_is_reported_and_the_run_can_be_resumed(expected, tmp_path, who):
    """In the second round; checkpoints are less frequent than rounds."""
    call = 6 if who.startswith("0") else 7
    done = plant(3, [f"{who},{call},starve"], tmp_path, rounds=ROUNDS, checkpoint__every=3)
    assert done.status == 1, done.out + done.err
    words = rf"\[rank {who[0]}\] gkt_mpi: out of memory \(.*\); provide more memory, or set smaller batches"
    assert re.search(words, done.err), done.err
    assert "Traceback" not in done.err
    assert not left_behind(tmp_path)
    if who.startswith("0"):  # the worker's end may come before the first round is evaluated
        assert (tmp_path / "runs/run/checkpoints/round-00001.pt").exists()
    resumed(tmp_path, rounds=ROUNDS, checkpoint__every=3)
    assert results(tmp_path) == expected


@pytest.mark.grid
def test_a_server_that_hangs_and_holds_pythons_lock_is_ended(expected, tmp_path):
    done = plant(3, ["0,server while training,6,lock"], tmp_path, rounds=ROUNDS, faults__timeout_s=2)
    assert done.status == 1, done.out + done.err
    assert "start the same command again to resume" in done.err
    assert "Current thread" in done.err  # where it hung
    assert not left_behind(tmp_path)
    resumed(tmp_path, rounds=ROUNDS, faults__timeout_s=2)
    assert results(tmp_path) == expected


def test_ctrl_z_stops_all_ranks_and_fg_continues_them(expected, tmp_path):
    stopped = []

    def num_stopped():
        states = []
        for process in processes_with(tmp_path):
            with contextlib.suppress(OSError):
                states.append(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0])
        return states.count("T")

    def bring_back():
        until = time.monotonic() + 60
        while time.monotonic() < until and not stopped:
            if num_stopped() == 7:  # three ranks with their watchdogs, and the launch wrapper
                stopped.append(True)
            time.sleep(0.05)
        os.kill(int((tmp_path / "pids" / "launcher").read_text()), signal.SIGCONT)

    person = threading.Thread(target=bring_back)
    person.start()
    faults = ["1,worker while training,4,tstp-launcher"]
    done = plant(3, faults, tmp_path, rounds=ROUNDS)
    person.join(70)
    assert done.status == 0, done.out + done.err
    assert stopped and struck(tmp_path) == faults
    assert results(tmp_path) == expected


def test_a_client_that_reports_poisoned_weights_is_named_and_dropped(tmp_path):
    faults = ["2,worker while reporting,2,poison"]
    done = plant(3, faults, tmp_path, rounds=ROUNDS, faults__on_bad_client="drop")
    assert done.status == 0, done.out + done.err
    assert "dropped in this round: client 3 in round 1 reported weights that are not finite" in done.out
    assert [record["dropped_clients"] for record in read_metrics(tmp_path / "runs/run")] == [1, 0, 0]


BAD = ["nan", *(pytest.param(what, marks=pytest.mark.grid) for what in ("labels", "twice"))]


@pytest.mark.grid
@pytest.mark.parametrize("what", ["nan", "labels", "twice"])
def test_a_bad_client_stops_the_run(tmp_path, what):
    done = plant(3, [f"2,worker while uploading,3,{what}"], tmp_path, rounds=ROUNDS)
    assert done.status == 1
    assert "client 1 in round 2 sent" in done.err and "--faults.on_bad_client drop" in done.err


@pytest.mark.parametrize("what", BAD)
def test_a_bad_client_is_dropped_if_configured(tmp_path, what):
    """Client 1 is bad in the second of three rounds."""
    done = plant(3, [f"2,worker while uploading,3,{what}"], tmp_path, rounds=ROUNDS, faults__on_bad_client="drop")
    assert done.status == 0, done.err
    assert "dropped in this round: client 1 in round 2 sent" in done.out
    assert [record["dropped_clients"] for record in read_metrics(tmp_path / "runs" / "run")] == [0, 1, 0]


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 7 MiB: two checkpoints of the tiny run fit, three do not."""
    place = tmp_path / "runs"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=7m", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs a file system that is full, and this user may not mount one")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ([], "cannot write .*round-00003.pt"),
        pytest.param(["0,server while logging,2,fill"], "cannot write the log in", marks=pytest.mark.grid),
    ],
)
def test_a_full_disk_is_one_clear_error_and_what_was_saved_stays_valid(expected, tmp_path, small_disk, faults, message):
    done = plant(2, faults, tmp_path, rounds=ROUNDS)
    assert done.status == 1
    (line,) = [line for line in done.err.splitlines() if line.startswith("[rank 0]")]
    assert "free some space, then start" in line
    assert re.search(message, line)
    assert "Traceback" not in done.err
    (small_disk / "run" / "much").unlink(missing_ok=True)
    subprocess.run(["mount", "-o", "remount,size=100m", small_disk], check=True)
    assert "resumed after round 2" in resumed(tmp_path, rounds=ROUNDS)
    assert results(tmp_path) == expected


@pytest.mark.grid
def test_a_short_soak_is_survived():
    """One run with faults drawn from a seed; `make soak` is the long form."""
    shown = io.StringIO()
    assert soak.soak(seed=3, seconds=200, runs=1, say=Console(file=shown, width=100)), shown.getvalue()


def test_every_rank_prints_its_stack_on_request_and_continues(expected, tmp_path):
    """SIGUSR2 to the launch wrapper, which forwards it to mpirun, which forwards it to all ranks."""
    done = plant(2, ["0,server while training,4,usr2-launcher"], tmp_path, rounds=ROUNDS)
    assert done.status == 0, done.out + done.err
    told = done.out + done.err
    assert told.count("Current thread") == 2 and "gkt_mpi/main.py" in told
    assert results(tmp_path) == expected
