"""The server's part of a run: data, partition, learner, all rounds, summary and report."""

import logging
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gkt_mpi.algorithms import ALGORITHMS
from gkt_mpi.build import check_networks, digest_of, images_of, prices_of, site_of, what_is_learnt
from gkt_mpi.config import RunConfig
from gkt_mpi.cost.virtual_clock import RoundPricer
from gkt_mpi.data.datasets import ImageFile
from gkt_mpi.data.partition import count_by_class, natural_clients, partition
from gkt_mpi.data.sources import DATA_SOURCES
from gkt_mpi.errors import GktError, Interrupted, expand
from gkt_mpi.facts import name_in_texts
from gkt_mpi.federation.books import RoundBooks
from gkt_mpi.federation.checkpoint import CheckpointStore
from gkt_mpi.federation.client import edge_names
from gkt_mpi.federation.faults import Interrupt
from gkt_mpi.federation.hosting import Hosting
from gkt_mpi.federation.learner import HasFiles, Learner
from gkt_mpi.federation.plan import Plan
from gkt_mpi.federation.requests import Requests
from gkt_mpi.federation.roster import Roster
from gkt_mpi.federation.round_end import RoundEnd
from gkt_mpi.federation.server import Server
from gkt_mpi.federation.watch import Watch
from gkt_mpi.learners.site import Machine, Site
from gkt_mpi.log.about import about_run, versions
from gkt_mpi.log.logger import logging_to
from gkt_mpi.log.progress import Progress, make_console, partition_table, summary_table
from gkt_mpi.log.run_log import RunLog, hold_folder
from gkt_mpi.log.sinks import SINKS
from gkt_mpi.models.networks import PRECISIONS, model_title
from gkt_mpi.placement import Placement
from gkt_mpi.programs.prepare import open_data
from gkt_mpi.wire.messages import Setup
from gkt_mpi.wire.transport import SERVER, Transport

if TYPE_CHECKING:
    from rich.console import Console

logger = logging.getLogger(__name__)

_PATIENCE_S = 60.0  # a server without progress for at least this long is considered hanging


def serve(
    config: RunConfig, transport: Transport, placement: Placement, interrupt: Interrupt, abort: Callable[[int], None]
) -> int:
    """Run the server to the end of the run and return the exit status."""
    placement.apply()
    console = make_console()
    with logging_to(config.log, SERVER, console):
        digest = digest_of(config)  # as the workers have it
        file = open_data(config, console)
        config = config.for_ranks(transport.size, natural_clients(config.data, file.owners("train")))
        config.distill.check(len(file.classes))
        check_networks(config, file.image_shape, len(file.classes))
        price, prices = prices_of(config, file)  # refuses unknown devices
        assert config.clients is not None
        shards = partition(file.labels("train"), config.clients, config.data, config.seed, file.owners("train"))
        folder = expand(f"{config.out}/{config.name}", "out")
        with hold_folder(folder):
            resumable = config.as_dict() | what_is_learnt(config, file, shards)
            checkpoints = CheckpointStore(folder / "checkpoints", config.checkpoint, resumable)
            rounds_done, state = checkpoints.load() or (0, None)  # refused before anything in the folder changes
            config = _at_least(rounds_done, config)
            log = RunLog(folder, config.as_dict(), versions(), file.classes, [SINKS[name] for name in config.log.sinks])
            counts = count_by_class(file.labels("train"), shards, len(file.classes))
            log.save_about(about_run(ALGORITHMS[config.algorithm].facts, _titles(config), transport.size))
            log.save_partition(shards, counts, file.classes)
            _describe(config, file, counts, transport.size, placement, console)

            progress = Progress(config.rounds, console, ALGORITHMS[config.algorithm].last_phase)
            machine = Machine(placement, Watch(progress, interrupt, transport, placement), folder)
            site = site_of(
                config, images_of(config, file, shards, placement.device), machine, prices, rounds_done, state
            )
            with _learner_of(config, site) as learner:
                server = _server_of(config, site, learner, price, checkpoints, log)
                server.resume(rounds_done, state)
                precision = PRECISIONS.index(learner.compute.precision)
                for rank in range(1, transport.size):
                    transport.send(rank, Setup(len(file.classes), file.image_shape, precision, digest))
                transport.end_if_silent(max(_PATIENCE_S, 4 * config.faults.timeout_s))
                interrupt.defer(config.checkpoint.grace_s, lambda: abort(Interrupted.exit_status))
                interrupted = _run_algorithm(config, server, learner)
        if interrupted is not None:
            log.close()
            logger.warning(interrupted)
            return Interrupted.exit_status
        _finish(config, log, console)
    return 0


