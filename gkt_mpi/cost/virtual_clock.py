"""How long a round would take on real edge devices: counts of bytes and operations, divided by what the devices do.

    cost/work.py   what a round costs       RoundWork
    devices.py           what the devices can do  Devices      round_s(work, devices) -> seconds

The clock knows nothing of the machine that simulates: the seconds are a function of the configuration and the
partition alone. All of it is float64, and a sum over clients does not depend on their order.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from gkt_mpi.cost.devices import DeviceProfile, Devices
from gkt_mpi.models.networks import EdgeName

Order = Literal["together", "in_turn", "side_by_side"]


@dataclass(frozen=True)
class Participant:
    """A client that takes part in a round."""

    num_samples: int
    model: EdgeName = "resnet8"
    gets_logits: bool = True
    """FedGKT: whether the server already has logits for its samples, and sends them."""
    gets_weights: bool = False
    """FedGKT with client.share: whether it is sent the mean before it trains."""


Participants = Mapping[int, Participant]  # by client


@dataclass(frozen=True)
class ClientCost:
    """Bytes sent and received, headers included, and operations of one client in a round."""

    up_bytes: int
    down_bytes: int
    edge_flops: int
    served_flops: int = 0
    """Operations of the server in this client's turn, while the client waits for it (split learning)."""


@dataclass(frozen=True)
class RoundWork:
    """The cost of a round."""

    clients: Mapping[int, ClientCost]
    server_flops: int  # all operations of the server in the round
    order: Order = "together"
    """together: all clients at once, then the server. in_turn: one client after the other. side_by_side: all clients at
    once, while the server serves them."""
    then: Mapping[int, ClientCost] = field(default_factory=dict)
    """The clients' work in a second exchange, which begins when the server has received all of the first (together)."""

    @property
    def edge_flops(self) -> int:
        """Operations of all clients."""
        return sum(cost.edge_flops for cost in (*self.clients.values(), *self.then.values()))

    @property
    def up_bytes(self) -> int:
        """Bytes sent by all clients."""
        return sum(cost.up_bytes for cost in (*self.clients.values(), *self.then.values()))

    @property
    def down_bytes(self) -> int:
        """Bytes received by all clients."""
        return sum(cost.down_bytes for cost in (*self.clients.values(), *self.then.values()))


@dataclass(frozen=True)
class RoundCost:
    """A round's cost in metrics.jsonl; idle is a share of the round's time, for clients their mean."""

    edge_flops: int
    virtual_s: float
    virtual_server_idle: float
    virtual_client_idle: float


# cost/work.py: round_cost, of one run; given the participants, the server's samples, and when the round begins
RoundPricer = Callable[[Participants, int | None, float], RoundCost]


def client_s(cost: ClientCost, device: DeviceProfile) -> float:
    """Return the seconds from a client's request to the end of its upload, without waiting for the server.

    It receives, computes and sends in sequence, during the share of time that the device is available. See
    `end_of_work` for a device that is away meanwhile.
    """
    down_s = 8 * cost.down_bytes / device.downlink_bit_s
    up_s = 8 * cost.up_bytes / device.uplink_bit_s
    return (down_s + cost.edge_flops / device.flop_s + up_s) / device.availability


def rest_s(start_s: float, seconds: float, device: DeviceProfile) -> float:
    """Return the seconds a device is away during `seconds` of work that begin at `start_s` of the run."""
    rested_s = 0.0
    for leaves_s, returns_s in device.away:
        if leaves_s < start_s + seconds + rested_s and returns_s > start_s:
            rested_s += returns_s - max(leaves_s, start_s)
    return rested_s


def end_of_work(start_s: float, seconds: float, device: DeviceProfile) -> float:
    """Return when `seconds` of work that begin at `start_s` of the run are done."""
    return start_s + seconds + rest_s(start_s, seconds, device)


def server_s(flops: int, server: DeviceProfile) -> float:
    """Return the seconds of the server's computation; its network link is assumed to be as fast as all clients need."""
    return flops / server.flop_s / server.availability


def clients_s(
    costs: Mapping[int, ClientCost], order: Order, devices: Devices, start_s: float = 0.0
) -> dict[int, float]:
    """Return each client's seconds, working and away, in an exchange that begins at `start_s` of the run."""
    seconds = {}
    for client, cost in sorted(costs.items()):
        device = devices.of(client)
        work_s = client_s(cost, device)
        seconds[client] = work_s + rest_s(start_s, work_s, device)
        if order == "in_turn":
            start_s += seconds[client] + server_s(cost.served_flops, devices.server)
    return seconds


def round_s(work: RoundWork, devices: Devices, start_s: float = 0.0) -> float:
    """Return the seconds of a round that begins at `start_s` of the run.

    together: the slowest client's, in each exchange, then the server's. in_turn: the sum of all clients' and the
    server's. side_by_side (parallel split learning): every client alternates with the server, which has one device for
    all of them. The round lasts as long as the slowest client including the server's work for it, or as long as all of
    the server's work, if that is more. This is the bound of a server with perfect queueing: clients waiting while the
    server serves another are not modelled.
    """
    seconds = clients_s(work.clients, work.order, devices, start_s)
    total_s = server_s(work.server_flops, devices.server)
    match work.order:
        case "together":
            slowest_s = max(seconds.values(), default=0.0)
            then_s = clients_s(work.then, work.order, devices, start_s + slowest_s)
            return slowest_s + max(then_s.values(), default=0.0) + total_s
        case "in_turn":
            return math.fsum(seconds.values()) + total_s
        case "side_by_side":
            served = (
                seconds[client] + server_s(cost.served_flops, devices.server) for client, cost in work.clients.items()
            )
            return max(*served, total_s) if work.clients else total_s


def round_cost(work: RoundWork, devices: Devices, start_s: float = 0.0) -> RoundCost:
    """Return the figures in metrics.jsonl for a round that begins at `start_s` of the run.

    Clients that do not take part in the round are not counted; a client that is away counts as idle, like one that
    waits.
    """
    total_s = round_s(work, devices, start_s)
    costs = (*sorted(work.clients.items()), *sorted(work.then.items()))
    busy = [client_s(cost, devices.of(client)) for client, cost in costs]
    busy_s = math.fsum(busy) / len(work.clients) if busy else 0.0
    return RoundCost(
        edge_flops=work.edge_flops,
        virtual_s=total_s,
        virtual_server_idle=idle_share(server_s(work.server_flops, devices.server), total_s),
        virtual_client_idle=idle_share(busy_s, total_s),
    )


def idle_share(busy_s: float, total_s: float) -> float:
    """Return the idle share of a time, from 0 to 1; 0 if the time is 0."""
    return max(0.0, 1 - busy_s / total_s) if total_s else 0.0
