"""Many clients a worker: make bench-clients (python benchmarks/clients.py [--json FILE]).

The same 50,000 made-up images of 32x32, as many as CIFAR-10 has, on 3 ranks, with 4 clients and with 1,000 of 50 images
each, batch 50: what a sample costs in the clients' phase of a round (training, extraction, upload, and all that goes
with a client), and the workers' memory. The server takes all uploads in, but trains on and answers two batches only:
its own cost is not what is measured here. Medians over rounds.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from bench import ROOT, machine
from rich.console import Console
from rich.table import Table

from gkt_mpi.learners.bank import Bank, BankBatch
from gkt_mpi.log.records import read_records
from gkt_mpi.main import main as run_rank


def thin_out() -> None:
    """Have a bank yield the first batches of each pass only."""
    whole = Bank._batches

    def few(self: Bank, batches: list[torch.Tensor]) -> Iterator[BankBatch]:
        return itertools.islice(whole(self, batches), 2)

    Bank._batches = few  # type: ignore[assignment, method-assign]


def main() -> None:
    """Run with few and with many clients, print the table, and write it as JSON."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the table here")
    parser.add_argument("--clients", type=int, nargs="+", default=[4, 1000])
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    table = Table(title=f"{options.images:,} images on 2 workers; {machine()}", title_justify="left")
    for name in ("clients", "ms a sample", "of the first", "worker MiB", "state of its clients, MiB", "server MiB"):
        table.add_column(name, justify="right")
    rows: list[dict[str, float]] = []
    for clients in options.clients:
        with tempfile.TemporaryDirectory() as folder:
            fields = {
                **{"name": "many", "out": folder, "data.dir": folder, "rounds": options.rounds, "clients": clients},
                **{"data.name": "synthetic", "data.synthetic.train": options.images, "data.synthetic.test": 10},
                **{"data.synthetic.size": 32, "client.batch_size": 50, "server.epochs": 1, "server.batch_size": 256},
                **{"compute.precision": "bfloat16", "placement.device": "cpu", "data.augment": "none"},
            }
            command = ["sh", "launch/mpirun.sh", "-np", "3", "python", __file__, "--rank"]
            command += [f"--{name}={value}" for name, value in fields.items()]
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            records = read_records(Path(folder) / "many" / "metrics.jsonl")
        seconds = statistics.median(record["client_s"] + record["wire_s"] for record in records)
        states = clients / 2 * 170_000 / 2**20
        peaks = {key: records[-1][key] for key in ("worker_peak_mib", "server_peak_mib")}
        rows.append({"clients": clients, "ms": 1e3 * seconds / options.images, "states_mib": states, **peaks})
        first = rows[0]["ms"]
        cells = (f"{rows[-1]['ms']:.3f}", f"{rows[-1]['ms'] / first:.2f}", f"{peaks['worker_peak_mib']:.0f}")
        table.add_row(f"{clients:,}", *cells, f"{states:.0f}", f"{peaks['server_peak_mib']:.0f}")
    Console(width=110).print(table)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    if "--rank" in sys.argv[1:2]:
        thin_out()
        sys.exit(run_rank(sys.argv[2:]))
    main()
