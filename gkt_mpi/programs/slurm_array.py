"""Submits the runs of a grid as one Slurm array job, for `gkt-mpi sweep --slurm`."""

import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from gkt_mpi.errors import GktError
from gkt_mpi.launching import LAUNCH
from gkt_mpi.programs.grid import Cell

_TIMEOUT_S = 60
_SCRIPT = """\
#!/bin/bash
# The runs of the grid {grid}, one per array task, made by gkt-mpi sweep --slurm. Two minutes before the time limit
# a run saves its state, and its task requeues itself.
#SBATCH --job-name={grid}
#SBATCH --array=0-{last}
#SBATCH --output="{logs}/%x-%A_%a.out"
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks={num_ranks}
#SBATCH --cpus-per-task=1
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
export VENV={venv} OUT={out}
task=$SLURM_ARRAY_TASK_ID
unset SLURM_ARRAY_TASK_ID # otherwise slurm_job.sh makes it the seed
case $task in
{cases}
esac
export NAME
exec bash {launch}/slurm_job.sh "$@"
"""


def batch_script(grid: str, cells: Sequence[Cell], out: Path, num_ranks: int) -> str:
    """Return the batch script of an array job with a task for each run."""
    cases = []
    for task, cell in enumerate(cells):
        config, *words = cell.arguments(out)[1:-2]  # NAME and OUT choose the folder
        line = shlex.join([str(Path(config).resolve()), *words])
        cases.append(f"{task}) NAME={shlex.quote(cell.name)} && set -- {line} ;;")
    return _SCRIPT.format(
        grid=grid,
        last=len(cells) - 1,
        logs=out / "logs",
        num_ranks=num_ranks,
        venv=shlex.quote(str(Path(sysconfig.get_path("scripts")).parent)),
        out=shlex.quote(str(out)),
        cases="\n".join(cases),
        launch=shlex.quote(str(LAUNCH)),
    )


def submit(grid: str, cells: Sequence[Cell], out: Path, num_ranks: int, options: Sequence[str]) -> str:
    """Write the batch script into `out`, submit it with these options of sbatch, and return what to tell the user.

    Raises `GktError` with Slurm's message when it refuses the job.
    """
    (out / "logs").mkdir(parents=True, exist_ok=True)
    script = out / f"{grid}.sbatch"
    script.write_text(batch_script(grid, cells, out, num_ranks), encoding="utf-8")
    if shutil.which("sbatch") is None:
        raise GktError(f"there is no sbatch here; submit {script} where there is")
    command = ["sbatch", "--parsable", *options, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    if done.returncode:
        raise GktError(f"sbatch refused {script}: {' '.join(done.stderr.split())}")
    job = done.stdout.strip()
    return f"job {job}: {len(cells)} runs; when they are done, the same command without --slurm compares them"