def _at_least(rounds_done: int, config: RunConfig) -> RunConfig:
    """Return the configuration with at least the rounds that have been completed."""
    if rounds_done <= config.rounds:
        return config
    more = f"the run has already completed {rounds_done} rounds, more than the {config.rounds} requested"
    logger.warning(f"{more}; nothing is trained (--checkpoint.resume never starts over)")
    return replace(config, rounds=rounds_done)


@contextmanager
def _learner_of(config: RunConfig, site: Site) -> Iterator[Learner]:
    """Build the learner on all cores, since the workers wait, and close it at the end.

    All edges compute in its precision.
    """
    with site.machine.placement.all_cores():
        learner = ALGORITHMS[config.algorithm].learner(site)
    with closing(learner) if isinstance(learner, HasFiles) else nullcontext():
        for edge in site.edges:
            edge.model.precision = learner.compute.precision
        yield learner


def _server_of(
    config: RunConfig, site: Site, learner: Learner, price: RoundPricer, checkpoints: CheckpointStore, log: RunLog
) -> Server:
    """Return the server of a run; where nobody is asked for anything, one without clients."""
    has_clients = ALGORITHMS[config.algorithm].facts.has_clients
    watch, shards = site.machine.watch, site.images.shards
    roster = Roster(shards if has_clients else [], watch.transport.size)
    models = edge_names(config.client.model, len(shards))
    hosting = Hosting(watch.transport, roster, site.edges if has_clients else [], models)
    plan = Plan(config.rounds, config.participation, config.seed, config.evaluate)
    requests = Requests(config.faults, hosting, RoundBooks(watch.transport, price), watch)
    round_end = RoundEnd(learner, hosting, watch, checkpoints, log, plan)
    watch.transport.set_timeout(config.faults.timeout_s)
    return Server(plan, learner, requests, round_end, watch)


def _run_algorithm(config: RunConfig, server: Server, learner: Learner) -> str | None:
    """Run the server's side of the algorithm and save its progress. Return the message if a signal ended it."""
    try:
        ALGORITHMS[config.algorithm].run_server(server, learner)
    except Interrupted as error:
        rounds_done = server.end_early()
        return f"{error} after {rounds_done} of {config.rounds} rounds; start the same command again to resume"
    except Exception:  # also for bugs: the saved state is that after the last complete round
        with suppress(GktError, MemoryError):  # report the original error
            server.save()
        raise
    return None


def _describe(
    config: RunConfig, file: ImageFile, counts: np.ndarray, num_ranks: int, placement: Placement, console: "Console"
) -> None:
    """Print what is trained where, on which images."""
    height, width, channels = file.image_shape
    edge = config.client.model
    edges = edge if isinstance(edge, str) else " and ".join(dict.fromkeys(edge))
    networks = ALGORITHMS[config.algorithm].networks.format(edge=edges, large=config.server.model, config=config)
    logger.info(
        f"{name_in_texts(config.algorithm)} on {config.data.name} ({config.data.partition}): {config.clients} clients "
        f"on {num_ranks - 1} workers, {counts.sum()} training images of {height}x{width}x{channels}; "
        f"{networks}, on {placement.device}"
    )
    if file.checksums != "official":
        logger.info("note: this archive is not the published one (its checksums differ)")
    table = partition_table(counts, file.classes)
    if table is not None and not config.log.is_quiet:
        console.print(table)


def _finish(config: RunConfig, log: RunLog, console: "Console") -> None:
    """Print the summary of a complete run, and write its report; the run is complete even if the report fails."""
    if not config.log.is_quiet:
        console.print(summary_table(log.summary, config.name, config.algorithm))
    logger.info(f"run folder: {log.folder}")
    log.close(*_write_report(config, log.folder))


def _write_report(config: RunConfig, folder: Path) -> list[Path]:
    """Write the report of a run, unless it has none; return its file."""
    if config.log.report == "never":
        return []
    try:
        from gkt_mpi.report import load_writer

        report = load_writer()([folder])
        logger.info(f"report: {report}")
        return [report]
    except GktError as error:
        logger.warning(f"no report: {' '.join(str(error).split())}")
    except Exception as error:  # even for a bug or a missing library
        logger.warning(f"no report: {' '.join(f'{type(error).__name__}: {error}'.split())}")
    return []


def _titles(config: RunConfig) -> dict[str, str]:
    """Return the titles in reports of the data set and the networks, by their names in the configuration."""
    edges = edge_names(config.client.model, config.clients or 1)
    models = {name: model_title(name) for name in (*edges, config.server.model)}
    return {config.data.name: DATA_SOURCES[config.data.name].label, **models}
