"""What training costs: python -m gkt_mpi.models.cost [--data cifar100] [--codec int8] [--clients 16].

Counted, not guessed: parameters and activations of the real modules, floating-point operations by torch's
FlopCounterMode (two for a multiplication and an addition; convolutions and matrix products only), and bytes from the
layout of the real messages, equal to what a run's ledger says.
"""

import argparse
import math
from dataclasses import dataclass
from typing import get_args

import torch
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gkt_mpi.engine.worker import LARGEST_BATCH
from gkt_mpi.models.resnet import STEM_CHANNELS, EdgeName, ServerName, build_edge_model, build_server_model
from gkt_mpi.wire.codec import Codec, CodecName, WireConfig
from gkt_mpi.wire.messages import HEADER_BYTES, Header, Kind, payload_size

_BATCH = 8  # images that activations are counted over
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class DataSize:
    """What a data set's cost depends on."""

    train: int
    classes: int
    size: int  # height and width of an image
    channels: int


DATA = {
    "digits": DataSize(1437, 10, 8, 1),
    "cifar10": DataSize(50_000, 10, 32, 3),
    "cifar100": DataSize(50_000, 100, 32, 3),
    "cinic10": DataSize(90_000, 10, 32, 3),
}


@dataclass(frozen=True)
class ModelCost:
    """What a network costs; operations and bytes are those of one image."""

    parameters: int
    forward_flops: int
    training_flops: int  # forward and backward
    activation_bytes: int  # float32, kept from the forward to the backward pass


def model_cost(layers: nn.Module, shape: tuple[int, ...]) -> ModelCost:
    """Return the cost of layers whose input is `shape` (without the batch) and whose output is logits (B, C)."""
    layers.train()
    x = torch.zeros(1, *shape)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        layers(x)
    with FlopCounterMode(display=False) as training:
        layers(x).sum().backward()
    parameters = sum(p.numel() for p in layers.parameters())
    kept = _kept_bytes(layers, torch.zeros(_BATCH, *shape)) // _BATCH
    return ModelCost(parameters, forward.get_total_flops(), training.get_total_flops(), kept)


def _kept_bytes(layers: nn.Module, x: Tensor) -> int:
    """Return the bytes that autograd keeps from a forward pass for the backward pass, parameters aside."""
    known = {p.untyped_storage().data_ptr() for p in layers.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logit = layers(x)
    del logit
    return sum(tensor.untyped_storage().nbytes() for pointer, tensor in kept.items() if pointer not in known)


def edge_layers(name: EdgeName, data: DataSize) -> nn.Module:
    """Return the edge's network, stem and head."""
    edge = build_edge_model(name, data.channels, data.classes, torch.Generator(), _CPU)
    return nn.Sequential(edge.stem, edge.head)


def server_layers(name: ServerName, data: DataSize) -> nn.Module:
    """Return the server's part of a large network."""
    return build_server_model(name, data.classes, torch.Generator(), _CPU).layers


def whole_layers(name: ServerName, data: DataSize) -> nn.Module:
    """Return a large network with its stem, as it is trained where nothing is split."""
    edge = build_edge_model("resnet8", data.channels, data.classes, torch.Generator(), _CPU)
    return nn.Sequential(edge.stem, server_layers(name, data))


def fedgkt_bytes(
    num_samples: int, num_classes: int, codec: Codec, block_rows: int, *, is_first_round: bool = False
) -> tuple[int, int]:
    """Return the bytes (up, down) of one client with so many samples in a round of FedGKT, headers included."""

    def message(kind: Kind, rows: int, row_bytes: int = 0) -> int:
        header = Header(kind, num_samples=rows, num_classes=num_classes, row_bytes=row_bytes)
        return HEADER_BYTES + payload_size(header)

    full, rest = divmod(num_samples, block_rows)
    up = full * message(Kind.BLOCK, block_rows, codec.row_bytes)
    up += message(Kind.BLOCK, rest, codec.row_bytes) if rest else 0
    return up, message(Kind.TRAIN, 0 if is_first_round else num_samples)


def model_table(data: DataSize) -> Table:
    """Return the table of the networks, with what the edge saves."""
    table = Table(title="one image", title_justify="left")
    for name in ("network", "parameters", "forward MFLOP", "training MFLOP", "activations"):
        table.add_column(name, justify="left" if name == "network" else "right")
    image, feature = (data.channels, data.size, data.size), (STEM_CHANNELS, data.size, data.size)
    costs = {f"{name}, edge": model_cost(edge_layers(name, data), image) for name in get_args(EdgeName)}
    for large in get_args(ServerName):
        costs[f"{large}, whole"] = model_cost(whole_layers(large, data), image)
        costs[f"{large}, server's part"] = model_cost(server_layers(large, data), feature)
    for name, cost in costs.items():
        flops = (f"{number / 1e6:,.2f}" for number in (cost.forward_flops, cost.training_flops))
        table.add_row(name, f"{cost.parameters:,}", *flops, decimal(cost.activation_bytes))
    edge = costs["resnet8, edge"]
    for large in get_args(ServerName):
        whole = costs[f"{large}, whole"]
        pairs = ((getattr(whole, field), getattr(edge, field)) for field in ModelCost.__dataclass_fields__)
        table.add_row(f"{large} / resnet8", *(f"{a / b:.1f} times" for a, b in pairs), style="bold")
    return table


def byte_table(data: DataSize, codec: Codec, num_clients: int) -> Table:
    """Return the table of what a client sends and receives, with the training set spread equally."""
    samples = math.ceil(data.train / num_clients)
    rows = min(codec.block_rows(WireConfig().block_mib), LARGEST_BATCH)
    table = Table(title=f"one client of {num_clients}, {samples:,} images, {codec.name}", title_justify="left")
    for name in ("algorithm", "round", "up", "down"):
        table.add_column(name, justify="left" if name in ("algorithm", "round") else "right")
    for name, is_first in (("first", True), ("later", False)):
        up, down = fedgkt_bytes(samples, data.classes, codec, rows, is_first_round=is_first)
        table.add_row("fedgkt", name, decimal(up), decimal(down))
    return table


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(prog="python -m gkt_mpi.models.cost", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", choices=DATA, default="cifar10")
    parser.add_argument("--codec", choices=get_args(CodecName), default="float32")
    parser.add_argument("--clients", type=int, default=16)
    options = parser.parse_args()
    if options.clients < 1:
        parser.error(f"--clients is {options.clients}; expected at least 1")
    data = DATA[options.data]
    console = Console(width=None if Console().is_terminal else 110)
    console.print(model_table(data))
    console.print(byte_table(data, Codec(options.codec, (data.size, data.size, STEM_CHANNELS)), options.clients))


if __name__ == "__main__":
    main()
