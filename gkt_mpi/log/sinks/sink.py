"""The specification of a sink, and the sinks of one run."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gkt_mpi.errors import ConfigError
from gkt_mpi.plain import Json

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SinkRun:
    """The run that a sink is opened for."""

    folder: Path
    name: str
    config: Mapping[str, Any]  # nested, as in config.yaml
    rounds_done: int  # 0 in a new run; figures of later rounds, from before an interruption, are to be replaced


class OpenSink(Protocol):
    """An open sink."""

    def append(self, round: int, figures: Mapping[str, float]) -> None:
        """Log the figures of a round, by names such as accuracy/test_accuracy."""

    def close(self, summary: Mapping[str, Any], artefacts: Sequence[Path]) -> None:
        """End the run with its summary (summary.json), and keep files such as its report."""


@dataclass(frozen=True)
class Sink:
    """A tracker that a configuration can name."""

    name: str
    open: Callable[[SinkRun], OpenSink]
    """Opens it for a run, or opens it again when the run is resumed."""
    is_required: bool = False
    """Whether its failure ends the run; otherwise the run continues without it."""


class OpenSinks:
    """The sinks of a run. One that fails is closed, with a warning, unless it is required."""

    def __init__(self, sinks: Sequence[Sink], run: SinkRun) -> None:
        """Open them all. Raises `ConfigError` when one cannot be opened, `OSError` when a required one cannot."""
        self._open: list[tuple[Sink, OpenSink]] = []
        for sink in sinks:
            try:
                self._open.append((sink, sink.open(run)))
            except (ConfigError, OSError):
                raise
            except Exception as error:
                raise ConfigError(f"log.sinks has {sink.name}, which cannot be opened: {_line(error)}") from error

    def append(self, record: Mapping[str, float]) -> None:
        """Log a round's line of metrics.jsonl. Raises `OSError` of required sinks."""
        figures = {grouped(name): value for name, value in record.items() if name != "round"}
        self._each(lambda sink: sink.append(int(record["round"]), figures))

    def close(self, summary: Mapping[str, Any], artefacts: Sequence[Path] = ()) -> None:
        """Close all. Raises `OSError` of required sinks."""
        self._each(lambda sink: sink.close(summary, artefacts))
        self._open.clear()

    def _each(self, act: Callable[[OpenSink], None]) -> None:
        for spec, sink in list(self._open):
            try:
                act(sink)
            except Exception as error:  # of a tracker's client, such as a lost connection
                if spec.is_required:
                    raise
                self._open.remove((spec, sink))
                logger.warning(f"{spec.name} has failed ({_line(error)}); the run continues without it")


def grouped(name: str) -> str:
    """Return the name of a metric in trackers, where figures of one unit share a group."""
    for suffix, group in (("_s", "seconds"), ("_bytes", "bytes"), ("accuracy", "accuracy"), ("loss", "loss")):
        if name.endswith(suffix):
            return f"{group}/{name}"
    return f"other/{name}"


def flattened(config: Mapping[str, Any], prefix: str = "") -> Json:
    """Return a nested configuration with dotted names."""
    flat: Json = {}
    for name, value in config.items():
        flat |= flattened(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
