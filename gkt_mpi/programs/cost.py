"""Prints the cost of training: python -m gkt_mpi.programs.cost [--data cifar100] [--codec int8] [--help].

Parameters, activations and operations are counted on the real modules (cost/flops.py), bytes from the layout of the
real messages, equal to those a run counts (cost/work.py), and the seconds of a round on real devices
(cost/virtual_clock.py).
"""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from gkt_mpi.algorithms import ALGORITHMS
from gkt_mpi.cost.devices import Devices, load_profile, packaged_profiles
from gkt_mpi.cost.flops import NetworkCost, edge_cost, edge_stem_cost, server_cost, whole_cost
from gkt_mpi.cost.virtual_clock import Participant, RoundWork, round_s
from gkt_mpi.cost.work import Setting, round_work
from gkt_mpi.data.source import DataSize
from gkt_mpi.data.sources import DATA_SOURCES
from gkt_mpi.errors import GktError
from gkt_mpi.federation.worker import LARGEST_BATCH
from gkt_mpi.models import resnet
from gkt_mpi.models.networks import (
    EDGE_FAMILIES,
    SERVER_FAMILIES,
    EdgeName,
    ServerName,
    edge_feature_shape,
    whole_feature_shape,
)
from gkt_mpi.wire.codec import CODECS, SIGNED_CODECS, Codec, WireConfig

_PAPER = "The paper: 54 and 105 times fewer parameters (for an edge of 11 thousand), 9 and 17 times fewer operations."


_RESNETS = [its.name for its in resnet.SERVERS]
DATA = {its.name: its.size for its in DATA_SOURCES.values() if its.size is not None}


@dataclass(frozen=True)
class Case:
    """A row of the tables of rounds: an algorithm, and the kind of round."""

    name: str
    work: RoundWork


def network_costs(data: DataSize) -> dict[str, NetworkCost]:
    """Return the cost of every ResNet for images of a data set."""
    shape, classes = data.image_shape, data.classes
    costs = {f"{name}, edge": edge_cost(name, shape, classes) for name in EDGE_FAMILIES}
    for large in _RESNETS:
        feature = whole_feature_shape(large, shape, "batch")
        costs[f"{large}, whole"] = whole_cost(large, shape, classes)
        costs[f"{large}, server's part"] = server_cost(large, feature, classes)
        costs[f"{large}, server's, split"] = server_cost(large, feature, classes, with_input_gradient=True)
    return costs | {"stem alone": edge_stem_cost(next(iter(EDGE_FAMILIES)), shape, classes)}


def edge_savings(large: ServerName, data: DataSize) -> dict[str, float]:
    """Return the ratios of a whole large network's costs to ResNet-8's at the edge, by field of `NetworkCost`."""
    edge = edge_cost("resnet8", data.image_shape, data.classes)
    whole = whole_cost(large, data.image_shape, data.classes)
    return {name: value / asdict(edge)[name] for name, value in asdict(whole).items()}


def cases(setting: Setting, data: DataSize, num_clients: int, edge: EdgeName) -> Iterator[Case]:
    """Yield a round of every algorithm, with the training set distributed equally over the clients."""
    clients = dict.fromkeys(range(num_clients), Participant(math.ceil(data.train / num_clients), edge))
    untaught = {client: replace(its, gets_logits=False) for client, its in clients.items()}
    for algorithm in ALGORITHMS.values():
        able = _in_floats(setting) if algorithm.facts.sends_gradients else setting
        for case in algorithm.cases:
            name = f"{algorithm.name}, {case.label}" if case.label else algorithm.name
            participants = clients if case.gets_logits else untaught
            yield Case(name, round_work(algorithm.work, replace(able, **case.changes), participants, data.train))


def _in_floats(setting: Setting) -> Setting:
    """Return a setting whose codec can encode gradients."""
    if setting.codec.is_signed:
        return setting
    return replace(setting, codec=replace(setting.codec, name=SIGNED_CODECS[0]))


