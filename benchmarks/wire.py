"""How fast uploads reach the server: make bench-wire (mpirun -np 6 python benchmarks/wire.py [--json FILE]).

Every worker uploads the features of 3,125 CIFAR-sized samples (205 MB in float32) at once; first one worker alone,
then all. Rows: a pickled dictionary of batches with `send`, as the official implementation does it; the same with
mpi4py's pkl5; one raw message into a warm buffer of the server, which is the limit; and ours, through the transport
into a real bank with all its checks, once a codec. The limit's buffer is aligned as the bank's is. All ways take turns,
so that a moment in which the machine is slow meets all of them: "of the limit" is the median of the turns' ratios.
Times are of the server, from the word "go" to the last byte; medians over the turns. Extra memory is the peak above
what the process held before (Linux's VmHWM, reset first).
"""

import argparse
import ctypes
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from bench import machine
from mpi4py import MPI
from mpi4py.util import pkl5
from rich.console import Console
from rich.table import Table

from gkt_mpi.federation.collect import Events, collect_uploads
from gkt_mpi.federation.worker import BLOCKS_IN_FLIGHT, LARGEST_BATCH
from gkt_mpi.learners.bank import Bank
from gkt_mpi.learners.feature_rows import BankConfig
from gkt_mpi.wire.codec import Codec, CodecName, WireConfig
from gkt_mpi.wire.contract import Contract
from gkt_mpi.wire.header import Kind
from gkt_mpi.wire.messages import ClientMetrics, ClientReport, FeatureBlock
from gkt_mpi.wire.mpi import MpiTransport

COMM = MPI.COMM_WORLD
RANK = COMM.rank
SAMPLES, BATCH, CLASSES, SHAPE = 3125, 64, 10, (32, 32, 16)
LIMIT = "raw message, warm buffer (limit)"
CODECS: tuple[CodecName, ...] = ("float32", "bfloat16", "float16", "int8", "int4")


def refuse(*why: object) -> None:
    """End the benchmark: nothing it sends may be refused."""
    raise AssertionError(why)


EVENTS = Events(lambda samples: None, refuse, refuse, refuse)


class Peak:
    """The extra memory of this process inside a `with`, in MiB."""

    def __enter__(self) -> "Peak":
        Path("/proc/self/clear_refs").write_text("5")
        self.before = self._read("VmRSS")
        return self

    def __exit__(self, *exception: object) -> None:
        self.mib = max(0.0, (self._read("VmHWM") - self.before) / 1024)

    @staticmethod
    def _read(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name))


def quiet_barrier(pause_s: float = 2e-4) -> None:
    """Wait for all ranks without burning the cores that others measure on."""
    request = COMM.Ibarrier()
    while not request.Test():
        time.sleep(pause_s)


def batches_of(feature: torch.Tensor) -> dict[int, np.ndarray]:
    """Return the features as the official implementation sends them: a dictionary of torch's batches, as numpy."""
    return {k: batch.contiguous().numpy() for k, batch in enumerate(feature.split(BATCH))}


class Pickled:
    """A pickled dictionary of batches."""

    def __init__(self, feature: torch.Tensor | None, workers: range, comm: MPI.Comm) -> None:
        self.batches = batches_of(feature) if feature is not None else {}
        self.workers, self.comm = workers, comm

    def send(self) -> None:
        """Send everything in one message."""
        self.comm.send(self.batches, 0)

    def receive(self) -> None:
        """Receive one message of each worker, and keep them all."""
        self.kept = [self.comm.recv(source=rank) for rank in self.workers]

    def forget(self) -> None:
        """Give what was kept back to the system, where glibc allows it: whether it does so itself is chance."""
        self.kept = []
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


class Raw:
    """One raw message of each worker into memory that is already there and warm."""

    def __init__(self, feature: torch.Tensor | None, workers: range) -> None:
        self.feature = feature.permute(0, 2, 3, 1).numpy() if feature is not None else None
        self.workers = workers
        # From torch, as the bank's: numpy's begins 16 bytes after a multiple of 64, and is a third slower to fill.
        self.memory = [torch.ones(SAMPLES, *SHAPE).numpy() for _ in workers] if RANK == 0 else []

    def send(self) -> None:
        """Send the features as they lie in memory."""
        request = COMM.Isend(self.feature, 0)
        while not request.Test():  # Send would burn a core, and where cores are few the receiver's
            time.sleep(0.001)

    def receive(self) -> None:
        """Receive from all workers at once."""
        pairs = zip(self.memory, self.workers, strict=True)
        MPI.Request.Waitall([COMM.Irecv(memory, rank) for memory, rank in pairs])


