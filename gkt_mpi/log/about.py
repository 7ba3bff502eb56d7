"""What a run was started with, for its report: run.json.

command, host, ranks, started, versions, commit (null outside of a git checkout)
algorithm    its facts (facts.py), so that reports know users' own algorithms
titles       names in the configuration and their titles in reports
"""

import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch

import gkt_mpi
from gkt_mpi.facts import AlgorithmFacts
from gkt_mpi.placement import processor

_GIT_S = 10.0  # limit of a call of git


def versions() -> str:
    """Return the versions that a run's figures depend on, in one line."""
    return (
        f"gkt_mpi {gkt_mpi.__version__}, torch {torch.__version__}, Python {platform.python_version()}, {processor()}"
    )


def about_run(facts: AlgorithmFacts, titles: Mapping[str, str], num_ranks: int) -> dict[str, object]:
    """Return the contents of run.json."""
    return {
        "command": shlex.join(sys.orig_argv),
        "host": socket.gethostname(),
        "ranks": num_ranks,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "commit": _commit(Path(gkt_mpi.__file__).parent.parent),
        "algorithm": asdict(facts),
        "titles": dict(titles),
    }


def _commit(source: Path) -> str | None:
    """Return the commit of a git checkout, with -dirty where files differ from it; None where there is none."""
    if not (source / ".git").exists():
        return None
    command = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