def model_table(data: DataSize) -> Table:
    """Return the table of the networks, with the edge's savings."""
    table = _table("one image", "network", "parameters", "forward MFLOP", "training MFLOP", "activations")
    for name, cost in network_costs(data).items():
        flops = (f"{number / 1e6:,.2f}" for number in (cost.forward_flops, cost.training_flops))
        table.add_row(name, f"{cost.parameters:,}", *flops, decimal(cost.activation_bytes))
    for large in _RESNETS:
        times = edge_savings(large, data)
        columns = ("parameters", "forward_flops", "training_flops", "activation_bytes")
        table.add_row(f"{large} / resnet8", *(f"{times[name]:.1f} times" for name in columns), style="bold")
    table.caption, table.caption_justify = _PAPER, "left"
    return table


def round_table(rounds: list[Case], title: str, codec: Codec) -> Table:
    """Return the table of what a client sends, receives and computes in a round, and of the server's operations."""
    table = _table(title, "one client, one round", "up", "down", "edge GFLOP", "server GFLOP, for all")
    for case in rounds:
        cells = ["-", "-", "-"]
        if 0 in case.work.clients:
            client = case.work.clients[0]
            cells = [decimal(client.up_bytes), decimal(client.down_bytes), _short(client.edge_flops / 1e9)]
        table.add_row(case.name, *cells, _short(case.work.server_flops / 1e9))
    if not codec.is_signed:
        names = ", ".join(its.name for its in ALGORITHMS.values() if its.facts.sends_gradients)
        table.caption, table.caption_justify = f"{names} in {SIGNED_CODECS[0]}: no gradient travels in integers", "left"
    return table


def seconds_table(rounds: list[Case], num_clients: int, server: str) -> Table:
    """Return the table of a round's seconds if every client is a device of a packaged profile that never leaves."""
    profiles = [name for name in packaged_profiles() if not load_profile(name, "profile").away]
    title = f"virtual seconds of a round of {num_clients} clients on these devices, the server on {server}"
    table = _table(title, "seconds", *profiles)
    host = load_profile(server, "--server-device")
    for case in rounds:
        devices = (Devices((load_profile(name, "profile"),), host) for name in profiles)
        table.add_row(case.name, *(_short(round_s(case.work, its)) for its in devices))
    return table


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == 0 else f"{value:.3g}"


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}; expected at least 1")
    return value


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m gkt_mpi.programs.cost", allow_abbrev=False, description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--data", choices=DATA, default="cifar10", help="data set that gives the number and shape of images"
    )
    parser.add_argument("--images", type=_positive, help="training images, instead of the data set's")
    parser.add_argument("--classes", type=_positive, help="classes, instead of the data set's")
    parser.add_argument("--size", type=_positive, help="height and width, instead of the data set's")
    parser.add_argument("--codec", choices=CODECS, default="float32")
    parser.add_argument("--clients", type=_positive, default=16)
    parser.add_argument("--epochs", type=_positive, default=1, help="passes per client and round")
    parser.add_argument("--batch-size", type=_positive, default=256, help="of a client")
    parser.add_argument("--server-epochs", type=_positive, default=20)
    parser.add_argument("--edge", choices=EDGE_FAMILIES, default="resnet8")
    parser.add_argument("--server", choices=SERVER_FAMILIES, default="resnet56")
    parser.add_argument("--server-device", default="server_gpu", help="profile of the server's device, or a YAML file")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables and return the exit status."""
    torch.set_num_threads(1)  # too little work for several threads
    parser = make_parser()
    options = parser.parse_args(arguments)
    data = DATA[options.data]
    size = options.size or data.image_shape[0]
    data = DataSize(options.images or data.train, options.classes or data.classes, (size, size, data.image_shape[2]))
    codec = Codec(options.codec, edge_feature_shape(options.edge, data.image_shape, data.classes, "batch"))
    setting = Setting(
        image_shape=data.image_shape,
        num_classes=data.classes,
        codec=codec,
        block_rows=min(codec.block_rows(WireConfig().block_mib), LARGEST_BATCH),
        server_model=options.server,
        client_epochs=options.epochs,
        client_batch_size=options.batch_size,
        server_epochs=options.server_epochs,
    )
    rounds = list(cases(setting, data, options.clients, options.edge))
    samples = math.ceil(data.train / options.clients)
    title = f"one client of {options.clients}, {samples:,} images, {codec.name}, {options.edge} and {options.server}"
    console = Console(width=None if Console().is_terminal else 110)
    try:
        last = seconds_table(rounds, options.clients, options.server_device)
    except GktError as error:
        parser.error(str(error))
    for table in (model_table(data), round_table(rounds, title, codec), last):
        console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
