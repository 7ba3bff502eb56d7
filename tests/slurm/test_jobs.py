"""The batch script of launch/ on a real Slurm of two nodes (cluster.py), submitted as by a user."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, figures, read_metrics
from tests.slurm.cluster import ask, missing, slurm, wait_until

SCRIPT = "launch/fedgkt.sbatch"
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
    """A function that submits a run from the project's folder and returns the job's number."""

    def sbatch(options: list[str], config: str, *arguments: str, **variables: str) -> str:
        command = ["sbatch", "--parsable", f"--output={tmp_path}/%j.out", *options, SCRIPT, config, *arguments]
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
        ("cinic10", ["--nodes=2", "--ntasks=3"], "3 ranks on 2 node"),
    ],
)
def test_a_job_completes(data, options, where, environment, submit, tmp_path, real_images):
    job = submit(options, data, *SMALL, f"--data.dir={real_images}")
    assert wait_for_end(environment, job) == "COMPLETED", output(tmp_path)
    said = (tmp_path / f"{job}.out").read_text()
    assert where in said and "final test accuracy" in said
    summary = json.loads((tmp_path / "the runs" / data / "summary.json").read_text())
    assert (summary["status"], summary["rounds"]) == ("completed", 1)


def test_a_job_that_is_given_a_container_starts_every_rank_in_it(environment, submit, tmp_path):
    """Instead of Apptainer a program that notes its rank; the images of launch/ cannot be built for a test."""
    program = tmp_path / "apptainer"
    program.write_text(f'#!/bin/sh\ntouch "{tmp_path}/rank-$PMIX_RANK" && shift 3 && exec "$@"\n')
    program.chmod(0o755)
    work = [*SMALL, *SYNTHETIC, f"--data.dir={tmp_path}/images"]
    options = ["--nodes=2", "--ntasks=3"]
    job = submit(options, "digits", *work, CONTAINER=f"{program} exec --nv gkt_mpi.sif")
    assert wait_for_end(environment, job) == "COMPLETED", output(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("rank-*")) == ["rank-0", "rank-1", "rank-2"]


def test_srun_starts_the_ranks_or_one_line_says_that_this_slurm_cannot(environment, submit, tmp_path):
    """Debian's Slurm has the plugin for PMIx, but can use it only where libpmix-dev is installed."""
    command = ["srun", "--mpi=pmix", "true"]
    has_pmix = subprocess.run(command, env=environment, capture_output=True, timeout=60).returncode == 0
    work = [*SMALL, *SYNTHETIC, f"--data.dir={tmp_path}/images"]
    job = submit(["--nodes=2", "--ntasks=3", "--time=10"], "digits", *work, LAUNCHER="srun")
    state = wait_for_end(environment, job)
    said = output(tmp_path)
    if has_pmix:
        assert state == "COMPLETED" and "3 ranks on 2 node" in said and "final test accuracy" in said, said
    else:
        assert state == "FAILED" and len(said.splitlines()) == 1, said
        assert "this Slurm cannot start ranks by srun --mpi=pmix (srun: error: " in said


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_heterogeneous_job_has_its_server_in_the_first_component_and_can_be_requeued(environment, submit, tmp_path):
    """The workers are on the other node; the results are those of a job on one node, after a warning in between."""
    work = [*SMALL, *SYNTHETIC, f"--data.dir={tmp_path}/images", "--rounds=20"]
    options = ["--job-name=two", "--ntasks=1", "--gpus-per-node=1", "--time=20", ":", "--ntasks=2", "--time=20"]
    job = submit(options, "digits", *work)
    log = tmp_path / "the runs" / "two" / "metrics.jsonl"
    wait_until(lambda: log.exists() and len(log.read_text().splitlines()) > 2, 240, "no round was done")
    ask(environment, "scancel", "--batch", "--signal=USR1", job)
    wait_until(lambda: field(environment, job, "Restarts") != "0", 120, "the job was not queued again")
    calm = submit(["--job-name=one", "--ntasks=2", "--time=20"], "digits", *work)
    for each in (job, calm):
        assert wait_for_end(environment, each) == "COMPLETED", output(tmp_path)
    assert "3 ranks on 2 node(s) node1,node2" in output(tmp_path) and "resumed after round" in output(tmp_path)
    runs = [read_metrics(tmp_path / "the runs" / name) for name in ("two", "one")]
    assert figures(runs[0]) == figures(runs[1]) and len(runs[0]) == 20


def documented_lines():
    text = (ROOT / "docs/cluster.md").read_text() + (ROOT / SCRIPT).read_text()
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


