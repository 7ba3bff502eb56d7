"""Checks every rank before a long run: mpirun ... python -m gkt_mpi.main --check --config ...

Each worker reports its properties and resources to the server, which shows them in a table, exchanges some bytes with
every worker, and ends with `ready` or with what to fix first. Nothing is trained, and no files are left.
"""

import contextlib
import json
import math
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from resource import RLIMIT_NOFILE, getrlimit

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from gkt_mpi.build import check_networks, digest_of, digests_of_weights
from gkt_mpi.config import RunConfig
from gkt_mpi.data.datasets import ImageFile, file_path, known_clients, look_for
from gkt_mpi.data.partition import partition
from gkt_mpi.errors import ConfigError, GktError, expand
from gkt_mpi.log.progress import make_console
from gkt_mpi.placement import available_memory_mib, place
from gkt_mpi.programs.memory import bank_mib, images_in, images_of, limit_of_node, needed_mib
from gkt_mpi.wire.contract import Contract
from gkt_mpi.wire.header import Kind
from gkt_mpi.wire.messages import Check, Stop
from gkt_mpi.wire.transport import SERVER, Transport

ANSWER_S = 60.0  # a rank that has not answered for this long is unreachable
_LARGEST_ANSWER = 2**20
_OPEN_FILES = 64  # of one rank: MPI uses 18, plus libraries, images, logs and a bank on disk
_EXCHANGED_BYTES = 2**23  # the size of a block of features


@dataclass(frozen=True)
class Look:
    """A rank's properties and resources."""

    host: str
    device: str
    threads: int
    memory_mib: float  # of its node, available to it
    config: str  # the configuration's digest
    software: dict[str, str]
    limit_mib: float  # memory limit of the job's ranks on its node together
    limit_by: str  # the source of this limit
    to_fix: list[str] = field(default_factory=list)


def preflight(
    config: RunConfig, transport: Transport, node_place: tuple[int, int, bool], software: dict[str, str]
) -> int:
    """Run the server or a worker of the check and return the exit status: 0 when the run can start, else 2.

    `node_place` is (local rank, local size, has the server); `software` maps programs and properties of MPI that must
    be the same on every rank to their version or state.
    """
    look = _look(config, node_place, software)
    if transport.rank != SERVER:
        _answer(transport, look)
        return 0
    console = make_console()
    try:
        to_fix = _check(config.for_ranks(transport.size, known_clients(config.data)), transport, look, console)
    except ConfigError as error:
        to_fix = [str(error)]
    for rank in range(1, transport.size):
        transport.send(rank, Stop())
    transport.flush()
    verdict = f"fix this first: {' '.join(to_fix[0].split())}" if to_fix else "ready"
    console.print(verdict, soft_wrap=True, highlight=False)
    return ConfigError.exit_status if to_fix else 0


def _check(config: RunConfig, transport: Transport, look: Look, console: Console) -> list[str]:
    """Ask every rank, show the answers, and return the problems to fix, the most fundamental first."""
    images = images_of(config)
    if images is not None:
        check_networks(config, images.image_shape, images.classes)
    transport.set_timeout(ANSWER_S)
    to_fix = []
    looks, rates = {SERVER: look}, {}
    with _folders(config) as (seen, problems, said):
        for rank in range(1, transport.size):
            transport.send(rank, Check(_bytes(seen)))
        try:
            looks |= {rank: Look(**json.loads(_text(answer))) for rank, answer in _answers(transport)}
            rates = {rank: _exchange(transport, rank) for rank in range(1, transport.size)}
        except GktError as error:
            advice = "check that its node is up, and that the nodes reach each other (firewall, network interface)"
            to_fix.append(f"{error}, from rank 0 on {look.host}; {advice}")
    for table in (_rank_table(looks, rates), _software_table(looks)):
        console.print(table)
    for note in (*said, *_notes(config, looks)):
        console.print(f"note: {note}", soft_wrap=True, highlight=False)
    to_fix += _differences(looks)
    to_fix += _short_of_memory(config, looks)
    to_fix += [f"rank {rank} on {its.host}: {text}" for rank, its in sorted(looks.items()) for text in its.to_fix]
    return to_fix + problems


def _answer(transport: Transport, look: Look) -> None:
    """Report this rank's properties to the server, then return whatever it sends, until it stops this worker."""
    accepted = Contract(frozenset({Kind.CHECK, Kind.STOP}), state_bytes=_EXCHANGED_BYTES)
    _, message = transport.receive(accepted)
    if isinstance(message, Check):
        look.to_fix.extend(_unseen(json.loads(_text(message.content))))
        transport.send(SERVER, Check(_bytes(asdict(look))))
    while isinstance(message, Check):
        _, message = transport.receive(accepted)
        if isinstance(message, Check):
            transport.send(SERVER, message)
    transport.flush()


