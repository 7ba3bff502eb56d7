"""FedGKT beside what it is compared with: make compare (python benchmarks/compare.py [--out DIR] [--seeds N]).

Every configuration of launch/configs/compare (FedGKT, FedAvg, split learning, centralized, every client alone) on
handwritten digits, homo and hetero (Dirichlet 0.5), several seeds, one run after the other on this machine; about 15
minutes on two cores. Runs that are complete in the folder are not repeated, so that a comparison goes on where it was
cut off. Ends with the page that compares them (observe/comparison.py), and its first table here.
"""

import argparse
import csv
import time
from pathlib import Path

from bench import ROOT, is_complete, machine, summary_of
from rich.console import Console
from rich.table import Table

from gkt_mpi.observe.report import write_report

ALGORITHMS = ("fedgkt", "fedavg", "split_learning", "centralized", "standalone")
PARTITIONS = {"homo": [], "hetero": ["--data.alpha", "0.5"]}


def main() -> None:
    """Run what is missing, write the page, and print its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "compare")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error(f"--seeds is {options.seeds}; expected at least 1")
    out = options.out.expanduser().resolve()
    runs = [
        (f"{algorithm}-{partition}-{seed}", algorithm, ["--data.partition", partition, *alpha, "--seed", str(seed)])
        for seed in range(options.seeds)
        for partition, alpha in PARTITIONS.items()
        for algorithm in ALGORITHMS
        if (algorithm, partition) != ("centralized", "hetero")  # where all images are in one place, nothing is spread
    ]
    began, to_do = time.monotonic(), sum(not is_complete(out / name) for name, _, _ in runs)
    done = 0
    print(f"{len(runs)} runs, {len(runs) - to_do} of them complete in {out}", flush=True)
    for name, algorithm, fields in runs:
        is_new = not is_complete(out / name)
        summary = summary_of(out, name, f"compare/{algorithm}", fields)
        if is_new:
            done += 1
            left_s = (time.monotonic() - began) / done * (to_do - done)
            accuracy = f"test accuracy {summary['final_test_accuracy']:.4f}"
            print(
                f"{done}/{to_do}  {name:<24}{accuracy}  {summary['total_s']:.0f} s  {left_s / 60:.0f} min left",
                flush=True,
            )
    page = write_report([out / name for name, _, _ in runs])
    _print_table(page.parent / "tables" / "accuracy.csv")
    print(f"{(time.monotonic() - began) / 60:.1f} min on {machine()}\nreport: {page}")


def _print_table(path: Path) -> None:
    with open(path, newline="") as file:
        names, *rows = csv.reader(file)
    table = Table(title="final test accuracy", title_justify="left")
    for name in names:
        table.add_column(name)
    for row in rows:
        table.add_row(*row)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
