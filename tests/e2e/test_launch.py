"""Starting a run: make's variables, the paper's command line, host files and GPU maps."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from gkt_mpi.config import parse
from gkt_mpi.placement import gpu_from_map
from tests.conftest import ROOT, read_metrics
from tests.launch import run

VENV = str(Path(sys.executable).parent.parent)
PAPER_LINE = "0 cifar10 homo 200 1 20 Adam 0.001 1 0 resnet56 fedml_resnet56_homo_cifar10 ./data/cifar10 256".split()
POSITIONS = (
    "GPU DATASET DISTRIBUTION ROUND EPOCH_CLIENT EPOCH_SERVER OPTM LR TRAIN_OR_NOT DISTILL_ON_SERVER CLIENT_MODEL NAME "
    "DATA_DIR BATCH_SIZE"
).split()


@pytest.fixture
def launcher(tmp_path):
    """Return a launcher that only records its arguments and the visible GPUs."""
    path = tmp_path / "a launcher"
    path.write_text('#!/bin/sh\n[ "$1" = --version ] && exit\nprintf "%s\\n" "${CUDA_VISIBLE_DEVICES-none}" "$@"\n')
    path.chmod(0o755)
    return str(path)


def make_n(*words):
    """Return the configuration and the number of ranks that `make` with these words would run."""
    done = run(["make", "-n", *words, f"VENV={VENV}"])
    assert done.status == 0, done.err
    command = shlex.split(done.out.splitlines()[-1])
    assert command[command.index("sh") + 1] == "launch/mpirun.sh"
    return parse(command[command.index("gkt_mpi.main") + 1 :]), int(command[command.index("-np") + 1])


def test_the_variables_of_make_reach_the_configuration():
    knobs = "NP=21 PARTITION=hetero ALPHA=0.3 SERVER=resnet110 ROUNDS=100 SEED=1".split()
    for data in ("cifar10", "cifar100", "cinic10"):
        config, ranks = make_n(data, *knobs)
        assert (config.data.name, config.data.partition, config.data.alpha) == (data, "hetero", 0.3)
        assert (config.server.model, config.rounds, config.seed, ranks) == ("resnet110", 100, 1, 21)
        assert config.name == f"{data}-hetero-alpha0.3-resnet110-seed1"  # one folder for each combination
        plain, ranks = make_n(data)
        assert (plain, ranks) == (parse(["--config", str(ROOT / f"launch/configs/{data}.yaml"), "--out=runs"]), 21)
    assert make_n("cifar10", "ROUNDS=300")[0].name == "cifar10"  # the same run, extended
    assert make_n("cifar10", "ARGS=--seed 5", "SEED=1")[0].seed == 5


def test_digits_takes_the_variables_and_keeps_its_folder_and_never_resumes():
    plain, ranks = make_n("digits")
    config = parse(["--config", str(ROOT / "launch/configs/digits.yaml"), "--out=runs", "--checkpoint.resume=never"])
    assert (plain, ranks) == (config, 5)
    config, ranks = make_n("digits", "ROUNDS=2", "SEED=5", "PARTITION=hetero", "ALPHA=0.1", "SERVER=resnet11", "NP=3")
    assert (config.rounds, config.seed, config.data.partition, config.data.alpha) == (2, 5, "hetero", 0.1)
    assert (config.server.model, config.checkpoint.resume, ranks) == ("resnet11", "never", 3)
    assert config.name == "digits-hetero-alpha0.1-resnet11-seed5"
    assert make_n("digits", "ARGS=--rounds 4", "ROUNDS=3")[0].rounds == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cifar10", "PARTITON=hetero"], "no variable PARTITON; did you mean PARTITION?"),
        (["digits", "seed=5"], "no variable seed; did you mean SEED?"),
        (["run", "CONFIG=launch/configs/digits.yaml", "ROUND=3"], "did you mean ROUNDS?"),
        (["cifar10", "CLIENTS=16", "PARTITION=hetero"], 'did you mean ARGS="--clients 16"?'),
        (
            ["cifar10", "CUDA_VISIBLE_DEVICES=0"],
            "goes before make: CUDA_VISIBLE_DEVICES=0 make",
        ),
        (["-n", "cifar10", "PARTITON=hetero"], "no variable PARTITON"),
        (["SEDE=1"], "no variable SEDE; did you mean SEED?"),
        (["cifar10", "SEEDS=3"], "SEEDS has no effect on cifar10; it is for paper compare"),
        (["paper", "SEED=3"], "SEED has no effect on paper; it is for digits"),
        (["digits", "CONFIG=launch/configs/cifar10.yaml"], "CONFIG has no effect on digits; it is for run"),
        (["env", "JSON=x"], "JSON has no effect on env; it is for bench-wire"),
    ],
    ids=str,
)
def test_a_variable_that_make_would_not_read_is_refused_in_one_line(words, message, launcher):
    done = run(["make", *words, f"VENV={VENV}", f"MPIRUN={launcher}"], timeout_s=60)
    assert (done.status, done.out) == (2, ""), done.err
    assert message in done.err and done.err.count("\n") == 1, done.err


def test_environment_variables_are_not_taken_for_make_variables():
    environment = {"PARTITON": "hetero", "CLIENTS": "16", "SEEDS": "3", "MAKELEVEL": "1"}
    done = run(["make", "-n", "digits", f"VENV={VENV}"], env=environment, timeout_s=60)
    assert done.status == 0 and "hetero" not in done.out, done.err
    done = run(["make", "help", "SEED=1"], timeout_s=60)
    assert done.status == 0 and "make TARGET" in done.out, done.err


def test_any_configuration_runs_by_make_and_none_is_a_clear_error():
    config, ranks = make_n("run", "CONFIG=launch/configs/paper/cinic10_hetero_resnet110.yaml", "SEED=2", "NP=9")
    assert (config.name, config.seed, config.clients, ranks) == ("cinic10_hetero_resnet110-seed2", 2, 16, 9)
    done = run(["make", "run"])
    assert done.status == 2 and "CONFIG=" in done.err


def test_make_paper_lists_every_cell_and_seed_of_the_main_table(tmp_path):
    done = run(["make", "paper", "SEEDS=2", f"VENV={VENV}", f"OUT={tmp_path}"])
    assert (done.status, done.err) == (0, ""), done
    names = re.findall(r"^to do +(\S+)-[01]$", done.out, flags=re.MULTILINE)
    assert len(names) == done.out.count("\n") == 2 * len(set(names))
    found = [parse(["--config", str(ROOT / f"launch/configs/paper/{name}.yaml")]) for name in set(names)]
    cells = {(c.algorithm, c.data.name, c.data.partition, c.server.model) for c in found}
    counted = [sum(c.algorithm == name for c in found) for name in ("fedgkt", "fedavg", "centralized", "standalone")]
    assert counted == [3 * 2 * 2, 3 * 2 * 2, 3 * 2, 3]  # the last one: the edge's model, centralized
    assert len(found) == len(cells) == sum(counted)
    assert not list(tmp_path.iterdir())


def test_make_paper_runs_the_grid_with_the_variables_of_make(tmp_path):
    """The launcher fails at once; what it was given is in the log of each run."""
    path = tmp_path / "a launcher"
    path.write_text('#!/bin/sh\n[ "$1" = --version ] && exit\necho "$*"\nexit 7\n')
    path.chmod(0o755)
    words = ["NP=3", "MPIFLAGS=--map-by node", f"MPIRUN={path}", f"OUT={tmp_path}/o u t", "ARGS=--seeds 1"]
    done = run(["make", "paper", "RUN=1", f"VENV={VENV}", *words])
    assert done.status == 2 and done.err.count("failed: status 7") == 12 + 12 + 6 + 3, done
    logs = [file.read_text() for file in (tmp_path / "o u t/paper/logs").iterdir()]
    assert all(log.startswith("-np 3 --map-by node ") for log in logs) and len(logs) == 12 + 12 + 6 + 3
    assert all(log.endswith(f"--out={tmp_path}/o u t/paper\n") and "--seed=0" in log for log in logs)


def run_paper_line(*words, **env):
    return run(["sh", "launch/run_FedGKT.sh", *words], env={"VENV": VENV, "CUDA_VISIBLE_DEVICES": ""} | env)


@pytest.mark.parametrize("data", ["cifar10", "cifar100", "cinic10"])
def test_the_papers_command_line_means_what_it_says(data, launcher):
    words = [word.replace("cifar10", data) for word in PAPER_LINE]
    done = run_paper_line(*words, MPIRUN=launcher)
    assert done.status == 0, done.err
    visible, *given = done.out.splitlines()
    config = parse(given[given.index("gkt_mpi.main") + 1 :])
    assert (visible, given[given.index("-np") + 1]) == ("", "17")
    assert (config.name, config.data.name) == (f"fedml_resnet56_homo_{data}", data)
    paper = parse(["--config", str(ROOT / f"launch/configs/paper/{data}_homo_resnet56.yaml")])
    for group in ("client", "server", "distill"):
        assert getattr(config, group) == getattr(paper, group)
    assert (config.rounds, config.clients, config.data.partition) == (200, 16, "homo")
    assert config.data.dir == f"./data/{data}"


def test_every_position_of_the_papers_command_line_is_used(launcher):
    words = "1 cinic10 hetero 7 3 4 SGD 0.05 0 1 resnet110 mine dir 32".split()
    done = run_paper_line(*words, MPIRUN=launcher, CLIENTS="8", CUDA_VISIBLE_DEVICES="4,5,7", OUT="else where")
    visible, *given = done.out.splitlines()
    config = parse(given[given.index("gkt_mpi.main") + 1 :])
    assert (visible, given[given.index("-np") + 1], config.clients) == ("5,7", "9", 8)
    assert (config.data.name, config.data.partition, config.rounds, config.data.dir) == ("cinic10", "hetero", 7, "dir")
    assert (config.client.epochs, config.server.epochs) == (0, 4)  # TRAIN_OR_NOT is 0
    for side in (config.client, config.server):
        found = (side.optimizer, side.lr, side.weight_decay, side.batch_size)
        assert found == ("sgd", 0.05, 5e-4, 32)
    assert (config.distill.on_server, config.server.model, config.name) == (True, "resnet110", "mine")
    assert config.out == "else where"


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (1, "x", "GPU (1) is 'x'"),
        (1, "3", "fewer GPUs"),
        (2, "cifar11", "DATASET (2) is 'cifar11'; expected one of: cifar10 cifar100 cinic10"),
        (3, "iid", "DISTRIBUTION (3)"),
        (4, "0", "ROUND (4)"),
        (5, "1.5", "EPOCH_CLIENT (5)"),
        (6, "", "EPOCH_SERVER (6)"),
        (7, "AdamW", "OPTM (7)"),
        (8, "fast", "LR (8)"),
        (8, "0.0", "LR (8)"),
        (9, "yes", "TRAIN_OR_NOT (9)"),
        (10, "2", "DISTILL_ON_SERVER (10)"),
        (11, "resnet57", "CLIENT_MODEL (11)"),
        (12, "a/b", "NAME (12)"),
        (13, "", "DATA_DIR (13)"),
        (14, "-1", "BATCH_SIZE (14)"),
        (15, "257", "'257' follows the fourteen"),
    ],
)
def test_a_wrong_position_is_one_line_that_names_it(position, value, message, launcher):
    words = [*PAPER_LINE[: position - 1], value, *PAPER_LINE[position:]]
    done = run_paper_line(*words, MPIRUN=launcher, CUDA_VISIBLE_DEVICES="0,1")
    assert (done.status, done.out) == (2, "")
    assert message in done.err and done.err.count("\n") == 1


@pytest.mark.parametrize("given", range(14))
def test_a_missing_position_is_named_and_all_are_explained(given):
    done = run_paper_line(*PAPER_LINE[:given])
    assert done.status == 2
    assert all(f" {name} " in done.out + done.err for name in POSITIONS)
    if given:
        assert done.err.splitlines()[-1].endswith(f"{POSITIONS[given]} ({given + 1}) is missing")


@pytest.mark.grid
def test_the_papers_command_line_runs_under_nohup_from_another_folder(tmp_path, real_images):
    """A whole run on real images, as in the paper's README: in the background, its output in a file."""
    line = f"0 cifar10 hetero 1 1 1 Adam 0.001 1 0 resnet56 nohup '{real_images}' 256"
    smaller = "--data.limit 80 --data.test_limit 20 --placement.device cpu"
    command = f"nohup sh '{ROOT}/launch/run_FedGKT.sh' {line} {smaller} > ./log.txt 2>&1 & wait $!"
    done = run(["sh", "-c", command], cwd=tmp_path, env={"VENV": VENV, "CLIENTS": "4", "NP": "3"})
    log = (tmp_path / "log.txt").read_text()
    assert done.status == 0, log
    (record,) = read_metrics(tmp_path / "runs" / "nohup")
    assert record["upload_bytes"] > 80 * 65536 and "final test accuracy" in log


