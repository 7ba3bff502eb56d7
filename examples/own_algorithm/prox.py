"""FedGKT with a proximal term: a client's edge model stays near the weights it starts a round with (`proximal_mu`)."""

from dataclasses import replace

import torch

from gkt_mpi.algorithms import fedgkt
from gkt_mpi.facts import FEDGKT, Parameter
from gkt_mpi.federation.client import Client
from gkt_mpi.federation.server import Server
from gkt_mpi.federation.worker import Worker
from gkt_mpi.learners.teacher import Teacher
from gkt_mpi.training.losses import client_loss, proximal_term, server_loss
from gkt_mpi.wire.messages import LocalRequest, TrainRequest


def run_server(server: Server, teacher: Teacher) -> None:
    """Run all rounds on the server: features up, a server epoch on the bank, logits down."""
    for round in server.rounds():
        clients = server.participants(round)
        teacher.begin_upload(server, round, clients)
        with server.clients_phase():
            for client in clients:
                server.request(client, teacher.request(client, round))
            server.end_last_round()
            server.collect(round, teacher.inbox)
        with server.server_phase(teacher.begin_round(round)):
            for epoch in range(teacher.config.epochs):
                for batch in teacher.batches(round, epoch):
                    logit_BC = teacher.model(batch.feature)
                    loss = server_loss(logit_BC, batch.label, batch.client_logit, teacher.distill)
                    teacher.step(loss, len(batch.label))
            teacher.predict()
        server.note(teacher.end_round(round))


def run_client(worker: Worker, client: Client, request: TrainRequest | LocalRequest) -> None:
    """Run one round of one client; a LocalRequest repeats its last upload after an interruption."""
    if isinstance(request, TrainRequest):
        start = [parameter.detach().clone() for parameter in client.model.parameters()]
        teacher_NC = client.align(request.sample_id, request.logit)
        with worker.timed("client train"):
            client.model.train()
            for epoch in range(client.config.epochs):
                for row_B, image, label_B in client.batches(request.round, epoch):
                    logit_BC = client.model(image)[1]
                    soft_BC = None if teacher_NC is None else teacher_NC[row_B]
                    loss = client_loss(logit_BC, label_B, soft_BC, worker.distill)
                    loss = loss + proximal_term(client.model.parameters(), start, client.config.proximal_mu)
                    client.step(loss)
                    client.count(loss, logit_BC, label_B)
    with worker.timed("extract"), torch.no_grad():
        client.model.eval()
        for rows, image in client.upload_views(request.round, worker.block_rows):
            worker.upload(client, request.round, rows, *client.model(image))


LABEL = Parameter("client.proximal_mu", "FedGKT-prox (μ = {})")
FACTS = replace(FEDGKT, name="fedgkt_prox", title="FedGKT-prox", variant=LABEL)
ALGORITHM = replace(fedgkt.ALGORITHM, facts=FACTS, run_server=run_server, run_client=run_client, may_share=False)