def _look(config: RunConfig, node_place: tuple[int, int, bool], software: dict[str, str]) -> Look:
    """Return this rank's properties and resources; tries out its device."""
    to_fix, device, threads = [], "none", 0
    files = getrlimit(RLIMIT_NOFILE)[0]
    if 0 <= files < _OPEN_FILES:  # -1: no limit
        text = f"this rank may open {files} files at once; expected at least {_OPEN_FILES}: ulimit -n {_OPEN_FILES}"
        to_fix.append(f"{text}, or its node's /etc/security/limits.conf")
    try:
        placement = place(config.placement, *node_place)
        device, threads = str(placement.device), placement.threads
        torch.ones(1, device=placement.device).add_(1).item()
        if placement.device.type == "cuda":
            device += f" {torch.cuda.get_device_name(placement.device)}"
    except (ConfigError, RuntimeError) as error:
        to_fix.append(str(error))
    memory, digest = available_memory_mib(), bytes(digest_of(config).numpy()).hex()
    return Look(socket.gethostname(), device, threads, memory, digest, software, *limit_of_node(), to_fix)


def _answers(transport: Transport) -> Iterator[tuple[int, Tensor]]:
    """Yield each worker's answer in order of arrival. Raises `LostRankError` if one is missing."""
    silent = dict.fromkeys(range(1, transport.size), 1)
    accepted = Contract(
        frozenset({Kind.CHECK}), num_samples=silent, sender={rank: rank for rank in silent}, state_bytes=_LARGEST_ANSWER
    )
    while silent:
        rank, message = transport.receive(accepted)
        assert isinstance(message, Check)
        del silent[rank]
        yield rank, message.content


def _exchange(transport: Transport, rank: int) -> tuple[float, float]:
    """Send some bytes to a worker and back; return the round-trip seconds of 1 byte, and bytes/s of 8 MiB."""
    accepted = Contract(
        frozenset({Kind.CHECK}), num_samples={rank: 1}, sender={rank: rank}, state_bytes=_EXCHANGED_BYTES
    )
    seconds = {}
    for size in (1, _EXCHANGED_BYTES):
        sent = torch.arange(size).to(torch.uint8)
        began = time.perf_counter()
        transport.send(rank, Check(sent))
        source, message = transport.receive(accepted)
        seconds[size] = time.perf_counter() - began
        if source != rank or not isinstance(message, Check) or not torch.equal(message.content, sent):
            raise GktError(f"rank {rank} has returned different bytes from those it was sent")
    return seconds[1], 2 * _EXCHANGED_BYTES / seconds[_EXCHANGED_BYTES]


@contextmanager
def _folders(config: RunConfig) -> Iterator[tuple[dict[str, str], list[str], list[str]]]:
    """Check the data and try to write into the run's folders, on the server.

    Yield what every worker must see (a path for each field), the problems to fix, and notes. The files written are
    removed at the end.
    """
    seen: dict[str, str] = {}
    made: list[Path] = []
    to_fix: list[str] = []
    said: list[str] = []

    def write(name: str, folder: Path) -> None:
        """Create a file in a folder, which is created if missing, for the workers to see."""
        path = folder / f".gkt_mpi-check-{secrets.token_hex(8)}"
        try:
            made.extend(reversed([parent for parent in (*reversed(folder.parents), folder) if not parent.exists()]))
            folder.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError as error:
            to_fix.append(f"{name}: {error.strerror}: {folder}; set it to a folder that this rank may write")
            return
        made.insert(0, path)
        seen[name] = str(path)

    try:
        found = look_for(config.data)
        if isinstance(found, ImageFile):
            seen["data.dir"] = str(found.path)
            to_fix += _too_large(config, found)
            partition(found.labels("train"), config.clients or 1, config.data, config.seed, found.owners("train"))
        else:
            said.append(found)
            write("data.dir", file_path(config.data).parent)
        digests_of_weights(config)  # refuses unreadable files
    except ConfigError as error:
        to_fix.append(str(error))
    try:
        write("out", expand(config.out, "out"))
        yield seen, to_fix, said
    finally:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()


def _unseen(seen: Mapping[str, str]) -> list[str]:
    """Return the problems of a worker that does not see the server's files."""
    to_fix = []
    for name, path in seen.items():
        try:
            if path.endswith(".h5"):
                ImageFile(Path(path))
            is_there = Path(path).exists()
        except (OSError, ConfigError) as error:
            to_fix.append(str(error))
            continue
        if not is_there:
            to_fix.append(f"it does not see the server's {name}, {Path(path).parent}; set {name} to a shared folder")
    return to_fix


