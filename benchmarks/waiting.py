"""What waiting costs: make bench-waiting (mpirun -np 21 python benchmarks/waiting.py [--json FILE]).

The server computes for a while, as it does in every round, and all workers wait for its next message: once as the
transport waits, and once in MPI's own blocking Recv. Columns: the processor time of all waiting workers together, as
a share of one core, and how late the last worker has the message, also as a share of the wait, which bounds what
waiting adds to a round. Medians of repetitions.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from bench import machine
from mpi4py import MPI
from rich.console import Console
from rich.table import Table

from gkt_mpi.wire.contract import Contract
from gkt_mpi.wire.header import Kind
from gkt_mpi.wire.messages import TrainRequest
from gkt_mpi.wire.mpi import MpiTransport

COMM = MPI.COMM_WORLD
RANK, WORKERS = COMM.rank, range(1, COMM.size)
REQUEST = TrainRequest(0, 1, torch.arange(3125), torch.zeros(3125, 10))


def quiet_barrier() -> None:
    """Wait for all ranks without burning the cores that others measure on."""
    request = COMM.Ibarrier()
    while not request.Test():
        time.sleep(0.01)


def compute(seconds: float) -> None:
    """Train, so to speak, on every core, for so long."""
    weight, began = torch.rand(256, 256), time.perf_counter()
    while time.perf_counter() - began < seconds:
        weight = torch.tanh(weight @ weight)


def measure(way: str, seconds: float) -> dict[str, float]:
    """Let everybody wait once; return the figures, on rank 0."""
    transport, mine = MpiTransport(), (0.0, 0.0)
    quiet_barrier()
    cpu_began, wall_began = time.process_time(), time.perf_counter()
    if RANK > 0:
        if way == "ours":
            contract = Contract(frozenset({Kind.TRAIN}), num_classes=10, num_samples={0: 3125})
            transport.receive(contract)
        else:
            COMM.Recv(bytearray(1), 0)
        arrived = time.perf_counter()  # of the machine's one clock
        mine = ((time.process_time() - cpu_began) / (arrived - wall_began), arrived)
    else:
        compute(seconds)
        sent = time.perf_counter()
        for rank in WORKERS:
            if way == "ours":
                transport.send(rank, REQUEST)
            else:
                COMM.Send(b"x", rank)
        transport.flush()
    quiet_barrier()
    shares, arrivals = zip(*(COMM.gather(mine) or [(0.0, 0.0)]), strict=True)
    if RANK > 0:
        return {}
    late = max(arrivals) - sent
    return {"core": sum(shares), "late_ms": 1000 * late, "late_share": late / seconds}


def main() -> None:
    """Measure both ways, print the table, and write it as JSON."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the table here")
    parser.add_argument("--seconds", type=float, default=30.0, help="of one wait, which is short for a real round")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    rows = []
    for way, label in (("ours", "ours"), ("blocking", "MPI's blocking Recv")):
        seconds = options.seconds if way == "ours" else min(5.0, options.seconds)
        found = [measure(way, seconds) for _ in range(options.repeats)]
        if RANK == 0:
            medians = {name: statistics.median(one[name] for one in found) for name in found[0]}
            rows.append({"way": label, "workers": len(WORKERS), "wait_s": seconds, **medians})
    if RANK > 0:
        return
    where = f"{machine()}, {MPI.Get_library_version().split(',')[0]}"
    table = Table(title=f"{len(WORKERS)} workers wait for the server; {where}", title_justify="left")
    for name in ("way", "wait", "all workers", "last one late by", "of the wait"):
        table.add_column(name, justify="left" if name == "way" else "right")
    for row in rows:
        table.add_row(
            str(row["way"]),
            f"{row['wait_s']:.0f} s",
            f"{row['core']:.1%} of a core",
            f"{row['late_ms']:.1f} ms",
            f"{row['late_share']:.2%}",
        )
    Console(width=110).print(table)
    if options.json:
        options.json.write_text(json.dumps({"machine": where, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
