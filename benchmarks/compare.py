"""FedGKT beside what it is compared with: make compare (python benchmarks/compare.py [--out DIR] [--seeds N]).

Every configuration of launch/configs/compare (FedGKT, FedAvg, split learning, centralized, every client alone) on
handwritten digits, homo and hetero (Dirichlet 0.5), several seeds, one run after the other on this machine; about 15
minutes on two cores. Runs that are complete in the folder are not repeated, so that a comparison goes on where it was
cut off. Ends with the page that compares them (report/comparison.py), and its first table here.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import rich.table
from bench import ROOT, is_complete, machine, summary_of
from rich.console import Console

from gkt_mpi.report.comparison_tables import accuracy_table
from gkt_mpi.report.groups import compare
from gkt_mpi.report.page import write_report
from gkt_mpi.report.run_folder import Run
from gkt_mpi.report.tables import Table

ALGORITHMS = ("fedgkt", "fedavg", "split_learning", "centralized", "standalone")
PARTITIONS = {"homo": [], "hetero": ["--data.alpha", "0.5"]}


def main() -> None:
    """Run what is missing, write the page, and print its table."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=(__doc__ or "").split("\n")[0])
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
        try:
            summary = summary_of(out, name, f"compare/{algorithm}", fields)
        except subprocess.CalledProcessError as error:
            sys.exit(f"gkt_mpi: {name} ended with status {error.returncode}; the same command goes on from there")
        if is_new:
            done += 1
            left_s = (time.monotonic() - began) / done * (to_do - done)
            accuracy = f"test accuracy {summary['final_test_accuracy']:.4f}"
            print(
                f"{done}/{to_do}  {name:<24}{accuracy}  {summary['total_s']:.0f} s  {left_s / 60:.0f} min left",
                flush=True,
            )
    folders = [out / name for name, _, _ in runs]
    page = write_report(folders)
    _print_table(accuracy_table(compare([Run.load(folder) for folder in folders])))
    print(f"{(time.monotonic() - began) / 60:.1f} min on {machine()}\nreport: {page}")


def _print_table(table: Table) -> None:
    """Print the table of final accuracies as the page shows it."""
    shown = rich.table.Table(
        title="final test accuracy, %: mean ± sample standard deviation (seeds)", title_justify="left"
    )
    for cell in table.header[-1]:
        shown.add_column(cell.text)
    for section in table.sections:
        for row in section.rows:
            shown.add_row(*(f"[bold]{cell.text}[/bold] *" if cell.is_best else cell.text for cell in row))
    Console(width=120).print(shown)


if __name__ == "__main__":
    main()
