"""One file an algorithm: a server side and a client side, each a plain function. No algorithm imports another."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from gkt_mpi.algorithms import fedgkt
from gkt_mpi.engine.client import Client
from gkt_mpi.engine.server import Server
from gkt_mpi.engine.worker import Worker
from gkt_mpi.wire.messages import TrainRequest

AlgorithmName = Literal["fedgkt"]


@dataclass(frozen=True)
class Algorithm:
    """The two sides: the server's loop over all rounds, and one round of one client on a worker."""

    run_server: Callable[[Server], None]
    run_client: Callable[[Worker, Client, TrainRequest], None]


ALGORITHMS: dict[AlgorithmName, Algorithm] = {
    "fedgkt": Algorithm(fedgkt.run_server, fedgkt.run_client),
}
