"""What a codec costs in accuracy: make bench-codec (python benchmarks/codec.py [--cifar DIR] [--json FILE]).

The same seeds with each codec: the digits configuration (about 40 seconds a run on two cores, so 10 minutes), and with
--cifar, the folder of cifar-10-batches-py, also 2,000 images of CIFAR-10 (another half hour). Prints
final test accuracy, mean and standard deviation over the seeds, and what was uploaded. Complete runs are not repeated.
"""

import argparse
import json
from pathlib import Path

from bench import ROOT, machine, mean_and_spread, summary_of
from rich.console import Console
from rich.table import Table

CODECS = ("float32", "bfloat16", "float16", "int8", "int4")
SMALL = ["--data.limit", "2000", "--data.test_limit", "1000", "--rounds", "3", "--compute.precision", "float32"]


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "codec")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cifar", type=Path, help="the folder in which cifar-10-batches-py lies")
    parser.add_argument("--json", type=Path, help="also write the table here")
    options = parser.parse_args()
    data_sets = {"digits": ("digits", [])}
    if options.cifar:
        data_sets["CIFAR-10, 2,000 images"] = ("cifar10_small", ["--data.dir", str(options.cifar.resolve()), *SMALL])
    table = Table(title=f"{options.seeds} seeds; {machine()}", title_justify="left")
    for column in ("data", "codec", "server model", "edge models alone", "uploaded"):
        table.add_column(column, justify="left" if column in ("data", "codec") else "right")
    rows = []
    for data, (config, changes) in data_sets.items():
        for codec in CODECS:
            found = []
            for seed in range(options.seeds):
                fields = ["--seed", str(seed), "--wire.codec", codec, *changes]
                found.append(summary_of(options.out.resolve(), f"{config}-{codec}-{seed}", config, fields))
            server = [summary["final_test_accuracy"] for summary in found]
            edge = [summary["final_client_test_accuracy"] for summary in found]
            uploaded = found[0]["upload_bytes"]
            rows.append({"data": data, "codec": codec, "server": server, "edge": edge, "upload_bytes": uploaded})
            cells = (mean_and_spread(server), mean_and_spread(edge), f"{uploaded / 1e6:.1f} MB")
            table.add_row(data, codec, *cells)
            print(data, codec, *cells, flush=True)
    Console(width=110).print(table)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
