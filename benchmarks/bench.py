"""What the benchmarks share: make a run unless it is already there, and read how it ended."""

import json
import os
import statistics
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def summary_of(out: Path, name: str, config: str, fields: list[str], ranks: int = 5) -> dict[str, Any]:
    """Return the summary of a run of a configuration with fields changed; one that is complete in `out` is read."""
    if not is_complete(out / name):
        launch = ["sh", "launch/mpirun.sh", "-np", str(ranks), "python", "-m", "gkt_mpi.main"]
        command = [*launch, "--config", f"launch/configs/{config}.yaml", "--name", name, "--out", str(out), *fields]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return _summary(out / name)


def is_complete(folder: Path) -> bool:
    """Whether a folder holds a run that has come to its end."""
    return _summary(folder).get("status") == "completed"


def _summary(folder: Path) -> dict[str, Any]:
    path = folder / "summary.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def mean_and_spread(values: Iterable[float]) -> str:
    """Return "mean ± sample standard deviation", with three decimals."""
    values = list(values)
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {spread:.3f}"


def machine() -> str:
    """Return the processor, the cores this process may use, and torch's version, in one line."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "CPU")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores, torch {torch.__version__}"
