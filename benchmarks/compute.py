"""How fast the networks train: make bench-compute (python benchmarks/compute.py [--json FILE]).

Images a second of one client's epoch (ResNet-8) and of one epoch of the server (ResNet-56 and -110) on 32x32, at batch
sizes 64 and 256, with all cores. Three loops over the same tensors, in shuffled batches:

    plain   the plainest PyTorch loop: default layout, float32, torch.optim.Adam, the C library as it is
    best    the best loop by hand, which is the limit: channels-last, torch's fused Adam, freed memory kept
    ours    the project's own epoch: bank or shard, batches, losses, optimizer, metrics

best and ours take turns in one process, in float32 and in bfloat16 (autocast); plain has a process of its own, since
the C library cannot be set back. Medians over short turns, so that what slows the machine down for a while slows both
down; ours is compared with best turn by turn. Augmentation is off, but for the rows that show what it costs.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from bench import machine
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from gkt_mpi.data.augment import Augmentation, ImagePipeline, paper_augmentation
from gkt_mpi.data.shard import Shard
from gkt_mpi.federation.client import Client, ClientConfig, build_edge
from gkt_mpi.learners.bank import Bank
from gkt_mpi.learners.feature_rows import BankConfig
from gkt_mpi.learners.site import ServerConfig
from gkt_mpi.models.networks import PRECISIONS, Precision, build_edge_model, build_server_model
from gkt_mpi.models.resnet import STEM_CHANNELS
from gkt_mpi.placement import keep_freed_memory
from gkt_mpi.training.compute import ComputeConfig, choose
from gkt_mpi.training.losses import DistillConfig, client_loss, count_correct, server_loss
from gkt_mpi.training.optimizer import Optimizer
from gkt_mpi.wire.codec import Codec
from gkt_mpi.wire.messages import FeatureBlock

CLASSES, SIZE = 10, 32
SIDES = ("resnet8", "resnet56", "resnet110")
BATCHES = (64, 256)
NUM_IMAGES = 2048
STEPS_OF_64 = {"resnet8": 16, "resnet56": 4, "resnet110": 2}  # of a turn
Steps = Iterator[None]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def images(num: int, channels: int) -> tuple[Tensor, Tensor]:
    """Return made-up images or features float32 (num, channels, 32, 32) and labels, on the device."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(num, channels, SIZE, SIZE, generator=generator)
    return image.to(DEVICE), torch.randint(0, CLASSES, (num,), generator=generator).to(DEVICE)


def build(side: str) -> nn.Module:
    """Return the network of a side, channels-last."""
    generator = torch.Generator().manual_seed(0)
    if side == "resnet8":
        return build_edge_model("resnet8", (32, 32, 3), CLASSES, generator, DEVICE)
    return build_server_model(side, (32, 32, 16), CLASSES, generator, DEVICE)  # type: ignore[arg-type]


