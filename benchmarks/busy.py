"""What a busy machine does to the server's training, by how OpenMP's threads wait: make bench-busy.

Threads that have done their part of an operation wait for the others, by default spinning. Where another process takes
a core away from one of them, the rest burn theirs. Each setting trains ResNet-56 alone, and beside a foreign process of
two OpenMP threads at nice 15; all settings take turns. Medians over turns; ratios are those of each turn.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from bench import machine
from rich.console import Console
from rich.table import Table

from gkt_mpi.models.networks import build_server_model
from gkt_mpi.placement import keep_freed_memory

CORES = len(os.sched_getaffinity(0))
# What is set in the environment, and how many threads train.
SETTINGS: dict[str, tuple[dict[str, str], int]] = {
    "OpenMP's default": ({}, CORES),
    "OMP_WAIT_POLICY=PASSIVE": ({"OMP_WAIT_POLICY": "PASSIVE"}, CORES),
    "GOMP_SPINCOUNT=1000": ({"GOMP_SPINCOUNT": "1000"}, CORES),
    "GOMP_SPINCOUNT=10000": ({"GOMP_SPINCOUNT": "10000"}, CORES),
    "GOMP_SPINCOUNT=100000": ({"GOMP_SPINCOUNT": "100000"}, CORES),
    "one thread fewer": ({}, max(1, CORES - 1)),
}
TASKS = {"8x8, batch 32": (8, 32), "32x32, batch 64": (32, 64)}


def train(size: int, batch: int, threads: int, seconds: float) -> float:
    """Return the median seconds of a training step of ResNet-56 in this process."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    model = build_server_model(
        "resnet56", (32, 32, 16), 10, torch.Generator().manual_seed(0), torch.device("cpu")
    ).train()
    feature = torch.rand(batch, 16, size, size).contiguous(memory_format=torch.channels_last)
    label = torch.randint(0, 10, (batch,))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    steps: list[float] = []
    until = time.perf_counter() + seconds
    while len(steps) < 3 or time.perf_counter() < until:
        began = time.perf_counter()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(feature), label).backward()
        optimizer.step()
        steps.append(time.perf_counter() - began)
    return statistics.median(steps[1:])


def be_busy() -> None:
    """Train with two threads of OpenMP, as politely as nice 15, until killed."""
    os.nice(15)
    train(16, 64, 2, float("inf"))


@contextmanager
def foreign_load(wanted: bool) -> Iterator[None]:
    """Have the foreign process at work during a `with`.

    It is in a session of its own, as another user's would be: Linux shares the cores out between sessions first
    (sched_autogroup), so that its niceness counts for nothing against this one.
    """
    if not wanted:
        yield
        return
    with subprocess.Popen([sys.executable, __file__, "--busy"], start_new_session=True) as process:
        try:
            time.sleep(6)  # it imports torch
            yield
        finally:
            process.kill()


def measure(setting: str, task: str, seconds: float) -> float:
    """Return the seconds of a step with a setting, measured in a process of its own."""
    variables, threads = SETTINGS[setting]
    size, batch = TASKS[task]
    command = [sys.executable, __file__, "--train", *map(str, (size, batch, threads, seconds))]
    done = subprocess.run(command, env=os.environ | variables, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout)


def main() -> None:
    """Take turns and print the table."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the table here")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="that each setting trains in each turn")
    parser.add_argument("--train", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--busy", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.busy:
        return be_busy()
    if options.train:
        size, batch, threads = map(int, options.train[:3])
        print(train(size, batch, threads, float(options.train[3])))
        return None
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for _ in range(options.turns):
        for task in TASKS:
            for where in ("alone", "busy"):
                with foreign_load(where == "busy"):
                    for setting in SETTINGS:
                        seconds = measure(setting, task, options.seconds)
                        found.setdefault(task, {}).setdefault(setting, {}).setdefault(where, []).append(seconds)
    table = Table(title=f"ms a training step of ResNet-56; {machine()}", title_justify="left")
    for name in ("images", "setting", "alone", "of the default's", "beside a busy process", "of alone"):
        table.add_column(name, justify="left" if name in ("images", "setting") else "right")
    for task, by_setting in found.items():
        default = by_setting["OpenMP's default"]["alone"]
        for setting, seconds in by_setting.items():
            alone, busy = seconds["alone"], seconds["busy"]
            cost = statistics.median(a / b for a, b in zip(alone, default, strict=True))
            slower = statistics.median(b / a for a, b in zip(alone, busy, strict=True))
            alone_ms, busy_ms = 1000 * statistics.median(alone), 1000 * statistics.median(busy)
            table.add_row(task, setting, f"{alone_ms:.0f}", f"{cost:.3f}", f"{busy_ms:.0f}", f"{slower:.1f}")
    Console(width=120).print(table)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "seconds": found}, indent=2) + "\n")
    return None


if __name__ == "__main__":
    main()
