"""Federated averaging (McMahan et al., AISTATS 2017): every client trains the whole large network, the server averages.

With `client.proximal_mu` above 0 it is FedProx (Li et al., MLSys 2020): a proximal term pulls each client towards the
weights that the server sent.

    rank 0      run_server      learners/global_model.py   AveragedModel: the weights, and those of the clients
    other ranks run_client      federation/worker.py, federation/client.py
    between     ModelState, down and up, and ClientReport in wire/messages.py
"""

from torch.nn import functional as F

from gkt_mpi.cost.work import model_averaging
from gkt_mpi.facts import FEDAVG
from gkt_mpi.federation.client import Client
from gkt_mpi.federation.server import Server
from gkt_mpi.federation.worker import Worker
from gkt_mpi.learners.algorithm import Algorithm
from gkt_mpi.learners.global_model import AveragedModel, trained_average
from gkt_mpi.log.progress import CLIENTS_TRAIN
from gkt_mpi.wire.header import Kind
from gkt_mpi.wire.messages import ModelState


def run_server(server: Server, average: AveragedModel) -> None:
    """Algorithm 1 of McMahan et al., on the server."""
    for round in server.rounds():
        with server.clients_phase():
            for client in server.participants(round):
                server.request(client, ModelState(client, round, average.weights))
            server.end_last_round()
            server.collect(round, average.inbox)
        with server.server_phase(samples=0):
            average.update()


def run_client(worker: Worker, client: Client, request: ModelState) -> None:
    """Algorithm 1 of McMahan et al., on the edge: one round of one client."""
    client.begin_from(request.weights)
    with worker.timed("client train"):
        for epoch in range(client.config.epochs):
            for _, image, label_B in client.batches(request.round, epoch):
                logit_BC = client.model(image)
                loss = F.cross_entropy(logit_BC, label_B) + client.proximal_term()
                # DIFFERS from FedML's FedAvg: the client keeps its optimizer's moments from round to round.
                client.step(loss)
                client.count(loss, logit_BC, label_B)
    worker.send_weights(client, request.round, client.weights)


ALGORITHM = Algorithm(
    facts=FEDAVG,
    run_server=run_server,
    run_client=run_client,
    learner=AveragedModel,
    requests=frozenset({Kind.MODEL}),
    work=model_averaging,
    trained=trained_average,
    networks="{large} on every client",
    last_phase=CLIENTS_TRAIN,
)
