"""The batch scripts of launch/ on a real Slurm of two nodes (cluster.py), submitted as by a user."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, figures, read_metrics
from tests.slurm.cluster import ask, missing, slurm, wait_until

VENV = str(Path(sys.executable).parent.parent)
SMALL = (
    "--rounds 1 --server.epochs 1 --data.limit 60 --data.test_limit 20 --placement.device cpu --placement.threads 1 "
    "--compute.precision float32 --compute.compile false"
).split()

SYNTHETIC = (
    "--data.name=synthetic --data.synthetic.size=8 --clients=4 --client.batch_size=16 --server.batch_size=16".split()
)
ROUNDS = 300  # two minutes


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """What a login shell on the cluster would have."""
    if lacking := missing():
        pytest.skip(f"no Slurm can be started: {lacking}")
    with slurm(tmp_path_factory.mktemp("slurm")) as found:
        yield found | {"VENV": VENV, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def submit(environment, tmp_path):
    """A function that submits a script of launch/ from the project's folder and returns the job's number."""

    def sbatch(options: list[str], script: str, *arguments: str, **variables: str) -> str:
        command = ["sbatch", "--parsable", f"--output={tmp_path}/%x-%j.out", *options, f"launch/{script}", *arguments]
        env = environment | {"OUT": f"{tmp_path}/the runs"} | variables
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return sbatch


def field(environment, job: str, name: str) -> str:
    words = ask(environment, "scontrol", "show", "job", "--oneliner", job).split()
    return next(word.split("=", 1)[1] for word in words if word.startswith(f"{name}="))


def wait_for_end(environment, job: str, timeout_s: float = 240) -> str:
    """Wait until a job is done and return its state."""
    ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
    try:
        wait_until(lambda: field(environment, job, "JobState") in ended, timeout_s, f"job {job} has not ended")
    except AssertionError as error:
        log = Path(field(environment, job, "StdOut"))
        raise AssertionError(f"{error}; it has printed:\n{log.read_text() if log.exists() else ''}") from None
    return field(environment, job, "JobState")


def output(tmp_path: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(tmp_path.glob("*.out")))


@pytest.mark.parametrize(
    ("data", "options", "where"),
    [
        ("cifar10", ["--ntasks=3"], "3 ranks on 1 node"),
        ("cifar100", ["--nodes=2", "--ntasks=4", "--gpus-per-node=2"], "4 ranks on 2 node"),
        ("cinic10", ["--nodes=2", "--ntasks=3", "--gpus-per-task=1"], "3 ranks on 2 node"),
    ],
)
def test_a_job_completes(data, options, where, environment, submit, tmp_path, real_images):
    job = submit(options, f"{data}.sbatch", *SMALL, f"--data.dir={real_images}")
    assert wait_for_end(environment, job) == "COMPLETED", output(tmp_path)
    said = (tmp_path / f"{data}-{job}.out").read_text()
    assert where in said and "final test accuracy" in said
    summary = json.loads((tmp_path / "the runs" / data / "summary.json").read_text())
    assert (summary["status"], summary["rounds"]) == ("completed", 1)


def documented_lines():
    text = (ROOT / "README.md").read_text() + (ROOT / "launch/cifar10.sbatch").read_text()
    return sorted(set(re.findall(r"^(?:#   )?((?:\w+=\S+ )*sbatch [^#\n]*?\S)(?=   |\n)", text, flags=re.MULTILINE)))


@pytest.mark.parametrize("line", documented_lines())
def test_slurm_takes_a_documented_line(line, environment):
    if "--nodes=6" in line:
        line = line.replace("--nodes=6 --ntasks=21", "--nodes=2 --ntasks=8")  # there are two nodes with four GPUs
    variables, options = line.split("sbatch ", 1)
    command = ["sbatch", "--test-only", *shlex.split(options)]
    environment = environment | dict(word.split("=", 1) for word in shlex.split(variables))
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("data", ["cifar10", "cifar100", "cinic10"])
def test_slurm_takes_a_script_as_it_is(data, environment):
    done = subprocess.run(
        ["sbatch", "--test-only", f"launch/{data}.sbatch"], cwd=ROOT, env=environment, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 0 and "using 21 processors on nodes node1" in done.stderr, done.stderr


@pytest.mark.timeout(1200)
def test_a_warned_job_requeues_itself_and_ends_with_the_results_of_an_undisturbed_one(environment, submit, tmp_path):
    """Slurm's own warning, before a time limit that is too short for the run; the undisturbed run has fewer ranks."""
    work = [*SMALL, *SYNTHETIC, f"--data.dir={tmp_path}/images", f"--rounds={ROUNDS}"]
    # Slurm checks limits every half minute: the warning comes 15 to 45 s after the start.
    warned = submit(["--ntasks=3", "--time=2", "--signal=B:USR1@75"], "cifar10.sbatch", *work, NAME="warned")
    calm = submit(["--ntasks=2", "--time=20"], "cifar10.sbatch", *work, NAME="calm")
    wait_until(lambda: field(environment, warned, "Restarts") != "0", 120, "the job was not queued again")
    ask(environment, "scontrol", "update", f"JobId={warned}", "TimeLimit=20")  # once is enough
    for job in (calm, warned):
        assert wait_for_end(environment, job, 500) == "COMPLETED", output(tmp_path)
    said = (tmp_path / f"cifar10-{warned}.out").read_text()
    assert (
        said.count("the time limit is near")
        == said.count("requeued, to resume")
        == int(field(environment, warned, "Restarts"))
        == 1
    )
    assert "resumed after round" in said
    runs = [read_metrics(tmp_path / "the runs" / name) for name in ("calm", "warned")]
    assert figures(runs[0]) == figures(runs[1]) and len(runs[1]) == ROUNDS
    summaries = [json.loads((tmp_path / "the runs" / name / "summary.json").read_text()) for name in ("calm", "warned")]
    assert summaries[0]["final_test_accuracy"] == summaries[1]["final_test_accuracy"]