@pytest.mark.parametrize("hosts", ["localhost", "two_nodes", "four_gpus_a_node", "mix"])
def test_a_gpu_map_gives_a_gpu_to_every_rank_that_its_host_file_starts(hosts):
    lines = (ROOT / "hostfiles" / hosts).read_text().splitlines()
    slots = {line.split()[0]: int(line.split("=")[1]) for line in lines if not line.startswith("#")}
    gpu_map = yaml.safe_load((ROOT / "hostfiles" / f"{hosts}.gpus.yaml").read_text())
    assert sum(slots.values()) == 21
    for host, ranks in slots.items():
        if host == "node3" and hosts == "mix":
            assert host not in gpu_map  # it has no GPU
            continue
        gpus = [gpu_from_map(gpu_map, f"{host}.cluster.local", rank, ranks, 4) for rank in range(ranks)]
        assert gpus == sorted(gpus) and set(gpus) == set(range(len(gpu_map[host])))
    server_gpu = gpu_from_map(gpu_map, next(iter(slots)), 0, next(iter(slots.values())), 4)
    assert server_gpu == 0


@pytest.mark.parametrize(
    ("limit", "words", "needed"),
    [
        (24, ["-np", "5"], 52),
        (100, ["--bind-to", "none", "-n", "21"], 116),
        (20, ["-np=1"], 36),
        (40, ["-np", "500", "--hostfile", "hosts"], 64),
    ],
)
def test_too_few_open_files_for_the_launcher_is_one_line(limit, words, needed, launcher):
    """mpirun itself exits with status 186 and no message."""
    line = f'ulimit -n {limit}; exec sh launch/mpirun.sh "$@"'
    done = run(["sh", "-c", line, "sh", *words, "python"], env={"VENV": VENV, "MPIRUN": launcher}, timeout_s=60)
    assert (done.status, done.out) == (2, "")
    expected = f"gkt_mpi: this job may open {limit} files at once, and mpirun needs {needed}; try: ulimit -n {needed}"
    assert expected in done.err and done.err.count("\n") == 1


