"""A grid as an array job on a real Slurm."""

import sys

import pytest
import yaml

from tests.conftest import TINY, read_metrics
from tests.launch import run
from tests.slurm.cluster import ask, wait_until
from tests.slurm.test_jobs import environment

__all__ = ["environment"]  # the fixture


@pytest.mark.timeout(600)
def test_a_grid_is_one_array_job_of_the_runs_that_are_not_complete(environment, tmp_path):
    fields = {name: value for name, value in TINY.items() if name != "rounds"}
    fields |= {"rounds": 1, "data.dir": str(tmp_path / "the data")}
    (tmp_path / "tiny.yaml").write_text("name: tiny\n")
    grid = {"config": str(tmp_path / "tiny.yaml"), "vary": {"data.partition": ["homo", "hetero"]}, "seeds": [3]}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid | {"fields": fields, "ranks": 2}))
    out = tmp_path / "the runs"
    command = [sys.executable, "-m", "gkt_mpi.cli", "sweep", str(tmp_path / "grid.yaml"), f"--out={out}"]
    done = run([*command, "--slurm=--time=10"], env=environment)
    assert done.status == 0 and "2 runs, 0 of them complete" in done.out, done
    number = done.out.split("job ")[1].split(":")[0]
    wait_until(lambda: not ask(environment, "squeue", "--noheader", f"--jobs={number}"), 300, "the job has not ended")
    said = "".join(path.read_text() for path in (out / "logs").glob("*.out"))
    losses = [read_metrics(out / f"tiny-{name}-3")[0]["client_train_loss"] for name in ("homo", "hetero")]
    assert losses[0] != losses[1] and said.count("completed after 1 rounds") == 2, said
    assert "seed: 3\n" in (out / "tiny-homo-3/config.yaml").read_text()
    done = run(command, env=environment)
    assert done.status == 0 and "2 runs, 2 of them complete" in done.out, done
    assert f"report: {out}/comparison/report.html" in done.out