def _too_large(config: RunConfig, file: ImageFile) -> list[str]:
    """Return a problem if the features of a round do not fit into the server's memory."""
    needed = bank_mib(config, images_in(file))
    limit = config.bank.memory_mib
    in_memory = needed if limit is None else min(needed, limit)
    if in_memory < 0.9 * available_memory_mib():
        return []
    return [
        f"the features of a round are {needed:,.0f} MiB in {config.wire.codec}, and the server has "
        f"{available_memory_mib():,.0f} MiB of memory left; set bank.memory_mib below that, or another wire.codec"
    ]


def _short_of_memory(config: RunConfig, looks: Mapping[int, Look]) -> list[str]:
    """Return a problem for each node whose ranks need more memory than it, or the job, has."""
    images = images_of(config)
    if images is None:
        return []
    to_fix = []
    for host in dict.fromkeys(its.host for its in looks.values()):
        there = {rank: its for rank, its in looks.items() if its.host == host}
        limit, limit_by = min((its.limit_mib, its.limit_by) for its in there.values())
        ranks = ((rank == SERVER, its.device.startswith("cuda")) for rank, its in there.items())
        needed = sum(needed_mib(config, images, *rank) for rank in ranks)
        if needed > limit:
            advice = f"set sbatch --mem={math.ceil(1.1 * needed / 1024)}G, or fewer ranks a node"
            if limit_by.startswith("its control"):
                advice = "raise that limit, or start fewer ranks on the node"
            elif not limit_by.startswith("SLURM"):
                advice = "take more nodes or fewer ranks, smaller batches, or a lower bank.memory_mib"
            to_fix.append(
                f"{len(there)} ranks on {host} need about {needed / 1024:.1f} GiB of memory, more than the "
                f"{limit / 1024:.1f} GiB of {limit_by}; {advice}"
            )
    return to_fix


def _differences(looks: Mapping[int, Look]) -> list[str]:
    """Return the problems of ranks that differ where they must not."""
    first = looks[SERVER]
    to_fix = []
    for rank, its in sorted(looks.items()):
        who = f"rank {rank} on {its.host}"
        for name in first.software.keys() | its.software.keys():
            here, there = first.software.get(name, "none"), its.software.get(name, "none")
            if here != there:
                to_fix.append(f"{who} has {name} {there}, rank 0 has {here}; give every node the same environment")
        if its.config != first.config:
            to_fix.append(
                f"{who} has read a different configuration from rank 0's, or modules; give every node the same files"
            )
    return to_fix


def _notes(config: RunConfig, looks: Mapping[int, Look]) -> Iterator[str]:
    """Yield notes that do not prevent the run."""
    assert config.clients is not None
    idle = len(looks) - 1 - config.clients
    if idle > 0:
        yield f"{idle} of {len(looks) - 1} workers have nothing to do, since there are {config.clients} clients"
    if looks[SERVER].software.get("survives lost workers") == "no":
        yield "a worker that dies ends the run, to be resumed; with Open MPI 5, mpirun --with-ft ulfm survives it"


def _rank_table(looks: Mapping[int, Look], rates: Mapping[int, tuple[float, float]]) -> Table:
    """Return the table of the ranks, with the results of the exchange with each."""
    table = Table(box=None, pad_edge=False)
    for name in ("rank", "host", "role", "device"):
        table.add_column(name, overflow="fold")
    for name in ("threads", "memory left", "there and back", "8 MiB blocks"):
        table.add_column(name, justify="right", no_wrap=True)
    for rank, its in sorted(looks.items()):
        role = "server" if rank == SERVER else "worker"
        latency, rate = rates.get(rank, (None, None))
        exchange = (
            ("", "") if latency is None or rate is None else (f"{latency * 1e3:.2f} ms", f"{rate / 1e9:.2f} GB/s")
        )
        memory = f"{its.memory_mib / 1024:.1f} GiB"
        table.add_row(str(rank), its.host, role, its.device, str(its.threads), memory, *exchange)
    return table


def _software_table(looks: Mapping[int, Look]) -> Table:
    """Return a table of programs and properties of MPI, with one column for all ranks that agree."""
    columns: dict[str, list[int]] = {}
    for rank, its in sorted(looks.items()):
        columns.setdefault(json.dumps(its.software), []).append(rank)
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for ranks in columns.values():
        table.add_column("every rank" if len(columns) == 1 else f"rank {', '.join(map(str, ranks))}", overflow="fold")
    found = [json.loads(text) for text in columns]
    for name in dict.fromkeys(name for its in found for name in its):
        table.add_row(name, *(its.get(name, "none") for its in found))
    return table


def _bytes(content: object) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(content).encode()), dtype=torch.uint8)


def _text(content: Tensor) -> str:
    return bytes(content.numpy()).decode()
