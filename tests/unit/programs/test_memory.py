"""Estimated memory compared with that of a short run; limits as written by Slurm, control groups and the kernel."""

import re

import pytest

from gkt_mpi.config import parse
from gkt_mpi.data.source import DataSize
from gkt_mpi.data.sources import DATA_SOURCES
from gkt_mpi.programs.memory import limit_of_node, needed_mib
from tests.conftest import ROOT, arguments, read_metrics
from tests.launch import mpirun

CIFAR10 = DATA_SOURCES["cifar10"].size


def need(*words, clients=20, images=CIFAR10, is_server=False, has_gpu=False):
    config = parse(["--config", str(ROOT / "launch/configs/cifar10.yaml"), f"--clients={clients}", *words])
    return needed_mib(config, images, is_server, has_gpu)


def test_the_estimate_covers_a_runs_memory_and_not_much_more(tmp_path):
    """Images of CIFAR-10's size; the peaks are measured by the operating system."""
    sizes = {"train": 256, "test": 64, "size": 32}
    changes = {f"data__synthetic__{name}": value for name, value in sizes.items()}
    changes |= {"rounds": 1, "clients": 1, "server__batch_size": 128, "client__batch_size": 128}
    words = arguments(tmp_path, **changes)
    done = mpirun(2, ["-m", "gkt_mpi.main", *words], timeout_s=120)
    assert done.status == 0, done.err
    (record,) = read_metrics(tmp_path / "runs" / "run")
    images = DataSize(256, 10, (32, 32, 3))
    for name, is_server in (("server_peak_mib", True), ("worker_peak_mib", False)):
        needed = needed_mib(parse(words), images, is_server, False)
        assert 0.9 * record[name] < needed < 2 * record[name] + 100, (name, record[name], needed)


def test_the_memory_need_grows_with_its_causes():
    server, worker = need(is_server=True), need()
    assert server - need("--bank.memory_mib=125", is_server=True) == pytest.approx(50_000 / 16 - 125)  # 64 KiB each
    assert server - need("--wire.codec=bfloat16", is_server=True) == pytest.approx(50_000 / 32)
    assert need("--server.batch_size=512", is_server=True) > 1.3 * server
    assert need("--server.model=resnet110", is_server=True) > 1.3 * server
    assert need("--client.batch_size=512") > 1.4 * worker
    assert need("--algorithm=fedavg") > 2 * worker
    assert need("--algorithm=standalone", is_server=True) < 1000


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "cinic10"])
def test_the_batch_script_asks_slurm_for_the_memory_of_its_ranks(name):
    """Slurm's default is often one or two GiB per processor, and a server that exceeds it is killed."""
    script = (ROOT / "launch/fedgkt.sbatch").read_text()
    (asked,) = re.findall(r"^#SBATCH --mem=(\d+)G$", script, flags=re.MULTILINE)
    (ranks,) = re.findall(r"^#SBATCH --ntasks=(\d+)$", script, flags=re.MULTILINE)
    config = parse(["--config", str(ROOT / f"launch/configs/{name}.yaml")])
    needed = sum(needed_mib(config, DATA_SOURCES[name].size, rank == 0, False) for rank in range(int(ranks))) / 1024
    assert 1.05 * needed < int(asked) < 1.3 * needed


def limit(tmp_path, files=(), **environment):
    for name, text in {"proc/meminfo": "MemTotal:  33554432 kB\n", **dict(files)}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return limit_of_node(environment, tmp_path / "proc", tmp_path / "groups")


@pytest.mark.parametrize(
    ("files", "environment", "expected"),
    [
        ({}, {}, (32768, "the node's memory")),
        ({}, {"SLURM_MEM_PER_NODE": "8000"}, (8000, "SLURM_MEM_PER_NODE")),
        ({}, {"SLURM_MEM_PER_NODE": "0"}, (32768, "the node's memory")),  # --mem=0: all of it
        ({}, {"SLURM_MEM_PER_CPU": "1024", "SLURM_CPUS_ON_NODE": "21"}, (21504, "SLURM_MEM_PER_CPU")),
        ({"proc/self/cgroup": "0::/a/b\n", "groups/a/b/memory.max": "max\n", "groups/a/memory.max": f"{2**31}\n"}, {},
         (2048, "its control group's memory.max")),
        ({"proc/self/cgroup": "5:cpu:/a\n4:memory:/a\n0::/\n", "groups/memory/a/memory.limit_in_bytes": f"{2**30}\n",
          "groups/memory/memory.limit_in_bytes": "9223372036854771712\n"}, {},
         (1024, "its control group's memory.limit_in_bytes")),
        ({"proc/self/cgroup": "nonsense"}, {}, (32768, "the node's memory")),
    ],
)  # fmt: skip
def test_the_lowest_limit_counts_wherever_it_is_written(files, environment, expected, tmp_path):
    assert limit(tmp_path, files, **environment) == expected
