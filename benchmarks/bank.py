"""What a bank on the disk costs: make bench-bank (python benchmarks/bank.py [--dir DIR] [--gib 2] [--json FILE]).

Random batches of 256 CIFAR-sized features in float32 (16.8 MB) out of a bank of --gib GiB: in memory; in the file, with
its pages in the system's cache; in the file, read from the disk; and, as the disk's limit, the file read from its
beginning to its end. Medians of 30 batches. With a computation of 50 ms between the batches, in which the next one is
prefetched, as in training.
"""

import argparse
import itertools
import json
import mmap
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from bench import machine
from rich.console import Console
from rich.table import Table

from gkt_mpi.learners.feature_rows import BankConfig, FeatureRows

ROW_BYTES, BATCH, BATCHES = 65536, 256, 30


def forget(rows: FeatureRows) -> None:
    """Have the system drop the file's pages from memory."""
    assert rows.path is not None
    rows._map.flush()
    rows._map.madvise(mmap.MADV_DONTNEED)
    with open(rows.path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def gather_s(rows: FeatureRows, num_rows: int, compute_s: float, cold: bool) -> float:
    """Return the median seconds of reading a random batch."""
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(0))  # as in an epoch, no row twice
    batches = order.split(BATCH)[: BATCHES + 1]
    if cold:
        forget(rows)
    seconds = []
    for row, following in itertools.pairwise(batches):
        began = time.perf_counter()
        rows.prefetch(following)
        rows.gather(row)
        seconds.append(time.perf_counter() - began)
        time.sleep(compute_s)
    return statistics.median(seconds)


def sequential_s(rows: FeatureRows) -> float:
    """Return the seconds that the disk takes for a batch's bytes when it reads the whole file in order."""
    assert rows.path is not None
    forget(rows)
    size, began = 0, time.perf_counter()
    with open(rows.path, "rb", buffering=0) as file:
        while chunk := file.read(2**24):
            size += len(chunk)
    return (time.perf_counter() - began) * BATCH * ROW_BYTES / size


def main() -> None:
    """Measure, print the table, and write it as JSON."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--dir", type=Path, help="where the file lies; default: the system's temporary folder")
    parser.add_argument("--gib", type=float, default=2.0)
    parser.add_argument("--json", type=Path, help="also write the table here")
    options = parser.parse_args()
    num_rows = int(options.gib * 2**30) // ROW_BYTES
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        near = FeatureRows([num_rows], ROW_BYTES, BankConfig(), Path(folder))
        near.slice(slice(0, num_rows)).fill_(1)
        found = {"in memory": gather_s(near, num_rows, 0, False)}
        del near
        far = FeatureRows([num_rows], ROW_BYTES, BankConfig(0), Path(folder))
        far.slice(slice(0, num_rows)).fill_(1)
        found["in the file, cached"] = gather_s(far, num_rows, 0, False)
        found["in the file, cold"] = gather_s(far, num_rows, 0, True)
        found["in the file, cold, 50 ms of computing between batches"] = gather_s(far, num_rows, 0.05, True)
        found["the disk, read in order (limit)"] = sequential_s(far)
        far.close()
    table = Table(title=f"a random batch of 16.8 MB; {machine()}", title_justify="left")
    for name in ("features", "ms", "GB/s"):
        table.add_column(name, justify="left" if name == "features" else "right")
    for name, seconds in found.items():
        table.add_row(name, f"{1000 * seconds:.1f}", f"{BATCH * ROW_BYTES / seconds / 1e9:.2f}")
    Console(width=110).print(table)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "seconds": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