def plain(side: str, batch_size: int) -> Steps:
    """Take steps of the plainest loop."""
    model = build(side).to(memory_format=torch.contiguous_format).train()
    image, label = images(NUM_IMAGES, 3 if side == "resnet8" else STEM_CHANNELS)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, weight_decay=1e-4, amsgrad=True)
    loss_of = nn.CrossEntropyLoss()
    while True:
        for rows in torch.randperm(len(image)).to(DEVICE).split(batch_size):
            output = model(image[rows])
            loss = loss_of(output[1] if isinstance(output, tuple) else output, label[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield


def best(side: str, batch_size: int, precision: Precision) -> Steps:
    """Take steps of the best loop by hand."""
    model = build(side).train()
    layers = nn.Sequential(*model.children())  # its forward has a precision of its own
    channels = 3 if side == "resnet8" else STEM_CHANNELS
    image, label = images(NUM_IMAGES, channels)
    flat = image.permute(0, 2, 3, 1).reshape(len(image), -1).contiguous()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, weight_decay=1e-4, amsgrad=True, fused=True)
    while True:
        for rows in torch.randperm(len(image)).to(DEVICE).split(batch_size):
            batch = flat.index_select(0, rows).view(-1, SIZE, SIZE, channels).permute(0, 3, 1, 2)
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bfloat16"):
                logit = layers(batch)
            optimizer.zero_grad()
            nn.functional.cross_entropy(logit.float(), label[rows]).backward()
            optimizer.step()
            yield


def our_server(side: str, batch_size: int, precision: Precision) -> Steps:
    """Take the server's steps as algorithms/fedgkt.py has them, over a real bank."""
    codec = Codec("float32", (SIZE, SIZE, STEM_CHANNELS))
    feature, label = images(NUM_IMAGES, STEM_CHANNELS)
    bank = Bank([np.arange(len(label))], CLASSES, codec, DEVICE, BankConfig(), Path())
    bank.feature.slice(slice(0, len(bank))).copy_(codec.encode(feature.cpu()))
    bank.label.copy_(label)
    bank.claim(FeatureBlock(0, 0, 0, bank.sample_id, label, bank.client_logit, torch.empty(0), codec.shape, 0))
    model = build_server_model(side, (32, 32, 16), CLASSES, torch.Generator().manual_seed(0), DEVICE)  # type: ignore[arg-type]
    _, network = choose(ComputeConfig(precision, compile=False), model, feature[:batch_size], 0)
    optimizer = Optimizer(ServerConfig(), model.parameters())
    loss_sum = torch.zeros((), device=DEVICE)
    generator = torch.Generator().manual_seed(0)
    model.train()
    while True:
        for batch in bank.train_batches("mixed", batch_size, generator):
            loss = server_loss(network(batch.feature), batch.label, batch.client_logit, DistillConfig())
            optimizer.step(loss)
            loss_sum += loss.detach() * len(batch.label)
            yield


def our_client(batch_size: int, precision: Precision, augment: bool = False) -> Steps:
    """Take a client's steps as algorithms/fedgkt.py has them."""
    image = torch.randint(0, 256, (NUM_IMAGES, SIZE, SIZE, 3), dtype=torch.uint8, device=DEVICE)
    policy = paper_augmentation(SIZE) if augment else Augmentation()
    pipeline = ImagePipeline(torch.full((3,), 0.5, device=DEVICE), torch.full((3,), 0.25, device=DEVICE), policy)
    ids = torch.arange(NUM_IMAGES, device=DEVICE)
    config = ClientConfig(batch_size=batch_size)
    edge = build_edge(config, (32, 32, 3), CLASSES, 0, DEVICE, "resnet8")
    edge.model.precision = precision
    client = Client(0, Shard(ids, ids % CLASSES, image, pipeline), edge, config, 0)
    client.model.train()
    for epoch in itertools.count():
        for row, view, label in client.batches(0, epoch):
            _, logit = client.model(view)
            loss = client_loss(logit, label, None, DistillConfig())
            client.step(loss)
            client.count(loss, count_correct(logit, label), len(row))
            yield


def turns(ways: dict[str, Steps], steps: int, num_turns: int) -> dict[str, list[float]]:
    """Return the seconds of `steps` steps of each way, turn by turn; one turn before them warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(num_turns + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            for _ in range(steps):
                next(way)
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - began)
    return {name: found[1:] for name, found in seconds.items()}


def measure(which: str, side: str, batch_size: int, steps: int, num_turns: int) -> dict[str, float]:
    """Return images a second of the ways of one process: "plain", or all others and how ours compare with the best.

    The speeds are medians over the turns, and so are the comparisons, which are made turn by turn.
    """
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    ways: dict[str, Steps] = {}
    if which == "plain":
        ways["plain"] = plain(side, batch_size)
    else:
        keep_freed_memory()
        for precision in PRECISIONS:
            ways[f"best {precision}"] = best(side, batch_size, precision)
            if side == "resnet8":
                ways[f"ours {precision}"] = our_client(batch_size, precision)
                ways[f"ours {precision}, augmented"] = our_client(batch_size, precision, augment=True)
            else:
                ways[f"ours {precision}"] = our_server(side, batch_size, precision)
    seconds = turns(ways, steps, num_turns)
    found = {name: steps * batch_size / statistics.median(values) for name, values in seconds.items()}
    if which != "plain":
        for precision in PRECISIONS:
            pairs = zip(seconds[f"best {precision}"], seconds[f"ours {precision}"], strict=True)
            found[f"ours/best {precision}"] = statistics.median(best_s / our_s for best_s, our_s in pairs)
    return found


def in_a_process(*arguments: object) -> dict[str, float]:
    """Return what `measure` returns, called in a process of its own."""
    command = [sys.executable, __file__, "--measure", *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Measure every side and batch size, print the table, and write it as JSON."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the table here")
    parser.add_argument("--turns", type=int, default=13)
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        which, side, *numbers = options.measure
        print(json.dumps(measure(which, side, *map(int, numbers))))
        return
    rows = []
    for side, batch_size in itertools.product(SIDES, BATCHES):
        steps = max(1, STEPS_OF_64[side] * 64 // batch_size)
        speed: dict[str, float] = {}
        for which, num_turns in {"plain": 1 + options.turns // 4, "others": options.turns}.items():
            speed |= in_a_process(which, side, batch_size, steps, num_turns)
        rows.append({"side": side, "batch": batch_size, **speed})
        print(".", end="", flush=True, file=sys.stderr)
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else machine()
    table = Table(title=f"images a second, 32x32; {device}", title_justify="left")
    for name in ("network", "batch", "plain", *(f"{way} {p}" for p in PRECISIONS for way in ("best", "ours"))):
        table.add_column(name, justify="left" if name == "network" else "right")
    for name in ("ours/best float32", "ours/best bfloat16", "ours, auto/plain"):
        table.add_column(name, justify="right")
    for row in rows:
        figures = [row["plain"], *(row[f"{way} {p}"] for p in PRECISIONS for way in ("best", "ours"))]
        ratios = [row[f"ours/best {p}"] for p in PRECISIONS]
        auto = max(row["ours float32"], row["ours bfloat16"])
        cells = [*(f"{x:.0f}" for x in figures), *(f"{x:.2f}" for x in ratios), f"{auto / row['plain']:.2f}"]
        table.add_row(str(row["side"]), str(row["batch"]), *cells)
        if "ours float32, augmented" in row:
            cells = [f"{row[f'ours {p}, augmented']:.0f}" for p in PRECISIONS]
            table.add_row("  augmented", "", "", "", cells[0], "", cells[1], "", "", "")
    Console(width=140).print(table)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "device": device, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
