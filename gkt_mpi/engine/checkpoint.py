"""Checkpoints: the whole state of a run, on the server, in RUN/checkpoints/round-NNNNN.pt.

A checkpoint holds tensors, numbers and text only and is loaded with `weights_only=True`: reading one can run
no code. It is written under another name, flushed to the disk and renamed, so a file with the final name is
whole.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from gkt_mpi.errors import CheckpointError, GktError, require

_NAME = re.compile(r"round-(\d{5})\.pt")
# Fields a resumed run may change: they do not alter the rounds already done.
MAY_CHANGE = (
    *("name", "out", "rounds", "checkpoint", "placement", "bank"),
    *("data.dir", "data.download", "wire.cuda_aware"),
)
# But the cosine schedule depends on the number of rounds, and so do rounds already done.


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints in the run folder, and what to do when there is one."""

    every: int = 1
    """Write a checkpoint after every this many rounds, and after the last; at least 1."""
    keep: int = 2
    """Newest checkpoints that are kept; at least 1."""
    resume: Literal["auto", "never"] = "auto"
    """auto: go on from the newest checkpoint of the run folder. never: begin anew and replace what is there."""

    def __post_init__(self) -> None:
        require(self.every >= 1, "checkpoint.every", self.every, "at least 1")
        require(self.keep >= 1, "checkpoint.keep", self.keep, "at least 1")


class CheckpointStore:
    """The checkpoints of one run folder; `run_config` is what a checkpoint must agree with to be resumed."""

    def __init__(self, folder: Path, config: CheckpointConfig, run_config: dict[str, Any]) -> None:
        self.folder = folder
        self.config = config
        self.run_config = run_config

    def save(self, rounds_done: int, state: dict[str, Any]) -> None:
        """Write the state after `rounds_done` rounds and delete those beyond `keep`."""
        path = self.folder / f"round-{rounds_done:05d}.pt"
        temporary = path.with_suffix(".tmp")
        try:
            with open(temporary, "wb") as file:
                torch.save({"config": self.run_config, "rounds_done": rounds_done, "state": state}, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
            if temporary.is_file():
                temporary.unlink()
            raise GktError(f"cannot write {path}: {error}; free some space, then start the run again") from error
        for old in self._paths()[: -self.config.keep]:
            old.unlink()

    def load(self) -> tuple[int, dict[str, Any]] | None:
        """Return (rounds done, state) of the newest checkpoint, or None where there is none or none is wanted.

        Raises `CheckpointError` when it cannot be read, or belongs to a run of another configuration.
        """
        if self.config.resume == "never":
            self.clear()
        paths = self._paths()
        if not paths:
            return None
        try:
            saved = torch.load(paths[-1], weights_only=True, map_location="cpu")
            found, rounds_done, state = saved["config"], int(saved["rounds_done"]), saved["state"]
        except Exception as error:  # a damaged file can raise almost anything
            raise CheckpointError(
                f"{paths[-1]} is damaged ({error}); delete it to go on from the one before"
            ) from error
        different = differing_fields(found, self.run_config)
        if different:
            raise CheckpointError(
                f"{paths[-1]} belongs to another configuration: {', '.join(different)}. Give this run another name "
                f"(--name), or begin anew in its place (--checkpoint.resume never)"
            )
        return rounds_done, state

    def clear(self) -> None:
        """Delete every checkpoint."""
        for path in self._paths():
            path.unlink()

    def _paths(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("round-*.pt") if _NAME.fullmatch(path.name))


def differing_fields(found: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> list[str]:
    """Return "field (found, now wanted)" for each difference between two configurations that matters to a resume."""
    different = []
    for key in sorted({*found, *wanted}):
        name, a, b = prefix + key, found.get(key), wanted.get(key)
        fixed_rounds = name == "rounds" and wanted["server"]["schedule"] == "cosine"
        if a == b or (name in MAY_CHANGE and not fixed_rounds):
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            different += differing_fields(a, b, name + ".")
        else:
            different.append(f"{name} ({a}, now {b})")
    return different