@pytest.mark.timeout(1200)
def test_a_warned_job_requeues_itself_and_ends_with_the_results_of_an_undisturbed_one(environment, submit, tmp_path):
    """Slurm's own warning, before a time limit that is too short for the run; the undisturbed run has fewer ranks."""
    work = [*SMALL, *SYNTHETIC, f"--data.dir={tmp_path}/images", f"--rounds={ROUNDS}"]
    # Slurm checks limits every half minute: the warning comes 15 to 45 s after the start.
    warned = submit(["--job-name=warned", "--ntasks=3", "--time=2", "--signal=B:USR1@75"], "cifar10", *work)
    calm = submit(["--job-name=calm", "--ntasks=2", "--time=20"], "cifar10", *work)
    wait_until(lambda: field(environment, warned, "Restarts") != "0", 120, "the job was not queued again")
    ask(environment, "scontrol", "update", f"JobId={warned}", "TimeLimit=20")  # once is enough
    for job in (calm, warned):
        assert wait_for_end(environment, job, 500) == "COMPLETED", output(tmp_path)
    said = (tmp_path / f"{warned}.out").read_text()
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
    two_nodes = ["--job-name=struck", "--nodes=2", "--ntasks=3", "--time=20"]
    struck = submit(two_nodes, "cifar10", *work)
    log = tmp_path / "the runs" / "struck" / "metrics.jsonl"
    wait_until(lambda: log.exists() and len(log.read_text().splitlines()) > 2, 240, "no round was done")
    ask(environment, "scancel", "--signal=KILL", f"{struck}.0")
    state = wait_for_end(environment, struck)
    assert "Traceback" not in output(tmp_path), output(tmp_path)
    if state != "COMPLETED":  # if the ranks that were left could not go on
        assert "start the same command again" in output(tmp_path), output(tmp_path)
        again = submit(two_nodes, "cifar10", *work)
        assert wait_for_end(environment, again) == "COMPLETED", output(tmp_path)
    calm = submit(["--job-name=calm", "--ntasks=2", "--time=20"], "cifar10", *work)
    assert wait_for_end(environment, calm) == "COMPLETED", output(tmp_path)
    runs = [read_metrics(tmp_path / "the runs" / name) for name in ("struck", "calm")]
    keys = ("round", "test_accuracy", "server_train_loss", "client_train_loss")
    assert [[r.get(key) for key in keys] for r in runs[0]] == [[r.get(key) for key in keys] for r in runs[1]]
    assert len(runs[0]) == 60


def test_a_job_without_progress_is_not_requeued_for_ever(environment, submit, tmp_path):
    """No round is completed before the warning."""
    work = [*SMALL, *SYNTHETIC, f"--data.dir={tmp_path}/images", "--server.epochs=100000"]
    job = submit(["--ntasks=2", "--time=10"], "cifar10", *work)
    log = tmp_path / f"{job}.out"

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
    job = submit(["--ntasks=2", "--array=3,5"], "cifar100", *work)
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
        (["--ntasks=2"], ["--name", "x"], {}, "choose the run folder by sbatch --job-name="),
        (["--ntasks=2"], [], {"VENV": "/no/such"}, "there is no Python environment /no/such; run make env"),
        (["--ntasks=2"], ["--server.model=resnet20"], {}, "server.model"),
        (["--ntasks=2", "--gpus-per-task=1"], [], {}, "use --gpus-per-node, and ranks share them"),
        (["--ntasks=2"], [], {"LAUNCHER": "aprun"}, "LAUNCHER is 'aprun'; expected mpirun or srun"),
    ],
)
def test_a_job_that_cannot_work_ends_at_once_with_one_clear_line(
    options, arguments, variables, message, environment, submit, tmp_path
):
    job = submit(options, "cinic10", *arguments, **variables)
    assert wait_for_end(environment, job) == "FAILED"
    assert message in (tmp_path / f"{job}.out").read_text()
    assert field(environment, job, "ExitCode") == "2:0"


def test_a_jobs_log_is_in_the_folder_logs(environment):
    command = ["sbatch", "--parsable", "--ntasks=2", SCRIPT, "cifra10"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    job = done.stdout.strip()
    assert wait_for_end(environment, job) == "FAILED"
    log = ROOT / f"logs/fedgkt-{job}.out"
    said = log.read_text()
    log.unlink()
    assert "there is no configuration 'cifra10'; expected a YAML file or a name" in said


def test_ranks_that_do_not_fit_on_the_nodes_are_refused_at_once_by_slurm(environment):
    command = ["sbatch", "--nodes=2", "--ntasks-per-node=4", SCRIPT, "cifar10"]  # of 21 ranks
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "Requested node configuration is not available" in done.stderr


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"SLURM_NTASKS": "2", "SLURM_JOB_NUM_NODES": "3"}, "2 ranks do not fill 3 nodes"),
        ({"SLURM_HET_SIZE": "3", "SLURM_JOB_NUM_NODES": "1"}, "3 components, the first with 1 node(s)"),
        ({"SLURM_HET_SIZE": "2", "SLURM_JOB_NUM_NODES": "2"}, "2 components, the first with 2 node(s)"),
    ],
)
def test_a_job_of_a_form_that_these_two_nodes_cannot_have_is_a_clear_error(variables, message, environment):
    """Slurm gives a job no more nodes than ranks, and each component of a heterogeneous job nodes of its own."""
    env = environment | variables | {"SLURM_JOB_ID": "1"}
    command = ["bash", "launch/slurm_job.sh", "cifar10"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1
