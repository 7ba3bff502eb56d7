"""Standalone training: every client trains its edge model on its own images, and nothing is exchanged.

It shows the accuracy of FedGKT's edge models without the server. With `clients: 1` it is centralized training of the
edge model.

    rank 0      run_server      learners/edges_alone.py    takes the reports, evaluates
    other ranks run_client      federation/worker.py, federation/client.py
"""

from torch.nn import functional as F

from gkt_mpi.cost.work import local_training
from gkt_mpi.facts import STANDALONE
from gkt_mpi.federation.client import Client
from gkt_mpi.federation.server import Server
from gkt_mpi.federation.worker import Worker
from gkt_mpi.learners.algorithm import Algorithm
from gkt_mpi.learners.edges_alone import EdgesAlone, trained
from gkt_mpi.log.progress import CLIENTS_TRAIN
from gkt_mpi.wire.header import Kind
from gkt_mpi.wire.messages import LocalRequest


def run_server(server: Server, edges: EdgesAlone) -> None:
    """Have every client train, round by round."""
    for round in server.rounds():
        with server.clients_phase():
            for client in server.participants(round):
                server.request(client, LocalRequest(client, round))
            server.end_last_round()
            server.collect(round, edges)


def run_client(worker: Worker, client: Client, request: LocalRequest) -> None:
    """Train a client on its own images."""
    with worker.timed("client train"):
        for epoch in range(client.config.epochs):
            for _, image, label_B in client.batches(request.round, epoch):
                _, logit_BC = client.model(image)
                loss = F.cross_entropy(logit_BC, label_B)
                client.step(loss)
                client.count(loss, logit_BC, label_B)


ALGORITHM = Algorithm(
    facts=STANDALONE,
    run_server=run_server,
    run_client=run_client,
    learner=EdgesAlone,
    requests=frozenset({Kind.LOCAL}),
    work=local_training,
    trained=trained,
    networks="{edge} on every client",
    last_phase=CLIENTS_TRAIN,
)
