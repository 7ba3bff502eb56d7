"""Run folders with chosen figures, as a real run would write them, for tests of the reports."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import yaml

from gkt_mpi.config import RunConfig
from gkt_mpi.facts import FEDGKT
from gkt_mpi.log.csv_log import CsvLog, UploadRecord
from gkt_mpi.log.run_log import RunLog

CLASSES = [str(digit) for digit in range(10)]


def configuration(name: str, algorithm: str, seed: int, **changes) -> dict:
    """Return a configuration; `changes` use __ for the dot of a field."""
    config = RunConfig().as_dict() | {"name": name, "algorithm": algorithm, "seed": seed, "clients": 4}
    for field, value in changes.items():
        *groups, last = field.split("__")
        place = config
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
    return config


def make_run(
    folder: Path,
    algorithm: str = "fedgkt",
    seed: int = 0,
    accuracy: tuple = (0.5, 0.75),
    figures: dict | None = None,
    status: str | None = "completed",
    partitioned: bool = True,
    lacking: tuple = (),
    uploads: Sequence[UploadRecord] = (),
    start: dict | None = None,
    **changes,
) -> Path:
    """Write a run folder with these test accuracies, None for a round without, and return it.

    `figures` apply to every round, and replace the defaults; `lacking` are keys that the records do not have; `uploads`
    are the lines of uploads.csv, `start` the contents of run.json. `status` None omits summary.json.
    """
    config = configuration(folder.name, algorithm, seed, **({"rounds": len(accuracy)} | changes))
    log = RunLog(folder, config, "made for a test")
    if partitioned:
        shards = [np.arange(5) + 5 * client for client in range(4)]
        log.save_partition(shards, np.full((4, 10), 1 + seed, np.int64), CLASSES)
    records = [_record(round, value, figures or {}, lacking) for round, value in enumerate(accuracy, 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    CsvLog(folder / "uploads.csv", UploadRecord).append(uploads)
    if start is not None:
        (folder / "run.json").write_text(json.dumps(start, indent=2) + "\n")
    if status is not None:
        sums = {
            key: sum(r[key] for r in records)
            for key in ("upload_bytes", "download_bytes")
            if records and key in records[0]
        }
        summary = {"rounds": len(records), **sums, "total_s": 10.0 * len(records), "status": status}
        final = next((value for value in reversed(accuracy) if value is not None), None)
        if status == "completed":
            summary |= {"final_test_accuracy": final, "best_test_accuracy": final, "best_round": len(records)}
            if "client_test_accuracy" in records[-1]:
                summary["final_client_test_accuracy"] = records[-1]["client_test_accuracy"]
        (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return folder


def _record(round: int, accuracy: float | None, figures: dict, lacking: tuple) -> dict:
    record = {"round": round, "refused_messages": 0, "lost_workers": 0, "dropped_clients": 0, "participants": 4}
    record |= {"client_train_loss": 2.3 / round, "server_train_loss": 2.0 / round, "server_lr": 0.003}
    record |= {"upload_bytes": 4_000_000, "download_bytes": 40_000, "simulation_bytes": 700_000}
    record |= {"edge_flops": 8e9, "virtual_s": 90.0, "client_s": 5.0, "wire_s": 0.5, "server_s": 3.0}
    record |= {"evaluate_s": 1.0, "checkpoint_s": 0.5, "round_s": 10.0, "server_peak_mib": 300.0}
    if accuracy is not None:
        record |= {"test_accuracy": accuracy, "client_test_accuracy": accuracy / 2}
    return {key: value for key, value in (record | figures).items() if key not in lacking}


# What a round of each algorithm is like: bytes up and down, operations, seconds on devices, final accuracy.
_KINDS = {
    "fedgkt": ((40e6, 4e5, 3e11, 400.0), 0.93),
    "fedgkt_async": ((40e6, 4e5, 3e11, 150.0), 0.925),
    "fedavg": ((9.5e6, 9.5e6, 3e12, 900.0), 0.945),
    "split_learning": ((1.6e8, 1.6e8, 3e11, 2500.0), 0.91),
    "standalone": ((0, 0, 3e11, 100.0), 0.78),
    "centralized": ((0, 0, 0, 0.0), 0.97),
}
_LACKING = {
    "fedavg": ("client_test_accuracy", "server_train_loss", "server_s"),
    "split_learning": ("client_test_accuracy", "server_train_loss"),
    "standalone": ("server_train_loss", "server_s", "wire_s", "server_lr"),
    "centralized": ("client_test_accuracy", "client_train_loss", "client_s", "wire_s"),
}


def made_uploads(num_clients: int = 4, rounds: int = 2, slow_s: float = 5.0) -> list[UploadRecord]:
    """Return uploads of clients that work 2 s each time, the last client `slow_s`; the server learns 1 s from each."""
    takes = [2.0] * (num_clients - 1) + [slow_s]
    asked, number, based_on = [0.0] * num_clients, [0] * num_clients, [0] * num_clients
    now, uploads = 0.0, []
    for taken in range(rounds * num_clients):
        client = min(range(num_clients), key=lambda client: (asked[client] + takes[client], client))
        done = asked[client] + takes[client]
        begun = max(now, done)
        now = begun + 1.0
        age = (taken - based_on[client]) / num_clients
        uploads.append(
            UploadRecord(1 + taken // num_clients, client, number[client], asked[client], done, begun, now, age, 1)
        )
        asked[client], based_on[client] = now, taken + 1
        number[client] += 1
    return uploads


def make_study(root: Path, seeds: int = 3, rounds: int = 60, columns: tuple = (), **changes) -> list[Path]:
    """Write the runs of a whole comparison: every algorithm, on each (data set, partition, alpha), with every seed."""
    folders = []
    columns = columns or (("digits", "homo", 0.5), ("digits", "hetero", 0.1))
    for data, partition, alpha in columns:
        for algorithm, ((up, down, flops, virtual_s), final) in _KINDS.items():
            if algorithm == "centralized" and partition != "homo":
                continue
            for seed in range(seeds):
                generator = np.random.default_rng([seed, len(folders)])
                reached = final - (0.12 if partition == "hetero" else 0) - (0.2 if data == "cifar100" else 0)
                pace = np.linspace(0, 4, rounds)
                accuracy = reached - (reached - 0.1) * np.exp(-pace) + generator.normal(0, 0.015, rounds)
                folders.append(
                    make_run(
                        root / f"{data}-{partition}-{algorithm}-{seed}",
                        algorithm,
                        seed,
                        tuple(accuracy.clip(0, 1)),
                        {"upload_bytes": up, "download_bytes": down, "edge_flops": flops, "virtual_s": virtual_s}
                        | {"participants": 0 if algorithm == "centralized" else 4},
                        partitioned=algorithm != "centralized",
                        lacking=_LACKING.get(algorithm, ()),
                        data__name=data,
                        data__partition=partition,
                        data__alpha=alpha,
                        **({"split__mode": "parallel"} if algorithm == "split_learning" else {}),
                        **changes,
                    )
                )
    return folders


def made_start(algorithm: str, title: str, **changes) -> dict:
    """Return the contents of run.json of a user's own algorithm, which has the facts of FedGKT otherwise."""
    facts = asdict(FEDGKT) | {"name": algorithm, "title": title} | changes
    noted = {"command": "mpirun -np 3 python -m gkt_mpi.main --name x", "host": "node7", "commit": "0123abc"}
    noted |= {"versions": "gkt_mpi 0.1.0, torch 2.13.0", "started": "2026-11-27T18:00:00+00:00"}
    return {**noted, "algorithm": facts, "titles": {"my_nets:TINY": "TinyNet", "resnet8": "ResNet-8"}}


def change_config(folder: Path, **changes) -> None:
    """Change fields of a run folder's config.yaml; `changes` use __ for the dot of a field."""
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    for field, value in changes.items():
        *groups, last = field.split("__")
        place = config
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
    path.write_text(yaml.safe_dump(config, sort_keys=False))
