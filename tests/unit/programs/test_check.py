"""Findings of the check of every rank; hosts, folders and MPI itself are checked in tests/e2e/test_hosts.py."""

import dataclasses
import re

import numpy as np
import pytest
import torch

from gkt_mpi.data.datasets import prepare
from gkt_mpi.programs import check as rooms
from gkt_mpi.programs.check import preflight
from gkt_mpi.wire.local import run_local
from tests.unit.data.made import arrays, write_arrays

SOFTWARE = {"torch": "2", "MPI": "a library", "survives lost workers": "no"}


def check(config, capsys, ranks=3, software=lambda rank: SOFTWARE, configs=None):
    """Return the server's exit status and what it prints, line by line."""

    def run(transport):
        its = (configs or {}).get(transport.rank, config)
        return preflight(its, transport, (transport.rank, ranks, True), dict(software(transport.rank)))

    status = run_local(ranks, run, 60)
    assert status[1:] == [0] * (ranks - 1)
    return status[0], capsys.readouterr().out.splitlines()


def test_a_sound_run_is_ready_and_leaves_nothing_behind(tiny, capsys, tmp_path):
    status, lines = check(tiny(), capsys)
    assert (status, lines[-1]) == (0, "ready")
    assert list(tmp_path.iterdir()) == []
    assert sum(line.startswith(("0 ", "1 ", "2 ")) for line in lines) == 3
    assert any(line.split() == ["MPI", "a", "library"] for line in lines)
    assert any("will be created when the run begins" in line for line in lines)
    assert any("a worker that dies ends the run" in line for line in lines)


def test_existing_folders_are_kept(tiny, capsys, tmp_path):
    prepare(tiny().data, lambda done, total: None)
    (tmp_path / "runs").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert check(tiny(), capsys)[0] == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_missing_data_is_a_problem_to_fix(tiny, capsys):
    status, lines = check(tiny(data__name="cinic10"), capsys)
    assert status == 2 and lines[-1].startswith("fix this first: cinic10 was not found")
    status, lines = check(tiny(data__name="cifar10", data__download=True), capsys)
    assert status == 0 and any("downloaded" in line for line in lines)


def test_a_partition_that_does_not_fit_the_images_is_a_problem_to_fix(tiny, capsys, tmp_path):
    write_arrays(tmp_path / "mine.npz", arrays(train_owner=np.arange(12) // 2))
    fields = {"data__name": "npz", "data__file": tmp_path / "mine.npz", "data__partition": "owner", "clients": "null"}
    prepare(tiny(**fields).data, lambda done, total: None)
    assert check(tiny(**fields), capsys)[0] == 0  # six clients on two workers
    status, lines = check(tiny(**fields | {"clients": 2}), capsys)
    assert status == 2 and lines[-1].startswith("fix this first: clients is 2, but data.partition owner makes it 6")


def test_networks_that_cannot_be_trained_are_a_problem_to_fix(tiny, capsys):
    """Its last stage sees a single value of each image of 8x8, of which BatchNorm makes nothing."""
    status, lines = check(tiny(server__model="mobilenet_v3_small"), capsys)
    assert status == 2
    assert lines[-1].startswith("fix this first: server.model mobilenet_v3_small cannot train on a batch with a single")


def test_an_unwritable_folder_is_a_problem_to_fix(tiny, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    status, lines = check(tiny(out=tmp_path / "file" / "runs"), capsys)
    assert status == 2 and lines[-1].startswith("fix this first: out: Not a directory")


def test_ranks_that_differ_are_a_problem_to_fix(tiny, capsys):
    status, lines = check(tiny(), capsys, software=lambda rank: SOFTWARE | ({"torch": "1"} if rank == 2 else {}))
    assert status == 2 and "has torch 1, rank 0 has 2; give every node the same environment" in lines[-1]
    assert "rank 2 on" in lines[-1] and any("rank 0, 1" in line and "rank 2" in line for line in lines)
    other = dataclasses.replace(tiny(), seed=9)
    status, lines = check(tiny(), capsys, configs={1: other})
    assert status == 2 and "rank 1 on" in lines[-1] and "a different configuration" in lines[-1]


def test_a_missing_device_is_a_problem_to_fix(tiny, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    status, lines = check(tiny(placement__device="cuda"), capsys)
    assert status == 2 and "rank 0 on" in lines[-1] and "torch sees no GPU" in lines[-1]


def test_a_rank_that_may_open_too_few_files_is_reported_first(tiny, capsys, monkeypatch):
    monkeypatch.setattr(rooms, "getrlimit", lambda kind: (24, 24))
    status, lines = check(tiny(placement__device="cuda", data__name="cinic10"), capsys)
    assert status == 2 and "this rank may open 24 files at once; expected at least 64: ulimit -n 64" in lines[-1]


def test_features_that_do_not_fit_are_a_problem_to_fix(tiny, capsys, monkeypatch):
    prepare(tiny().data, lambda done, total: None)
    monkeypatch.setattr(rooms, "available_memory_mib", lambda: 0.1)  # 66 features of 4 KiB are 0.26 MiB
    status, lines = check(tiny(), capsys)
    assert status == 2 and "bank.memory_mib" in lines[-1]
    for limit in (0.01, 0):  # 0: all of it on disk
        assert check(tiny(bank__memory_mib=limit), capsys)[0] == 0
    assert check(tiny(wire__codec="int4"), capsys)[0] == 0
    assert check(tiny(algorithm="fedavg"), capsys)[0] == 0  # no features
    monkeypatch.setattr(rooms, "available_memory_mib", lambda: 0.4)
    assert check(tiny(), capsys)[0] == 0
    assert check(tiny(algorithm="fedgkt_async"), capsys)[0] == 2  # a last and a next upload of each client


@pytest.mark.parametrize(
    ("where", "advice"),
    [
        ("SLURM_MEM_PER_CPU", "set sbatch --mem=2G, or fewer ranks a node"),
        ("the node's memory", "take more nodes or fewer ranks, smaller batches, or a lower bank.memory_mib"),
        ("its control group's memory.max", "raise that limit, or start fewer ranks on the node"),
    ],
)
def test_ranks_that_need_more_memory_than_allowed_are_reported_with_advice(where, advice, tiny, capsys, monkeypatch):
    monkeypatch.setattr(rooms, "limit_of_node", lambda: (1000.0, where))
    status, lines = check(tiny(), capsys)
    assert status == 2
    assert re.search(rf"3 ranks on \S+ need about 1\.[34] GiB of memory, more than the 1\.0 GiB of {where}", lines[-1])
    assert lines[-1].endswith(advice)


@pytest.mark.parametrize(("clients", "idle"), [(1, "1 of 2 workers have nothing to do"), (2, None)])
def test_workers_without_clients_are_noted(clients, idle, tiny, capsys):
    status, lines = check(tiny(clients=clients), capsys)
    notes = [line for line in lines if "nothing to do" in line]
    assert status == 0 and (idle in notes[0] if idle else not notes)


def test_a_single_rank_is_refused_with_advice(tiny, capsys):
    status, lines = check(tiny(), capsys, ranks=1)
    assert status == 2 and "mpirun -np 5" in lines[-1]


def test_a_worker_that_returns_other_bytes_is_a_problem_to_fix(tiny, capsys, monkeypatch):
    equal = torch.equal  # of bytes; the trial of the networks compares numbers
    monkeypatch.setattr(rooms.torch, "equal", lambda a, b: a.dtype != torch.uint8 and equal(a, b))
    status, lines = check(tiny(), capsys)
    assert status == 2 and "rank 1 has returned different bytes" in lines[-1]
