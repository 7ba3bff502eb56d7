import os
import sys

import pytest
import torch

from gkt_mpi import placement
from gkt_mpi.errors import ConfigError
from gkt_mpi.placement import PlacementConfig, available_memory_mib, gpu_by_rule, gpu_from_map, place
from tests.conftest import run_in_threads
from tests.launch import run


@pytest.mark.parametrize(
    ("ranks", "gpus", "keep_first", "expected"),
    [
        (3, 1, True, [0, 0, 0]),
        (3, 2, True, [0, 1, 1]),
        (5, 4, True, [0, 1, 2, 3, 1]),
        (9, 8, True, [0, 1, 2, 3, 4, 5, 6, 7, 1]),
        (5, 4, False, [0, 1, 2, 3, 0]),  # a node without the server, or a shared server GPU
        (2, 8, True, [0, 1]),
    ],
)
def test_gpus_go_round_robin_and_the_server_keeps_its_own(ranks, gpus, keep_first, expected):
    assert [gpu_by_rule(rank, gpus, keep_first) for rank in range(ranks)] == expected


def test_a_map_gives_the_number_of_ranks_of_each_gpu():
    gpu_map = {"node-a": [1, 2, 0, 1], "node-b": [3]}
    assert [gpu_from_map(gpu_map, "node-a", rank, 4, 4) for rank in range(4)] == [0, 1, 1, 3]
    assert [gpu_from_map(gpu_map, "node-b", rank, 3, 1) for rank in range(3)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("host", "ranks", "gpus", "message"),
    [("node-c", 4, 4, "no line for host node-c"), ("node-a", 5, 4, "5 ranks"), ("node-a", 4, 2, "sees 2 GPUs")],
)
def test_a_map_that_does_not_fit_is_a_clear_error(host, ranks, gpus, message):
    with pytest.raises(ConfigError, match=message):
        gpu_from_map({"node-a": [1, 2, 0, 1]}, host, 0, ranks, gpus)


def test_a_map_is_read_from_yaml_for_this_host(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(placement.socket, "gethostname", lambda: "node-a")
    path = tmp_path / "map.yaml"
    path.write_text("node-a: [1, 2]\n")
    found = [place(PlacementConfig(gpu_map=str(path)), rank, 3, rank == 0).device for rank in range(3)]
    assert found == [torch.device("cuda", gpu) for gpu in (0, 1, 1)]
    for text in ("[1, 2]", "node-a: 3", "node-a: [x]", "a: ["):
        path.write_text(text)
        with pytest.raises(ConfigError, match="gpu_map"):
            place(PlacementConfig(gpu_map=str(path)), 0, 3, True)


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_the_server_has_its_own_gpu_if_there_are_two_or_more(monkeypatch, count):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    devices = [place(PlacementConfig(), rank, 21, True).device.index for rank in range(21)]
    assert set(devices) == set(range(count))
    assert devices.count(devices[0]) == (1 if count > 1 else 21)
    other_node = [place(PlacementConfig(), rank, 21, False).device.index for rank in range(21)]
    assert max(map(other_node.count, range(count))) - min(map(other_node.count, range(count))) <= 1


def test_without_a_gpu_ranks_share_the_cores(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    for ranks, threads in ((1, 8), (3, 2), (8, 1), (21, 1)):
        found = place(PlacementConfig(), 0, ranks, True)
        assert (found.device.type, found.threads, found.all_threads) == ("cpu", threads, 8)
    assert place(PlacementConfig(threads=3), 0, 8, True) == placement.Placement(torch.device("cpu"), 3, 3)
    with pytest.raises(ConfigError, match="no GPU"):
        place(PlacementConfig(device="cuda"), 0, 2, True)


def test_all_cores_are_used_inside_only():
    found = placement.Placement(torch.device("cpu"), 1, 2)
    found.apply()
    with pytest.raises(ValueError), found.all_cores():
        assert torch.get_num_threads() == 2
        raise ValueError
    assert torch.get_num_threads() == 1


def test_zero_threads_are_refused():
    with pytest.raises(ConfigError, match="placement.threads"):
        PlacementConfig(threads=0)


def test_freed_memory_is_kept_for_the_next_tensor():
    """The pages supplied by the kernel in two training steps of a server model, once the heap stops growing.

    After its first step it still grows in one or two more: fragments differ from step to step.
    """
    program = (
        "import resource, sys, torch\n"
        "from gkt_mpi.models.networks import build_server_model\n"
        "from gkt_mpi.placement import keep_freed_memory\n"
        "if sys.argv[1] == 'ours': keep_freed_memory()\n"
        "model = build_server_model('resnet11', (8, 8, 16), 10, torch.Generator(), torch.device('cpu')).train()\n"
        "for step in range(6):\n"
        "    if step == 4: before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    model(torch.zeros(8, 16, 32, 32)).sum().backward()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    faults = {}
    for which in ("default", "ours"):
        done = run([sys.executable, "-c", program, which])
        assert done.status == 0, done.err
        faults[which] = int(done.out)
    assert faults["ours"] < faults["default"] / 2, faults


def test_without_linuxs_own_functions_and_proc_a_rank_is_placed_and_a_run_trained(monkeypatch, tmp_path, tiny):
    """As on macOS: no affinity, no reserved disk space, no /proc."""
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.delattr(os, "posix_fallocate")
    monkeypatch.setattr(placement, "PROC", tmp_path / "proc")
    assert place(PlacementConfig(device="cpu"), 0, 1, True).threads == os.cpu_count()
    assert available_memory_mib() == pytest.approx(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20)
    assert placement.processor().endswith(f"({torch.backends.cpu.get_cpu_capability()})")
    assert len(run_in_threads(tiny(rounds=1), 2)) == 1
