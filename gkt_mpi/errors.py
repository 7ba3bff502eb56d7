"""Every error a user can meet, in one tree: each says what was expected, what was found, and what to do.

`main.py` prints a `GktError` as one line and ends with its `exit_status`; any other exception is a defect of
ours and ends the whole job with a traceback.
"""

import os
from pathlib import Path


class GktError(Exception):
    """Base of all errors this package raises on purpose."""

    exit_status = 1


class ConfigError(GktError):
    """The configuration, or the way the job was started, cannot work. Raised before any training."""

    exit_status = 2


class DataError(ConfigError):
    """A data set is missing, damaged, or does not fit the configuration."""


class FullDiskError(DataError):
    """The disk has no room for the file of images. Nothing is wrong with the configuration, and nothing has begun."""

    exit_status = 1


class CheckpointError(ConfigError):
    """The run folder holds a checkpoint that this run cannot continue."""


class WireError(GktError):
    """A message breaks the protocol: the text names the rank that sent it and the field that is wrong.

    `client` is the client whose upload it belongs to, where that is beyond doubt; `closes_upload` whether it was to
    be that client's last message of the round.
    """

    client: int | None = None
    closes_upload: bool = False


class LostRankError(GktError):
    """Another rank has died, or says nothing any more."""

    def __init__(self, rank: int, how: str) -> None:
        super().__init__(f"rank {rank} {how}")
        self.rank = rank


class Interrupted(BaseException):
    """Somebody asks the run to end now, and to be resumed later.

    No `Exception`, as KeyboardInterrupt is none: whatever a library tries when something of its own fails, as
    torch's compiler does, must not swallow it.
    """

    exit_status = 75  # EX_TEMPFAIL of sysexits.h: try again


def require(condition: bool, field: str, value: object, expected: str) -> None:
    """Raise `ConfigError` naming the field, its value and what was expected, unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{field} is {value!r}; expected {expected}")


def expand(path: str, field: str) -> Path:
    """Return the path of a field with ~ expanded. Raises `ConfigError` naming the field when there is no such user.

    Where the locale has no such letter as the path has, it is that of a file whose name is UTF-8.
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
    """Return what helps when a file of a run folder could not be written."""
    if not folder.exists():
        return "the run folder was deleted or moved during the run; start the same command again"
    if not os.access(folder, os.W_OK):
        return "the run folder has become read-only; start the same command again when it is writable"
    return "free some space, then start the same command again"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says, in the words of Python, numpy, torch, oneDNN or CUDA, that memory was refused."""
    words = ("allocate memory", "out of memory", "could not create a memory", "could not create a primitive")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | OSError) and any(word in str(error) for word in words)
    )
