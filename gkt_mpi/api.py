"""Runs from Python and notebooks: `import gkt_mpi as gkt; run = gkt.run("digits", workers=4, rounds=3)`.

Nothing here imports torch before it is needed: a run is a job of other processes, and its folder is read as files.
"""

import contextlib
import io
import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from gkt_mpi.errors import ConfigError, DataError, GktError
from gkt_mpi.launching import find_file, interrupt, merge, num_ranks_for, read_fields, start, what_went_wrong
from gkt_mpi.log.records import read_records, read_summary
from gkt_mpi.lookup import search_beside
from gkt_mpi.plain import Json

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from gkt_mpi.config import RunConfig


class RunFailed(GktError):  # noqa: N818 - it reads as a statement: except gkt.RunFailed
    """A run has ended without being complete; the text is the message of the rank that ended it.

    `exit_status` is that of the job: 2 for an invalid configuration, 75 for an interruption from outside.
    """

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


@dataclass(frozen=True)
class Run:
    """A run's folder; everything is read from its files, which a run in progress still extends."""

    folder: Path

    @property
    def config(self) -> "RunConfig":
        """The configuration of the run. Raises `DataError` if it is damaged, or names a module that is not found."""
        from gkt_mpi import trained

        return trained.load(self.folder).config

    @property
    def summary(self) -> Json:
        """The content of summary.json; empty while the run is in progress."""
        return read_summary(self.folder)

    @property
    def records(self) -> list[Json]:
        """The figures of each round, which docs/metrics.md explains."""
        return read_records(self.folder / "metrics.jsonl")

    def frame(self) -> "pd.DataFrame":
        """Return the records as a pandas DataFrame with one row per round. Raises `ConfigError` without pandas."""
        try:
            import pandas as pd
        except ModuleNotFoundError as error:
            raise ConfigError(f"{error}; install it with: pip install 'gkt_mpi[frame]'") from error
        return pd.DataFrame(self.records)

    def report(self) -> Path:
        """Draw report.html in the run folder and return its path. Raises `DataError` before the first round."""
        from gkt_mpi.report.page import write_report

        return write_report([self.folder])

    def model(self, client: int | None = None) -> "nn.Module":
        """Return the trained model in evaluation mode, of one client where clients have models of their own."""
        from gkt_mpi import trained

        return trained.load(self.folder).model(client)


def load(folder: str | os.PathLike[str]) -> Run:
    """Return the run of a folder, whether complete, interrupted or in progress. Raises `DataError` if it has none."""
    path = Path(folder).expanduser()
    if not (path / "config.yaml").is_file():
        raise DataError(f"{path} is not a run folder: it has no config.yaml; expected a folder such as runs/digits")
    return Run(path)


def run(
    config: "str | os.PathLike[str] | Mapping[str, Any] | RunConfig | None" = None,
    workers: int | Literal["threads"] | None = None,
    **fields: Any,  # noqa: ANN401 - the fields of a configuration
) -> Run:
    """Train a run on a server and `workers` worker processes under mpirun, and return it.

    `config` is the name of a packaged configuration, a YAML file, nested fields, or a `RunConfig`; `fields` replace
    parts of it: `rounds=3, client__epochs=2, data={"limit": 100}`. By default there is one worker per client, limited
    by the cores; the number does not affect results. With `workers="threads"` the ranks are threads of this process, so
    that a breakpoint works. An existing run of the same folder is resumed.

    Prints the progress. Raises `RunFailed` if the run fails, with the rank's message, `ConfigError` for a name that
    does not exist or a missing MPI, and `KeyboardInterrupt` at Ctrl-C, when the run has saved its state and ended.
    """
    path, changes = None, _nested(fields)
    if isinstance(config, str | os.PathLike):
        path = find_file(os.fspath(config))
        search_beside(path)  # so that the run's networks can be loaded here afterwards
    elif config is not None:
        changes = merge(_nested(config if isinstance(config, Mapping) else config.as_dict()), changes)
    words = [] if path is None else ["--config", str(path)]
    complete = merge(read_fields(path) if path else {}, changes)
    with tempfile.TemporaryDirectory(prefix="gkt_mpi-") as folder:
        if changes:
            file = Path(folder) / "fields.yaml"
            file.write_text(yaml.safe_dump(changes, sort_keys=False), encoding="utf-8")
            words += ["--config", str(file)]
        if workers == "threads":
            _run_threads(words)
        else:
            _run_processes(words, num_ranks_for(complete) if workers is None else 1 + workers)
    return load(Path(complete.get("out", "runs")) / complete.get("name", "run"))


def _run_processes(words: list[str], num_ranks: int) -> None:
    """Run under mpirun and print what rank 0 says."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        process = start(words, num_ranks, subprocess.PIPE, errors)
        said = _follow(process)
        if process.returncode:
            errors.seek(0)
            raise RunFailed(what_went_wrong(errors.read(), said), process.returncode)


def _follow(process: "subprocess.Popen[str]") -> str:
    """Print a run's output until it ends, and return it.

    Ctrl-C interrupts the run, a second one ends it at once; `KeyboardInterrupt` is raised when it has ended.
    """
    assert process.stdout is not None
    said, is_interrupted = [], False
    try:
        while process.poll() is None:
            try:
                for line in process.stdout:
                    print(line, end="", flush=True)
                    said.append(line)
                process.wait()
            except KeyboardInterrupt:
                is_interrupted = True
                interrupt(process)
    finally:  # after any other error, too
        interrupt(process)
        process.stdout.close()
    if is_interrupted:
        raise KeyboardInterrupt
    return "".join(said)


def _run_threads(words: list[str]) -> None:
    """Run in threads of this process; a message of the server becomes the exception."""
    from gkt_mpi.config import parse
    from gkt_mpi.in_threads import run_in_threads

    config = parse(words)
    num_ranks = 1 + min(config.clients or 2, 2)
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        statuses = run_in_threads(config, num_ranks)
    if any(statuses):
        raise RunFailed(what_went_wrong(errors.getvalue()), max(statuses))


def _nested(fields: Mapping[str, Any]) -> Json:
    """Return fields with dots or double underscores in their names as nested ones, with values that YAML can write."""
    nested: Json = {}
    for name, value in fields.items():
        *groups, last = str(name).replace("__", ".").split(".")
        value = _plain(value)
        for part in reversed([*groups, last]):
            value = {part: value}
        nested = merge(nested, value)
    return nested


def _plain(value: Any) -> Any:  # noqa: ANN401 - the value of a field
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike | str):
        return str(value)
    return value.item() if hasattr(value, "item") else value  # numpy's numbers
