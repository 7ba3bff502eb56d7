"""What each cause is worth on a small piece of CIFAR-10: make ablation (ARGS="--data DIR --seeds 2").

Runs of launch/configs/ablation.yaml, each with a switch or two changed, one after the other on this machine; those that
are complete in the folder are not repeated. Prints a table of final accuracies on 2,000 test images, mean and standard
deviation over seeds: of the server's network behind every client's stem, of the edge models alone, and of the one model
for everybody where clients share weights.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from bench import ROOT, machine, mean_and_spread, summary_of
from rich.console import Console
from rich.table import Table

RECIPE = "--client.share edge --client.extract shared"
SCHEDULES = "--client.schedule linear --server.schedule linear --server.warmup_rounds 0.5"
VARIANTS = {
    "as published, clients mixed in a batch": "",
    "as published, client by client": "--server.batch_order by_client",
    "the stem is shared": "--client.share stem",
    "the edge is shared": "--client.share edge",
    "the edge is shared, features by the mean": RECIPE,
    "the stem is shared, features by the mean": "--client.share stem --client.extract shared",
    "edge shared first, linear to 0 on both sides": f"{RECIPE} {SCHEDULES}",
    "edge shared first, linear to 0, no Cutout": f"{RECIPE} {SCHEDULES} --data.augment crop_flip",
    "edge shared first, linear to 0, no server logits": f"{RECIPE} {SCHEDULES} --distill.on_client false",
    "as published, linear to 0 on both sides": SCHEDULES,
    "FedAvg, one pass a round": "--algorithm fedavg --client.epochs 1",
    "FedAvg, one pass a round, linear to 0": "--algorithm fedavg --client.epochs 1 --client.schedule linear",
    "centralized, one pass a round, linear to 0": "--algorithm centralized --server.schedule linear",
}


def main() -> None:
    """Run what is missing, print the table, and write it as JSON."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the table here")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="folder with CIFAR-10's archive")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "ablation")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--partition", choices=("homo", "hetero"), default="hetero")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of variants, from 0")
    parser.add_argument("fields", nargs="*", help="for every run, after --: --data.limit 2000 ...")
    options = parser.parse_args()
    names = [name for k, name in enumerate(VARIANTS) if options.only is None or k in options.only]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for seed in range(options.seeds):
        for name in names:
            fields = [*VARIANTS[name].split(), "--data.dir", str(options.data), "--data.partition", options.partition]
            folder = f"{list(VARIANTS).index(name):02d}-{options.partition}-{seed}"
            ranks = 1 if "centralized" in fields else options.ranks
            fields += ["--seed", str(seed), *options.fields]
            found[name].append(summary_of(options.out.resolve(), folder, "ablation", fields, ranks))
            print(f"{folder}  {name}: {found[name][-1]['final_test_accuracy']:.4f}", flush=True)
    table = Table(title=f"{options.partition}, {options.seeds} seed(s); {machine()}", title_justify="left")
    columns = {
        "test_accuracy": "server model",
        "client_test_accuracy": "edge alone",
        "global_test_accuracy": "one for all",
    }
    for title in ("", *columns.values()):
        table.add_column(title, justify="right" if title else "left")
    for name, summaries in found.items():
        cells = [[s[f"final_{key}"] for s in summaries if f"final_{key}" in s] for key in columns]
        table.add_row(name, *(mean_and_spread(cell) if cell else "" for cell in cells))
    Console(width=120).print(table)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "summaries": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