class Ours:
    """Blocks through the transport into the bank, encoded on the way and checked as in a run."""

    def __init__(self, feature: torch.Tensor | None, workers: range, name: CodecName) -> None:
        self.codec = Codec(name, SHAPE)
        self.rows = min(LARGEST_BATCH, self.codec.block_rows(WireConfig().block_mib))
        self.workers, self.feature, self.transport = workers, feature, MpiTransport()
        self.label = torch.zeros(SAMPLES, dtype=torch.int16)
        self.logit = torch.zeros(SAMPLES, CLASSES)
        if RANK == 0:
            shards = [np.arange(SAMPLES) for _ in workers]
            self.bank = Bank(shards, CLASSES, self.codec, torch.device("cpu"), BankConfig(), Path())
            self.bank.feature.slice(slice(0, len(self.bank))).fill_(0)  # warm

    def send(self) -> None:
        """Encode and send block by block."""
        assert self.feature is not None
        client = RANK - 1
        ids = torch.arange(SAMPLES)
        for first in range(0, SAMPLES, self.rows):
            rows = slice(first, min(first + self.rows, SAMPLES))
            parts = ids[rows], self.label[rows], self.logit[rows], self.codec.encode(self.feature[rows])
            self.transport.flush(BLOCKS_IN_FLIGHT)
            self.transport.send(0, FeatureBlock(client, 0, first, *parts, SHAPE, self.codec.code_id))
        metrics = ClientMetrics(0, 0, 0, 0, 0, 0)
        self.transport.send(0, ClientReport(client, 0, metrics, torch.zeros(8, dtype=torch.uint8)))
        self.transport.flush()

    def receive(self) -> None:
        """Receive into the bank until every worker has reported."""
        self.bank.open_round()
        clients = {rank - 1: rank for rank in self.workers}
        expected = dict.fromkeys(clients, SAMPLES)
        contract = Contract(
            frozenset({Kind.BLOCK, Kind.REPORT}),
            round=0,
            num_classes=CLASSES,
            num_samples=expected,
            sender=clients,
            feature_shape=SHAPE,
            row_bytes=self.codec.row_bytes,
            codec=self.codec.code_id,
            block_rows=self.rows,
            state_bytes=8,
            admit=self.bank.admit,
        )
        collect_uploads(self.transport, contract, self.bank, expected, EVENTS)


class Measured:
    """One way of sending, and what its repetitions took."""

    def __init__(self, way: Pickled | Raw | Ours) -> None:
        self.way = way
        self.seconds: list[float] = []
        self.server_mib: list[float] = []
        self.worker_mib: list[float] = []

    def repeat(self, workers: range) -> None:
        """Send and receive once, and note it on rank 0."""
        if isinstance(self.way, Pickled):
            self.way.forget()
        quiet_barrier()
        with Peak() as peak:
            began = time.perf_counter()
            if RANK == 0:
                self.way.receive()
            elif RANK in workers:
                self.way.send()
            seconds = time.perf_counter() - began
        quiet_barrier(2e-4 if RANK == 0 or RANK in workers else 0.02)  # the others leave the cores to these
        mib = COMM.gather(peak.mib)
        if mib is not None:
            self.seconds.append(seconds)
            self.server_mib.append(mib[0])
            self.worker_mib.append(max(mib[rank] for rank in workers))

    def row(self, workers: range, limit: list[float]) -> dict[str, float | int]:
        """Return medians over all turns but the first, which warms up; `limit` has the limit's seconds, by turn."""
        seconds, server_mib, worker_mib = (
            statistics.median(values[1:]) for values in (self.seconds, self.server_mib, self.worker_mib)
        )
        return {
            "seconds": seconds,
            "server_extra_mib": server_mib,
            "worker_extra_mib": worker_mib,
            "float32_gb_s": len(workers) * SAMPLES * 65536 / 1e9 / seconds,
            "of_limit": statistics.median(a / b for a, b in zip(limit[1:], self.seconds[1:], strict=True)),
        }


def run(num_workers: int, turns: int) -> list[dict[str, float | str | int]]:
    """Measure every way with this many workers, in turns; return the rows of the table, on rank 0."""
    workers = range(1, 1 + num_workers)
    if RANK == 0:
        print(f"workers at once: {num_workers}, turns: {turns} ...", file=sys.stderr, flush=True)
    feature = None
    if RANK in workers:
        generator = torch.Generator().manual_seed(RANK)
        feature = torch.rand(SAMPLES, *SHAPE, generator=generator).permute(0, 3, 1, 2)
    ways = {
        LIMIT: Measured(Raw(feature, workers)),
        "pickled send, dict of batches": Measured(Pickled(feature, workers, COMM)),
        "pkl5 send, dict of batches": Measured(Pickled(feature, workers, pkl5.Intracomm(COMM))),
        **{f"ours, {name}": Measured(Ours(feature, workers, name)) for name in CODECS},
    }
    for _ in range(turns + 1):
        for measured in ways.values():
            measured.repeat(workers)
    if RANK > 0:
        return []
    limit = ways[LIMIT].seconds
    return [{"workers": num_workers, "way": name, **ways[name].row(workers, limit)} for name in ways]


def main() -> None:
    """Measure with one worker and with all, print the table, and write it as JSON."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the table here")
    parser.add_argument("--turns", type=int, default=15)
    options = parser.parse_args()
    if COMM.size < 2:
        parser.error("a server and a worker are 2 ranks; start it with -np 2 or more (make: NP=2)")
    if options.turns < 1:
        parser.error("--turns must be 1 or more")
    torch.set_num_threads(1)
    rows = run(1, options.turns) + (run(COMM.size - 1, options.turns) if COMM.size > 2 else [])
    if RANK > 0:
        return
    where = f"{machine()}, {MPI.Get_library_version().split(',')[0]}"
    table = Table(title=f"205 MB a worker; {where}", title_justify="left")
    names = ("workers", "way", "s", "GB/s of float32", "of the limit", "server +MiB", "worker +MiB")
    for name in names:
        table.add_column(name, justify="left" if name == "way" else "right")
    for row in rows:
        figures = (f"{row[key]:.3f}" for key in ("seconds", "float32_gb_s", "of_limit"))
        memory = (f"{row[key]:.0f}" for key in ("server_extra_mib", "worker_extra_mib"))
        table.add_row(str(row["workers"]), str(row["way"]), *figures, *memory)
    Console(width=110).print(table)
    if options.json:
        options.json.write_text(json.dumps({"machine": where, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
