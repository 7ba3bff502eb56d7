"""All errors that a user can meet: each states what was expected, what was found, and what to do.

`main.py` prints a `GktError` as one line and exits with its `exit_status`; any other exception is a bug and ends the
whole job with a traceback.
"""

import os
from pathlib import Path


class GktError(Exception):
    """Base of all errors this package raises deliberately."""

    exit_status = 1


class ConfigError(GktError):
    """The configuration, or the way the job was started, is invalid. Raised before any training."""

    exit_status = 2


class DataError(ConfigError):
    """A data set is missing, damaged, or does not fit the configuration."""


class FullDiskError(DataError):
    """There is no disk space for the image file. The configuration is valid, and training has not begun."""

    exit_status = 1


class CheckpointError(ConfigError):
    """The run folder holds a checkpoint that this run cannot continue."""


class WireError(GktError):
    """A message violates the protocol: the text names the rank that sent it and the invalid field.

    `client` is the client whose upload it belongs to, where that is certain; `closes_upload` whether it was to be that
    client's last message of the round.
    """

    client: int | None = None
    closes_upload: bool = False


class LostRankError(GktError):
    """Another rank has died, or stopped responding."""

    def __init__(self, rank: int, how: str) -> None:
        super().__init__(f"rank {rank} {how}")
        self.rank = rank


class Interrupted(BaseException):
    """A request to end the run now and resume it later.

    Derived from `BaseException`, like KeyboardInterrupt, so that libraries that catch `Exception`, such as torch's
    compiler, do not swallow it.
    """

    exit_status = 75  # EX_TEMPFAIL of sysexits.h: try again


def require(condition: bool, field: str, value: object, expected: str) -> None:
    """Raise `ConfigError` naming the field, its value and what was expected, unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{field} is {value!r}; expected {expected}")


def expand(path: str, field: str) -> Path:
    """Return the path of a field with ~ expanded. Raises `ConfigError` naming the field when there is no such user.

    If the locale cannot encode the path's characters, the path is interpreted as UTF-8.
    """
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        path = os.fsdecode(path.encode("utf-8", "surrogateescape"))
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{field} is {path!r}; {error}") from error


def what_to_do(folder: Path) -> str:
    """Return advice for a file of a run folder that could not be written."""
    if not folder.exists():
        return "the run folder was deleted or moved during the run; start the same command again"
    if not os.access(folder, os.W_OK):
        return "the run folder has become read-only; start the same command again when it is writable"
    return "free some space, then start the same command again"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error reports a failed memory allocation, in the wording of Python, numpy, torch, oneDNN or CUDA."""
    words = ("allocate memory", "out of memory", "could not create a memory", "could not create a primitive")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | OSError) and any(word in str(error) for word in words)
    )
