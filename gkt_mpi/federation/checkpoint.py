"""Checkpoints: the complete state of a run, on the server, in RUN/checkpoints/round-NNNNN.pt.

A checkpoint holds only tensors, numbers and text and is loaded with `weights_only=True`, so loading it cannot run code.
It is written under a temporary name, flushed to disk and renamed, so a file with the final name is complete unless the
disk has lost data; in that case the previous checkpoint is used.
"""

import logging
import os
import re
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from gkt_mpi.errors import CheckpointError, GktError, require, what_to_do
from gkt_mpi.federation.learner import State
from gkt_mpi.plain import Json
from gkt_mpi.training.schedule import FIXED_LENGTH

logger = logging.getLogger(__name__)

_NAME = re.compile(r"round-(\d{5,})\.pt")
FORMAT = 8  # version of the checkpoint's contents
# Fields that may change on resume: they do not affect the completed rounds.
MAY_CHANGE = (
    *("name", "out", "rounds", "checkpoint", "placement", "faults", "log"),
    *(
        "data.dir",
        "data.file",
        "data.partition_file",
        "data.download",
        "wire.cuda_aware",
        "bank.memory_mib",
        "bank.spill_dir",
    ),
    "input",  # for readers of a checkpoint; `images` is its digest
    *("client.weights", "server.weights"),  # paths; the digests of the files may not change
)
# Some schedules depend on the number of rounds, and so do the completed rounds.


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints in the run folder, and whether to resume from them."""

    every: int = 1
    """Write a checkpoint after every this many rounds, and after the last; at least 1."""
    keep: int = 2
    """Number of newest checkpoints to keep; at least 1."""
    best: bool = False
    """Also keep, as best.pt, the checkpoint of the round with the best test accuracy so far. It is selected on test
    images: report the last round's figures in a paper."""
    grace_s: float = 60.0
    """Seconds from a termination signal until the job is killed, if it has not ended by itself; above 0."""
    resume: Literal["auto", "never"] = "auto"
    """auto: resume from the newest checkpoint of the run folder. never: start over and replace its contents."""

    def __post_init__(self) -> None:
        require(self.every >= 1, "checkpoint.every", self.every, "at least 1")
        require(self.keep >= 1, "checkpoint.keep", self.keep, "at least 1")
        require(self.grace_s > 0, "checkpoint.grace_s", self.grace_s, "above 0")


class Contents(NamedTuple):
    """The contents of a checkpoint."""

    config: Json  # the run's configuration, and what else must be unchanged when it is resumed
    format: int | None
    rounds_done: int
    state: Json


class CheckpointStore:
    """The checkpoints of one run folder; a checkpoint must agree with `run_config` to be resumed."""

    def __init__(self, folder: Path, config: CheckpointConfig, run_config: Json) -> None:
        self.folder = folder
        self.config = config
        self.run_config = run_config

    def save(self, rounds_done: int, state: State, is_best: bool = False) -> None:
        """Write the state after `rounds_done` rounds, the best also as best.pt, and delete those beyond `keep`."""
        path = self.folder / f"round-{rounds_done:05d}.pt"
        temporary = path.with_suffix(".tmp")
        try:
            with open(temporary, "wb") as file:
                content = {"format": FORMAT, "config": self.run_config, "rounds_done": rounds_done, "state": state}
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            if is_best:
                _link(path, temporary)
                temporary.replace(self.folder / "best.pt")
            _flush_folder(self.folder)
        except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
            if temporary.is_file():
                temporary.unlink()
            raise GktError(f"cannot write {path}: {error}; {what_to_do(self.folder.parent)}") from error
        for old in checkpoint_paths(self.folder)[: -self.config.keep]:
            old.unlink()
        logger.debug(f"saved {path}")

    def load(self) -> tuple[int, State] | None:
        """Return (rounds done, state) of the newest valid checkpoint, or None if there is none or resume is never.

        A damaged one is reported and renamed to NAME.damaged. Raises `CheckpointError` when all are
        damaged, or the newest valid one belongs to a run with another configuration.
        """
        if self.config.resume == "never":
            self.clear()
        paths = checkpoint_paths(self.folder)
        for path in reversed(paths):
            try:
                found = read_checkpoint(path)
            except CheckpointError as error:
                logger.warning(f"{error}; it was renamed, and the previous one is used")
                path.replace(path.with_suffix(".damaged"))
                continue
            self._refuse_other(path, found.config, found.format)
            return found.rounds_done, found.state
        if paths:
            raise CheckpointError(
                f"every checkpoint in {self.folder} is damaged; start over with --checkpoint.resume never"
            )
        return None

    def _refuse_other(self, path: Path, config: Json, number: int | None) -> None:
        """Raise `CheckpointError` unless a checkpoint has this run's configuration and the current format."""
        or_else = "Give this run another name (--name), or start over in the same folder (--checkpoint.resume never)"
        if number != FORMAT:
            raise CheckpointError(f"{path} was written by another version of gkt_mpi. {or_else}")
        different = differing_fields(config, self.run_config)
        if different:
            raise CheckpointError(f"{path} belongs to another configuration: {', '.join(different)}. {or_else}")

    def clear(self) -> None:
        """Delete every checkpoint, including damaged ones."""
        others = (
            path for pattern in ("round-*.damaged", "round-*.tmp", "best.pt") for path in self.folder.glob(pattern)
        )
        for path in (*checkpoint_paths(self.folder), *others):
            path.unlink()


def checkpoint_paths(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, the oldest first, without best.pt."""
    paths = (path for path in folder.glob("round-*.pt") if _NAME.fullmatch(path.name))
    return sorted(paths, key=lambda path: int(path.stem.removeprefix("round-")))


def read_checkpoint(path: Path) -> Contents:
    """Return the contents of a checkpoint, with tensors on the CPU. Raises `CheckpointError` if it is damaged."""
    try:
        with zipfile.ZipFile(path) as file:  # torch.load does not verify checksums
            damaged = file.testzip()
        if damaged is not None:
            raise ValueError(f"the checksum of {damaged} is wrong")
        saved = torch.load(path, weights_only=True, map_location="cpu")
        return Contents(saved["config"], saved.get("format"), int(saved["rounds_done"]), saved["state"])
    except Exception as error:  # a damaged file can raise almost any exception
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path} is damaged ({reason})") from error


def _link(path: Path, other: Path) -> None:
    """Hard-link a file, or copy it where the file system does not support links."""
    try:
        os.link(path, other)
    except OSError:
        shutil.copyfile(path, other)


def _flush_folder(folder: Path) -> None:
    """Flush a folder's entries to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def differing_fields(found: Json, wanted: Json, prefix: str = "") -> list[str]:
    """Return "field (found, now wanted)" for each difference between two configurations that prevents a resume."""
    different = []
    for key in sorted({*found, *wanted}):
        name, a, b = prefix + key, found.get(key), wanted.get(key)
        schedules = {wanted.get(side, {}).get("schedule") for side in ("client", "server")}
        last_uploads = wanted.get("client", {}).get("upload_every", 1) > 1  # the last round always has an upload
        fixed_rounds = name == "rounds" and (bool(schedules & set(FIXED_LENGTH)) or last_uploads)
        is_older = name == "images" and key not in found  # a checkpoint without a digest of the images
        if a == b or is_older or (name in MAY_CHANGE and not fixed_rounds):
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            different += differing_fields(a, b, name + ".")
        else:
            different.append(f"{name} ({a}, now {b})")
    return different
