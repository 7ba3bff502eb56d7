"""Errors as users see them: one line and status 2 before training, a traceback and the job's end after."""

import re
import subprocess
import sys

import pytest

from tests.conftest import arguments
from tests.e2e.planted import left_behind, plant
from tests.launch import mpirun, run

MAIN = ["-m", "gkt_mpi.main"]


def our_lines(text):
    return [line for line in text.splitlines() if line.startswith("gkt_mpi: ")]


def test_one_rank_alone_is_refused_with_the_command(tmp_path):
    done = run([sys.executable, *MAIN, *arguments(tmp_path)])
    assert done.status == 2
    assert done.err.count("\n") == 1
    assert "try: mpirun -np 5 python -m gkt_mpi.main" in done.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"server__epohs": 1}, "server.epohs"),  # found by every rank
        ({"data__name": "cinic10"}, "cinic10 was not found"),  # by the server
        pytest.param({"server__lr": 0}, "server.lr is 0", marks=pytest.mark.grid),
        pytest.param({"clients": 67}, "67 clients", marks=pytest.mark.grid),
        pytest.param({"placement__device": "cuda"}, "sees no GPU", marks=pytest.mark.grid),
        pytest.param({"out": "/proc/nowhere"}, "cannot write the run folder", marks=pytest.mark.grid),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_status_2_before_training(tmp_path, changes, message):
    done = mpirun(2, [*MAIN, *arguments(tmp_path, **changes)], env={"CUDA_VISIBLE_DEVICES": ""})
    assert done.status == 2, done.err
    lines = our_lines(done.err)
    assert len(lines) == 1 and message in lines[0], done.err
    assert "Traceback" not in done.out + done.err
    assert not list(tmp_path.glob("runs/*/metrics.jsonl"))


@pytest.mark.grid
def test_a_node_that_reads_another_file_reports_it(tmp_path):
    """Only rank 1's configuration is unreadable: rank 0 has no error, and the job must not hang."""
    program = (
        "import os, sys; from gkt_mpi.main import main; "
        "sys.exit(main(sys.argv[1:] + ['--rounds=x'] * (os.environ['OMPI_COMM_WORLD_RANK'] == '1')))"
    )
    done = mpirun(2, ["-c", program, *arguments(tmp_path)], timeout_s=60)
    assert done.status != 0
    assert [line for line in done.err.splitlines() if line.startswith("[rank 1] gkt_mpi: ") and "rounds" in line]


def test_ranks_with_different_configurations_are_reported(tmp_path):
    program = (
        "import os, sys; from gkt_mpi.main import main; "
        "sys.exit(main(sys.argv[1:] + ['--seed=1'] * (os.environ['OMPI_COMM_WORLD_RANK'] == '1')))"
    )
    done = mpirun(2, ["-c", program, *arguments(tmp_path)], timeout_s=60)
    assert done.status != 0
    assert "[rank 1] this rank has read a different configuration from the server's" in done.err


@pytest.mark.grid
def test_data_with_labels_out_of_range_is_one_line_and_status_2(tmp_path):
    import h5py

    from gkt_mpi.config import parse
    from gkt_mpi.data.datasets import file_path, prepare

    config = parse(arguments(tmp_path))
    prepare(config.data, lambda done, total: None)
    with h5py.File(file_path(config.data), "r+") as file:
        file["train/label"][3] = 77
    done = mpirun(2, [*MAIN, *arguments(tmp_path)])
    assert done.status == 2
    assert "label has values outside 0..9" in our_lines(done.err)[0]


@pytest.mark.parametrize(
    ("rank", "where"),
    [
        (1, "worker while uploading"),
        *(
            pytest.param(rank, where, marks=pytest.mark.grid)
            for rank, where in (
                (0, "server before training"),
                (0, "server while receiving"),
                (0, "server while training"),
                (0, "server while evaluating"),
                (1, "worker before training"),
                (1, "worker while loading"),
                (2, "worker while training"),
            )
        ),
    ],
)
def test_an_exception_on_any_rank_ends_the_job_with_its_traceback(tmp_path, rank, where):
    fault = f"{rank},{where},1,fail"
    done = plant(max(2, rank + 1), [fault], tmp_path)
    assert done.status not in (0, 2)
    assert f"[rank {rank}] Traceback" in done.err
    assert f"ZeroDivisionError: planted in the {where}" in done.err
    assert done.err.count("Traceback") == 1
    assert not left_behind(tmp_path)


@pytest.mark.grid
def test_help_under_mpirun_is_printed_once():
    done = mpirun(2, [*MAIN, "--help"])
    assert done.status == 0
    assert (done.out + done.err).count("usage:") == 1


def test_a_diverged_client_is_named_in_one_line(tmp_path):
    done = mpirun(2, [*MAIN, *arguments(tmp_path, client__lr=1e30, client__optimizer="sgd", client__epochs=3)])
    assert done.status == 1
    assert re.search(
        r"client \d in round 1 sent (logits|features) that are not finite; its training has diverged, lower client.lr "
        r"\(to continue without such data: --faults.on_bad_client drop\)",
        done.err,
    ), done.err
    assert "Traceback" not in done.err


@pytest.fixture
def tiny_disk(tmp_path):
    """Return a function that mounts a disk of this many KiB for images, if permitted, and returns its folder."""
    places = []

    def mount(kib):
        places.append(tmp_path / f"disk of {kib} KiB")
        places[-1].mkdir()
        options = ["-t", "tmpfs", "-o", f"size={kib}k", "none", places[-1]]
        if subprocess.run(["mount", *options], capture_output=True).returncode:
            places.pop().rmdir()
            pytest.skip("needs a file system that is full, and this user may not mount one")
        return places[-1]

    yield mount
    for place in places:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("kib", [8, pytest.param(40, marks=pytest.mark.grid)])
@pytest.mark.parametrize("ranks", [0, 2], ids=["alone", "under mpirun"])
def test_a_disk_too_full_for_the_images_is_one_line_and_status_1(tmp_path, tiny_disk, kib, ranks):
    disk = tiny_disk(kib)
    given = arguments(tmp_path, data__dir=disk, data__name="digits")
    done = mpirun(ranks, [*MAIN, *given], 120) if ranks else run([sys.executable, *MAIN, "--prepare", *given], 60)
    assert done.status == 1, done
    (line,) = our_lines(done.err)
    assert re.search(r"cannot create .*\.h5: No space left on device; it needs [\d,]+ bytes", line)
    assert not re.search("Traceback|Segmentation|signal 11", done.out + done.err)
    assert list(disk.iterdir()) == [] and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("kib", [4, pytest.param(20, marks=pytest.mark.grid)])
def test_a_disk_too_full_for_the_bank_is_one_line_and_status_2_before_training(tmp_path, tiny_disk, kib):
    disk = tiny_disk(kib)
    done = mpirun(2, [*MAIN, *arguments(tmp_path, bank__memory_mib=0, bank__spill_dir=disk)], 120)
    assert done.status == 2, done
    (line,) = our_lines(done.err)
    assert re.search(r"the feature bank needs 270,336 bytes in .*: no space left on device; .*bank.spill_dir", line)
    assert not re.search("Traceback|Segmentation|signal 11", done.out + done.err)
    assert list(disk.iterdir()) == []
    assert not list(tmp_path.glob("runs/*/metrics.jsonl"))
