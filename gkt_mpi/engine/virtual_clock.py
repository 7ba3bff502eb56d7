"""How long a round would take on real edge devices: counts of bytes and operations, divided by what the devices do.

    algorithms/cost.py   what a round costs       RoundWork
    devices.py           what the devices can do  Devices      round_s(work, devices) -> seconds

The clock knows nothing of the machine that simulates: the seconds are a function of the configuration and the
partition alone. All of it is float64, and a sum over clients does not depend on their order.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from gkt_mpi.engine.devices import DeviceProfile, Devices
from gkt_mpi.models.resnet import EdgeName

Order = Literal["together", "in_turn", "side_by_side"]


@dataclass(frozen=True)
class Participant:
    """A client that takes part in a round."""

    num_samples: int
    model: EdgeName = "resnet8"
    gets_logits: bool = True
    """FedGKT: whether the server has logits for its samples by now, and sends them."""


Participants = Mapping[int, Participant]  # by client


@dataclass(frozen=True)
class ClientCost:
    """What one client sends, receives and computes in a round, headers included."""

    up_bytes: int
    down_bytes: int
    edge_flops: int
    served_flops: int = 0
    """What the server computes in this client's turn, while the client waits for it (split learning)."""


@dataclass(frozen=True)
class RoundWork:
    """What a round costs."""

    clients: Mapping[int, ClientCost]
    server_flops: int  # all that the server computes in the round
    order: Order = "together"
    """together: all clients at once, then the server. in_turn: one client after the other. side_by_side: all clients at
    once, and the server serves them meanwhile."""

    @property
    def edge_flops(self) -> int:
        """Operations of all clients."""
        return sum(cost.edge_flops for cost in self.clients.values())


@dataclass(frozen=True)
class RoundCost:
    """What metrics.jsonl says of a round."""

    edge_flops: int
    virtual_s: float


RoundPricer = Callable[[Participants, int | None], RoundCost]  # algorithms/cost.py: round_cost, of one run


def client_s(cost: ClientCost, device: DeviceProfile) -> float:
    """Return the seconds from a client's request to the end of its upload, without what it waits for the server.

    It receives, computes and sends, one after the other, in the share of the time that the device can be used.
    """
    down_s = 8 * cost.down_bytes / device.downlink_bit_s
    up_s = 8 * cost.up_bytes / device.uplink_bit_s
    return (down_s + cost.edge_flops / device.flop_s + up_s) / device.availability


def server_s(flops: int, server: DeviceProfile) -> float:
    """Return the seconds that the server computes; its own network is taken to be as wide as all clients need."""
    return flops / server.flop_s / server.availability


def clients_s(work: RoundWork, devices: Devices) -> dict[int, float]:
    """Return the seconds of each client of a round, see `client_s`."""
    return {client: client_s(cost, devices.of(client)) for client, cost in work.clients.items()}


def round_s(work: RoundWork, devices: Devices) -> float:
    """Return the seconds of a round.

    together: the slowest client's, then the server's. in_turn: the sum of all clients' and the server's. side_by_side
    (parallel split learning): every client alternates with the server, which has one device for all of them. The round
    lasts as long as the slowest client with the server's share in it, or as long as all that the server computes, if
    that is more. That is what a server with a perfect queue would reach: a client that waits while the server serves
    another is not modelled.
    """
    seconds, total_s = clients_s(work, devices), server_s(work.server_flops, devices.server)
    match work.order:
        case "together":
            return max(seconds.values(), default=0.0) + total_s
        case "in_turn":
            return math.fsum(seconds.values()) + total_s
        case "side_by_side":
            served = (
                seconds[client] + server_s(cost.served_flops, devices.server) for client, cost in work.clients.items()
            )
            return max(*served, total_s) if work.clients else total_s


def round_cost(work: RoundWork, devices: Devices) -> RoundCost:
    """Return what metrics.jsonl says of a round."""
    return RoundCost(work.edge_flops, round_s(work, devices))
