"""Where the package's log lines go: each module has a logger of its own, below the logger `gkt_mpi`.

On the server they are plain lines on the console, above its progress bar; on a worker, lines on standard error that
begin with its rank. Not rich's RichHandler: it fits every line into a column, which breaks paths and commands.
"""

import contextlib
import logging
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gkt_mpi.errors import ConfigError, expand
from gkt_mpi.log.sinks import SINKS, SinkName

if TYPE_CHECKING:
    from rich.console import Console

_PACKAGE = logging.getLogger("gkt_mpi")
_rank: ContextVar[int | None] = ContextVar("rank", default=None)  # of the thread that logs, where ranks are threads


@dataclass(frozen=True)
class LogConfig:
    """The log of a run, and its optional outputs."""

    report: Literal["auto", "never"] = "auto"
    """auto: write report.html when a run is complete. never: do not write it (python -m gkt_mpi.report RUN draws it at
    any time)."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least important lines to print. info: a line per round, and what happens to clients and workers. debug: also
    each request, upload and checkpoint, and the workers' lines. warning: only problems."""
    file: str | None = None
    """File that receives the same lines with time, level and module, appended; null for none. A worker that has
    something to log writes FILE.rankN."""

    sinks: list[SinkName] = field(default_factory=lambda: ["tensorboard"])
    """Trackers that receive the figures of each round: tensorboard (in the run folder), wandb (Weights & Biases),
    mlflow. [] for none."""

    def __post_init__(self) -> None:
        for name in self.sinks:
            SINKS.find(name)

    @property
    def is_quiet(self) -> bool:
        """Whether tables and progress are not to be printed."""
        return self.level in ("warning", "error")


class _Lines(logging.Handler):
    """Prints each record as one line on the server's console."""

    def __init__(self, console: "Console") -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        self._console.print(self.format(record), highlight=False, soft_wrap=True)


@contextlib.contextmanager
def logging_to(config: LogConfig, rank: int, console: "Console | None" = None) -> Iterator[None]:
    """Send this rank's log lines to the console (None: to standard error, with the rank) and to the configured file.

    Raises `ConfigError` when the file cannot be written.
    """
    handlers: list[logging.Handler] = [_Lines(console) if console else _on_stderr(rank)]
    if config.file is not None:
        path = expand(config.file if rank == 0 else f"{config.file}.rank{rank}", "log.file")
        handlers.append(_in_file(path, is_needed=rank == 0))
    token, level_before = _rank.set(rank), _PACKAGE.level
    for handler in handlers:
        handler.addFilter(lambda record: _rank.get() in (None, rank))
        _PACKAGE.addHandler(handler)
    _PACKAGE.setLevel(config.level.upper())
    try:
        yield
    finally:
        for handler in handlers:
            _PACKAGE.removeHandler(handler)
            handler.close()
        _PACKAGE.setLevel(level_before)
        _rank.reset(token)


def _on_stderr(rank: int) -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"[rank {rank}] %(message)s"))
    return handler


def _in_file(path: Path, is_needed: bool) -> logging.Handler:
    """Return a handler that appends to a file; one that is not needed is created with its first line."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace", delay=not is_needed)
    except OSError as error:
        raise ConfigError(f"log.file {path} cannot be written: {error.strerror}; choose another file") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    return handler