def test_a_soft_limit_of_open_files_is_raised_where_it_may(launcher):
    line = 'ulimit -Sn 24; exec sh launch/mpirun.sh "$@"'
    done = run(["sh", "-c", line, "sh", "-np", "5", "x"], env={"VENV": VENV, "MPIRUN": launcher}, timeout_s=60)
    assert (done.status, done.out.splitlines()[-1]) == (0, "x"), done.err
    line = 'ulimit -n 52; exec sh launch/mpirun.sh "$@"'
    done = run(["sh", "-c", line, "sh", "-np", "5", "x"], env={"VENV": VENV, "MPIRUN": launcher}, timeout_s=60)
    assert (done.status, done.out.splitlines()[-1]) == (0, "x"), done.err


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux counts so")
def test_as_many_open_files_as_the_wrapper_asks_for_are_enough():
    line = 'ulimit -n 52; exec sh launch/mpirun.sh "$@"'
    done = run(["sh", "-c", line, "sh", "-np", "5", "python", "-c", "print(1)"], env={"VENV": VENV}, timeout_s=120)
    assert (done.status, done.out.split()) == (0, ["1"] * 5), done.err


@pytest.mark.parametrize("status", [9, 255])
def test_a_rank_killed_under_another_mpi_is_reported_with_how_to_resume(status, tmp_path):
    """MPICH (9) and Intel MPI (255) kill the server, too, before it can print anything."""
    path = tmp_path / "mpiexec"
    end = f'printf began >"${{GKT_MPI_STATUS_FILE#*:}}"\nexit {status}\n'
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit\n{end}')
    path.chmod(0o755)
    done = run(["sh", "launch/mpirun.sh", "-np", "2", "x"], env={"VENV": VENV, "MPIRUN": str(path)}, timeout_s=60)
    assert done.status == 1
    assert done.err == "gkt_mpi: a rank was killed; start the same command again to resume\n"
    assert "BAD TERMINATION" in (ROOT / "docs/faults.md").read_text()
