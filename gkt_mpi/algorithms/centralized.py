"""Centralized training: all images and the whole large network on the server. The workers are idle.

rank 0      run_server      learners/global_model.py   CentralModel: the network, all images, the optimizer
"""

from torch.nn import functional as F

from gkt_mpi.cost.work import central_training
from gkt_mpi.facts import CENTRALIZED
from gkt_mpi.federation.client import Client
from gkt_mpi.federation.server import Server
from gkt_mpi.federation.worker import Worker
from gkt_mpi.learners.algorithm import Algorithm
from gkt_mpi.learners.global_model import CentralModel, trained_centrally


def run_server(server: Server, central: CentralModel) -> None:
    """Train; a round is `server.epochs` passes over all images."""
    for round in server.rounds():
        server.end_last_round()
        with server.server_phase(central.begin_round(round)):
            for epoch in range(central.config.epochs):
                for image, label_B in central.batches(round, epoch):
                    loss = F.cross_entropy(central.model(image), label_B)
                    central.step(loss, len(label_B))
        server.note(central.end_round())


def run_client(worker: Worker, client: Client, request: object) -> None:
    """Never called: no client receives a request."""
    raise AssertionError(request)


ALGORITHM = Algorithm(
    facts=CENTRALIZED,
    run_server=run_server,
    run_client=run_client,
    learner=CentralModel,
    requests=frozenset(),
    work=central_training,
    trained=trained_centrally,
    networks="{large} on the server",
)