@pytest.mark.timeout(900)
def test_a_job_whose_step_is_killed_ends_and_resumes_when_submitted_again(environment, submit, tmp_path):
    """The step is what starts ranks on the second node. The results are those of a job that nobody disturbed."""
    work = [*SMALL, *SYNTHETIC, f"--data.dir={tmp_path}/images", "--rounds=60"]
    two_nodes = ["--nodes=2", "--ntasks=3", "--time=20"]
    struck = submit(two_nodes, "cifar10.sbatch", *work, NAME="struck")
    log = tmp_path / "the runs" / "struck" / "metrics.jsonl"
    wait_until(lambda: log.exists() and len(log.read_text().splitlines()) > 2, 240, "no round was done")
    ask(environment, "scancel", "--signal=KILL", f"{struck}.0")
    state = wait_for_end(environment, struck)
    assert "Traceback" not in output(tmp_path), output(tmp_path)
    if state != "COMPLETED":  # if the ranks that were left could not go on
        assert "start the same command again" in output(tmp_path), output(tmp_path)
        again = submit(two_nodes, "cifar10.sbatch", *work, NAME="struck")
        assert wait_for_end(environment, again) == "COMPLETED", output(tmp_path)
    calm = submit(["--ntasks=2", "--time=20"], "cifar10.sbatch", *work, NAME="calm")
    assert wait_for_end(environment, calm) == "COMPLETED", output(tmp_path)
    runs = [read_metrics(tmp_path / "the runs" / name) for name in ("struck", "calm")]
    keys = ("round", "test_accuracy", "server_train_loss", "client_train_loss")
    assert [[r.get(key) for key in keys] for r in runs[0]] == [[r.get(key) for key in keys] for r in runs[1]]
    assert len(runs[0]) == 60


def test_a_job_without_progress_is_not_requeued_for_ever(environment, submit, tmp_path):
    """No round is completed before the warning."""
    work = [*SMALL, *SYNTHETIC, f"--data.dir={tmp_path}/images", "--server.epochs=100000"]
    job = submit(["--ntasks=2", "--time=10"], "cifar10.sbatch", *work)
    log = tmp_path / f"cifar10-{job}.out"

    def is_training(start):
        return log.exists() and "server trains" in log.read_text().partition(f", start {start}:")[2]

    for start in (1, 2):  # warned before, the first would leave nothing, and the second more than it
        wait_until(lambda n=start: is_training(n), 200, "does not train")
        ask(environment, "scancel", "--batch", "--signal=USR1", job)
    assert wait_for_end(environment, job) == "FAILED", output(tmp_path)
    assert log.read_text().count("requeued, to resume") == 1
    assert log.read_text().count("not requeued, because no round was completed") == 1
    assert field(environment, job, "ExitCode") == "75:0"


def test_an_array_runs_a_seed_each_in_a_folder_each(environment, submit, tmp_path):
    work = [*SMALL, *SYNTHETIC, f"--data.dir={tmp_path}/images"]
    job = submit(["--ntasks=2", "--array=3,5"], "cifar100.sbatch", *work)
    for seed in (3, 5):
        assert wait_for_end(environment, f"{job}_{seed}") == "COMPLETED", output(tmp_path)
    configs = [(tmp_path / "the runs" / f"cifar100-seed{seed}" / "config.yaml").read_text() for seed in (3, 5)]
    assert [f"seed: {seed}\n" in config for seed, config in zip((3, 5), configs, strict=True)] == [True, True]
    losses = [read_metrics(tmp_path / "the runs" / f"cifar100-seed{s}")[0]["server_train_loss"] for s in (3, 5)]
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("options", "arguments", "variables", "message"),
    [
        (["--ntasks=1"], [], {}, "a server and a worker need at least two ranks, but this job has 1"),
        (["--nodes=2", "--ntasks=1"], [], {}, "try: sbatch --ntasks=21"),  # Slurm makes it one node
        (["--ntasks=2"], ["--name", "x"], {}, "choose the run folder by NAME="),
        (["--ntasks=2"], [], {"VENV": "/no/such"}, "there is no Python environment /no/such; run make env"),
        (["--ntasks=2"], ["--server.model=resnet20"], {}, "server.model"),
    ],
)
def test_a_job_that_cannot_work_ends_at_once_with_one_clear_line(
    options, arguments, variables, message, environment, submit, tmp_path
):
    job = submit(options, "cinic10.sbatch", *arguments, **variables)
    assert wait_for_end(environment, job) == "FAILED"
    assert message in (tmp_path / f"cinic10-{job}.out").read_text()
    assert field(environment, job, "ExitCode") == "2:0"


def test_ranks_that_do_not_fit_on_the_nodes_are_refused_at_once_by_slurm(environment):
    command = ["sbatch", "--nodes=2", "--ntasks-per-node=4", "launch/cifar10.sbatch"]  # of 21 ranks
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "Requested node configuration is not available" in done.stderr


def test_nodes_that_the_ranks_do_not_fill_are_a_clear_error(environment):
    """Slurm gives a job no more nodes than ranks, unless somebody sets its variables."""
    env = environment | {"SLURM_NTASKS": "2", "SLURM_JOB_NUM_NODES": "3", "SLURM_JOB_ID": "1"}
    command = ["bash", "launch/slurm_job.sh", "launch/configs/cifar10.yaml"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "2 ranks do not fill 3 nodes" in done.stderr
