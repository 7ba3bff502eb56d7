"""What mixing clients in the server's batches is worth: python benchmarks/batch_order.py [--out DIR] [--seeds N].

Runs the digits configuration with both values of server.batch_order on homo and hetero partitions, once a seed (about
45 seconds each on two cores), and prints the table of the README: final test accuracy, mean and standard deviation.
Runs that are already complete in DIR are read, not repeated.
"""

import argparse
import json
import statistics
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent


def accuracies(out: Path, partition: str, order: str, seed: int) -> tuple[float, float]:
    """Return the final test accuracy of the server model and of the edge models alone, of one run."""
    name = f"{partition}-{order}-{seed}"
    summary = out / name / "summary.json"
    if not summary.exists():
        fields = ["--name", name, "--out", str(out), "--seed", str(seed)]
        fields += ["--data.partition", partition, "--server.batch_order", order]
        command = ["sh", "launch/mpirun.sh", "-np", "5", "python", "-m", "gkt_mpi.main"]
        command += ["--config", "launch/configs/digits.yaml", *fields]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    found = json.loads(summary.read_text())
    return found["final_test_accuracy"], found["final_client_test_accuracy"]


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "batch_order")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    print("| partition | server.batch_order | server model | edge models alone |\n|---|---|---|---|")
    for partition in ("homo", "hetero"):
        for order in ("mixed", "by_client"):
            found = [accuracies(options.out.resolve(), partition, order, seed) for seed in range(options.seeds)]
            cells = [f"{statistics.mean(side):.3f} ± {statistics.stdev(side):.3f}" for side in zip(*found, strict=True)]
            print(f"| {partition} | {order} | {cells[0]} | {cells[1]} |", flush=True)


if __name__ == "__main__":
    main()
