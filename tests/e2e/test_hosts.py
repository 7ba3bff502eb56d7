"""Several hosts (hosts.py) with a host file, as on a cluster: the same results, and the same fault handling."""

import sys

import pytest

from tests.conftest import arguments
from tests.e2e.hosts import hosts, missing
from tests.e2e.planted import left_behind, plant, results, undisturbed
from tests.launch import mpirun

pytestmark = pytest.mark.grid
NAMES = ["node1", "node2", "node3"]


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    """Return the path of a launch agent that reaches three hosts."""
    if lacking := missing():
        pytest.skip(lacking)
    if " " in sys.prefix:
        pytest.skip("Open MPI starts nothing on other hosts from a folder with a space in its name")
    with hosts(NAMES, tmp_path_factory.mktemp("hosts")) as path:
        yield path


def options(agent, host_file="four_gpus_a_node"):
    """Return mpirun's arguments: a host file of the project, the agent in place of ssh, and rank distribution."""
    return ["--hostfile", f"hostfiles/{host_file}", "--prtemca", "plm_ssh_agent", agent, "--map-by", "node"]


@pytest.fixture(scope="module")
def on_one_host(tmp_path_factory):
    """Return the results on one host."""
    return undisturbed(tmp_path_factory.mktemp("one"))


def said_by_ranks(err):
    """Return the standard error output without a message of Open MPI's launcher when its child is faster.

    Parent and child both put the child into its own process group; the later one fails.
    """
    return "".join(line for line in err.splitlines(True) if "plm:ssh: Warning: setpgid(" not in line)


@pytest.mark.parametrize(
    ("host_file", "expected"),
    [
        ("two_nodes", {"node1": 11, "node2": 10}),
        ("four_gpus_a_node", {"node1": 7, "node2": 7, "node3": 7}),
        ("mix", {"node1": 11, "node2": 8, "node3": 2}),
    ],
)
def test_mpirun_takes_a_host_file_as_it_is(host_file, expected, agent):
    # Open MPI's launcher sometimes waits for ever when all programs have ended before all hosts have reported.
    program = "import socket, time; time.sleep(1); print(socket.gethostname())"
    mpi_options = ["--hostfile", f"hostfiles/{host_file}", "--prtemca", "plm_ssh_agent", agent]
    done = mpirun(21, ["-c", program], 120, mpi_options, [agent, "node1"])
    assert done.status == 0, done.err
    names = done.out.split()
    assert {name: names.count(name) for name in names} == expected


def test_several_hosts_give_the_results_of_one(agent, on_one_host, tmp_path):
    done = plant(4, [], tmp_path, options(agent), [agent, "node1"])
    assert (done.status, said_by_ranks(done.err)) == (0, ""), done.out + done.err
    assert results(tmp_path) == on_one_host


def test_a_worker_that_dies_on_another_host_is_survived(agent, on_one_host, tmp_path):
    faults = ["1,worker in the middle of a block,6,kill", "2,worker while training,4,kill"]
    done = plant(4, faults, tmp_path, options(agent), [agent, "node1"])
    assert done.status == 0, done.out + done.err
    assert results(tmp_path) == on_one_host
    assert "rank 1 has died" in done.out and "rank 2 has died" in done.out
    assert not left_behind(tmp_path)


def check(agent, tmp_path, *changes, ranks=4, env=()):
    program = ["-m", "gkt_mpi.main", "--check", *arguments(tmp_path), *changes]
    return mpirun(ranks, program, 120, options(agent), [agent, "node1"], env=dict(env))


def test_a_check_of_every_rank_shows_the_hosts_and_ends_with_ready(agent, tmp_path):
    done = check(agent, tmp_path)
    assert done.status == 0, done.out + done.err
    rows = [line.split()[:4] for line in done.out.splitlines() if line[:1].isdigit()]
    hosts_of_ranks = ["node1", "node2", "node3", "node1"]
    assert rows == [[str(i), host, "worker" if i else "server", "cpu"] for i, host in enumerate(hosts_of_ranks)]
    assert done.out.splitlines()[-1] == "ready"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["out", "data.dir"])
def test_a_folder_that_a_host_does_not_see_is_a_problem_to_fix(name, agent, tmp_path):
    hidden = tmp_path / ("runs" if name == "out" else "data")
    hidden.mkdir()
    done = check(agent, tmp_path, env={"HIDDEN_ON_node3": str(hidden)})
    assert done.status == 2, done.out + done.err
    expected = f"it does not see the server's {name}, {hidden}; set {name} to a shared folder"
    assert done.out.splitlines()[-1] == f"fix this first: rank 2 on node3: {expected}"


def test_a_worker_that_hangs_on_another_host_is_given_up_and_ends_by_itself(agent, on_one_host, tmp_path):
    """The server cannot kill it, and mpirun waits for it: it prints its stack and exits."""
    faults = ["2,worker while training,4,hang"]
    done = plant(4, faults, tmp_path, options(agent), [agent, "node1"], faults__timeout_s=4)
    assert done.status == 0, done.out + done.err
    assert "rank 2 has not answered for 4 s" in done.out
    assert "most recent call first" in done.err and "plant.py" in done.err
    assert results(tmp_path) == on_one_host
    assert not left_behind(tmp_path)
