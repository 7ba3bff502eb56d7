"""A round beside the bare compute it needs and beside the released arrangement: make bench-round [JSON=FILE].

4 clients of 512 made-up images of 32x32, batch 64, one client epoch, one server epoch, ResNet-8 and ResNet-56, 512 test
images: 5 ranks on this machine. Its seconds by phase, as metrics.jsonl has them, beside bare loops over tensors in
memory that do the same passes: the clients' training and extraction in as many processes as there are cores, one thread
each; the server's training, prediction and evaluation with all cores. And beside the same round as the released code
arranges it (released.py). All take turns, and are compared turn by turn; medians over turns, in which a first round,
which warms up, does not count.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench import ROOT, machine
from rich.console import Console
from rich.table import Table
from torch import nn

from gkt_mpi.log.records import read_records
from gkt_mpi.models.networks import PRECISIONS, Precision, build_edge_model, build_server_model
from gkt_mpi.placement import keep_freed_memory

CLIENTS, IMAGES, TEST, BATCH, EVALUATE_BATCH = 4, 512, 512, 64, 500
PHASES = {"client_s": "clients", "server_s": "server", "evaluate_s": "evaluation"}
CPU = torch.device("cpu")


def run_round(precision: Precision, folder: Path, rounds: int) -> dict[str, float]:
    """Return the median seconds of the phases of a round, and of the whole."""
    fields = {
        **{"name": "round", "out": folder, "rounds": rounds + 1, "clients": CLIENTS, "compute.precision": precision},
        **{"data.name": "synthetic", "data.dir": folder, "data.synthetic.size": 32, "data.synthetic.test": TEST},
        **{"data.synthetic.train": CLIENTS * IMAGES, "client.batch_size": BATCH, "server.batch_size": BATCH},
        **{"server.epochs": 1, "checkpoint.resume": "never", "placement.device": "cpu"},
        **{"evaluate.batch_size": EVALUATE_BATCH, "log.report": "never"},
    }
    launch = ["sh", "launch/mpirun.sh", "-np", str(CLIENTS + 1), "python", "-m", "gkt_mpi.main"]
    command = [*launch, *(f"--{name}={value}" for name, value in fields.items())]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    records = read_records(folder / "round" / "metrics.jsonl")[1:]
    keys = ("client_s", "wire_s", "server_s", "evaluate_s", "checkpoint_s", "round_s")
    return {key: statistics.median(record[key] for record in records) for key in keys}


def released_round(rounds: int) -> float:
    """Return the median seconds of a round as the released code arranges it."""
    sizes = map(str, (CLIENTS, IMAGES, TEST, BATCH, rounds + 1))
    launch = ["sh", "launch/mpirun.sh", "--with-ft", "no", "-np", str(CLIENTS + 1), "python", "-m", "mpi4py"]
    command = [*launch, "benchmarks/released.py", *sizes]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return statistics.median(json.loads(done.stdout)[1:])


def train(model: nn.Module, shape: tuple[int, ...], num: int, precision: Precision) -> Callable[[], None]:
    """Return a bare training epoch over `num` samples."""
    layers = nn.Sequential(*model.children())
    sample = torch.rand(num, *shape).contiguous(memory_format=torch.channels_last)
    label = torch.randint(0, 10, (num,))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, weight_decay=1e-4, amsgrad=True, fused=True)

    def epoch() -> None:
        """Take one step for each batch."""
        model.train()
        for x, y in zip(sample.split(BATCH), label.split(BATCH), strict=True):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                logit = layers(x)
            optimizer.zero_grad()
            nn.functional.cross_entropy(logit.float(), y).backward()
            optimizer.step()

    return epoch


def forward(model: nn.Module, shape: tuple[int, ...], num: int, batch: int, precision: Precision) -> Callable[[], None]:
    """Return a bare forward pass over `num` samples."""
    layers = nn.Sequential(*model.children())
    sample = torch.rand(num, *shape).contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def epoch() -> None:
        """Pass every sample through the network once, without gradients."""
        model.eval()
        for x in sample.split(batch):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                layers(x)

    return epoch


def timed(passes: dict[str, list[Callable[[], None]]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each group of passes, after one turn to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(rounds + 1):
        for name, group in passes.items():
            began = time.perf_counter()
            for each in group:
                each()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(found[1:]) for name, found in seconds.items()}


def bare(which: str, precision: Precision, rounds: int) -> dict[str, float]:
    """Return the seconds of bare passes in this process: one core's share of the clients, or the server's."""
    keep_freed_memory()
    cores = len(os.sched_getaffinity(0))
    edge = build_edge_model("resnet8", (32, 32, 3), 10, torch.Generator().manual_seed(0), CPU)
    if which == "clients":
        torch.set_num_threads(1)
        share = CLIENTS * IMAGES // cores
        passes = [train(edge, (3, 32, 32), share, precision), forward(edge, (3, 32, 32), share, 128, precision)]
        return timed({"client_s": passes}, rounds)
    torch.set_num_threads(cores)
    server = build_server_model("resnet56", (32, 32, 16), 10, torch.Generator().manual_seed(0), CPU)
    folded, feature, num = server.folded(), (16, 32, 32), CLIENTS * IMAGES
    passes = [train(server, feature, num, precision), forward(folded, feature, num, EVALUATE_BATCH, precision)]
    evaluation = [
        forward(edge, (3, 32, 32), TEST, TEST // CLIENTS, precision),
        forward(folded, feature, TEST, TEST // CLIENTS, precision),
    ]
    return timed({"server_s": passes, "evaluate_s": evaluation}, rounds)


def bare_round(precision: Precision, rounds: int) -> dict[str, float]:
    """Return the seconds of the bare passes of a round."""

    def start(which: str) -> "subprocess.Popen[str]":
        command = [sys.executable, __file__, "--bare", which, precision, str(rounds)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    clients = [start("clients") for _ in range(len(os.sched_getaffinity(0)))]
    found = {"client_s": max(json.loads(process.communicate()[0])["client_s"] for process in clients)}
    return found | json.loads(start("server").communicate()[0])


def table_of(turns: list[dict[str, Any]]) -> Table:
    """Return the medians over the turns; the ratios are those of each turn."""
    table = Table(title=f"seconds of a round; {machine()}", title_justify="left")
    names = ("whole", *PHASES.values(), "wire", "checkpoint", "of the bare", "of the released")
    for name in ("precision", "", *names):
        table.add_column(name, justify="right" if name in names else "left")
    for precision in PRECISIONS:
        found = [turn[precision] for turn in turns]
        run, loops = (
            {key: statistics.median(each[who][key] for each in found) for key in found[0][who]}
            for who in ("ours", "bare")
        )
        bare_s = [sum(each["bare"].values()) for each in found]
        of_bare = [each["ours"]["round_s"] / bare for each, bare in zip(found, bare_s, strict=True)]
        of_released = [turn[precision]["ours"]["round_s"] / turn["released_s"] for turn in turns]
        cells = [f"{run[key]:.2f}" for key in ("round_s", *PHASES, "wire_s", "checkpoint_s")]
        ratios = (f"{statistics.median(of_bare):.3f}", f"{statistics.median(of_released):.2f}")
        table.add_row(precision, "ours", *cells, *ratios)
        cells = [f"{statistics.median(bare_s):.2f}", *(f"{loops[key]:.2f}" for key in PHASES)]
        table.add_row("", "bare", *cells, "", "", "", "")
    released_s = statistics.median(turn["released_s"] for turn in turns)
    table.add_row("float32", "released", f"{released_s:.2f}", *[""] * 7)
    return table


def main() -> None:
    """Take turns, print the table, and write it as JSON."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the table here")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bare", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        which, precision, rounds = options.bare
        print(json.dumps(bare(which, precision, int(rounds))))
        return
    turns: list[dict[str, Any]] = []
    for _ in range(options.turns):
        turn: dict[str, Any] = {"released_s": released_round(1)}
        for precision in PRECISIONS:
            with tempfile.TemporaryDirectory() as folder:
                ours = run_round(precision, Path(folder), options.rounds)
            turn[precision] = {"ours": ours, "bare": bare_round(precision, options.rounds)}
        turns.append(turn)
    Console(width=120).print(table_of(turns))
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "turns": turns}, indent=2) + "\n")


if __name__ == "__main__":
    main()
