"""What mixing clients in the server's batches is worth: python benchmarks/batch_order.py [--out DIR] [--seeds N].

Runs the digits configuration with both values of server.batch_order on homo and hetero partitions, once a seed (about
45 seconds each on two cores), and prints the table of docs/accuracy.md: final test accuracy, mean and standard
deviation. Runs that are already complete in DIR are read, not repeated.
"""

import argparse
from pathlib import Path

from bench import ROOT, mean_and_spread, summary_of


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "batch_order")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    print("| partition | server.batch_order | server model | edge models alone |\n|---|---|---|---|")
    for partition in ("homo", "hetero"):
        for order in ("mixed", "by_client"):
            found = []
            for seed in range(options.seeds):
                fields = ["--seed", str(seed), "--data.partition", partition, "--server.batch_order", order]
                name = f"{partition}-{order}-{seed}"
                found.append(summary_of(options.out.resolve(), name, "digits", fields))
            server = mean_and_spread(summary["final_test_accuracy"] for summary in found)
            edge = mean_and_spread(summary["final_client_test_accuracy"] for summary in found)
            print(f"| {partition} | {order} | {server} | {edge} |", flush=True)


if __name__ == "__main__":
    main()
