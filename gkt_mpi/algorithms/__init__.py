"""One file an algorithm: a server side and a client side, each a plain function. No algorithm imports another."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from gkt_mpi.algorithms import centralized, fedavg, fedgkt, fedgkt_async, split_learning, standalone
from gkt_mpi.federation.client import ClientPart
from gkt_mpi.federation.learner import Learner
from gkt_mpi.federation.server import Server
from gkt_mpi.federation.worker import ClientRound
from gkt_mpi.learners.async_teacher import AsyncTeacher
from gkt_mpi.learners.edges_alone import EdgesAlone
from gkt_mpi.learners.global_model import AveragedModel, CentralModel
from gkt_mpi.learners.site import Site
from gkt_mpi.learners.split_model import SplitModel
from gkt_mpi.learners.teacher import Teacher
from gkt_mpi.log.progress import CLIENTS_TRAIN, SERVER_TRAINS
from gkt_mpi.wire.messages import Kind

AlgorithmName = Literal["fedgkt", "fedgkt_async", "fedavg", "split_learning", "centralized", "standalone"]


@dataclass(frozen=True)
class Algorithm:
    """The two sides, and what they are about.

    `run_server` is the loop over all rounds, given the server and what it trains; `run_client` is one round of one
    client on a worker.
    """

    run_server: Callable[[Server, Any], None]
    run_client: ClientRound
    learner: Callable[[Site], Learner]  # makes what the server trains
    client_part: ClientPart  # the network that a client trains
    requests: frozenset[Kind]  # messages that ask a client for its round
    last_phase: str = SERVER_TRAINS  # of a round's training, as progress shows it


ALGORITHMS: dict[AlgorithmName, Algorithm] = {
    "fedgkt": Algorithm(
        fedgkt.run_server, fedgkt.run_client, Teacher, "edge", frozenset({Kind.TRAIN, Kind.MODEL, Kind.LOCAL})
    ),
    "fedgkt_async": Algorithm(
        fedgkt_async.run_server, fedgkt.run_client, AsyncTeacher, "edge", frozenset({Kind.TRAIN, Kind.LOCAL})
    ),
    "fedavg": Algorithm(
        fedavg.run_server, fedavg.run_client, AveragedModel, "whole", frozenset({Kind.MODEL}), CLIENTS_TRAIN
    ),
    "split_learning": Algorithm(
        split_learning.run_server, split_learning.run_client, SplitModel, "stem", frozenset({Kind.MODEL}), CLIENTS_TRAIN
    ),
    "centralized": Algorithm(centralized.run_server, centralized.run_client, CentralModel, "edge", frozenset()),
    "standalone": Algorithm(
        standalone.run_server, standalone.run_client, EdgesAlone, "edge", frozenset({Kind.LOCAL}), CLIENTS_TRAIN
    ),
}
