"""Split learning (Gupta and Raskar 2018; Vepakomma et al. 2018): the large network cut after the stem.

For every batch the client sends the stem's features and the labels up, and the server sends the gradient down. With
`split.mode` sequential the clients take turns, and the stem is passed from one to the next; with parallel (SplitFed,
Thapa et al., AAAI 2022) all are served at once, each by a copy of the server's part, and both parts are averaged.

    rank 0      run_server      learners/split_model.py    SplitModel: both parts; Turn: the clients being served
    other ranks run_client      federation/worker.py, federation/client.py
    between     ModelState (the stem), FeatureBlock up, Gradient down, ClientReport in wire/messages.py
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from gkt_mpi.cost.work import RoundCase, split_training
from gkt_mpi.facts import SPLIT_LEARNING
from gkt_mpi.federation.client import Client
from gkt_mpi.federation.server import Server
from gkt_mpi.federation.worker import Worker
from gkt_mpi.learners.algorithm import Algorithm
from gkt_mpi.learners.split_model import SplitModel, Turn, trained
from gkt_mpi.log.progress import CLIENTS_TRAIN
from gkt_mpi.wire.header import Kind
from gkt_mpi.wire.messages import ModelState


def run_server(server: Server, split: SplitModel) -> None:
    """Serve every client's batches, one client after another or all at once."""
    for round in server.rounds():
        split.begin_round(round)
        with server.clients_phase():
            for clients in split.turns(server.participants(round)):
                turn = Turn(split, clients, train_batch, server.hosting.send)
                for client in clients:
                    server.request(client, ModelState(client, round, split.stem_weights))
                server.end_last_round()
                server.collect(round, turn)  # trains on each batch as it arrives
                turn.end()
        server.note(split.end_round())


def train_batch(split: SplitModel, feature_BKHW: Tensor, label_B: Tensor) -> Tensor:
    """Do the server's part of a training step; return the loss's gradient with respect to the features."""
    feature_BKHW.requires_grad_()
    loss = F.cross_entropy(split.rest(feature_BKHW), label_B)
    split.step(loss, len(label_B))
    assert feature_BKHW.grad is not None
    return feature_BKHW.grad


def run_client(worker: Worker, client: Client, request: ModelState) -> None:
    """Do the client's part of every training step of a round."""
    client.begin_from(request.weights)
    with worker.timed("client train"):
        for epoch in range(client.config.epochs):
            first = 0
            for row_B, image, _ in client.batches(request.round, epoch):
                feature_BKHW = client.model(image)
                gradient_BKHW = worker.exchange(client, request.round, first, row_B, feature_BKHW)
                client.step(torch.sum(feature_BKHW * gradient_BKHW))  # its gradient is the received one
                first += len(row_B)
    worker.send_weights(client, request.round, client.weights)


ALGORITHM = Algorithm(
    facts=SPLIT_LEARNING,
    run_server=run_server,
    run_client=run_client,
    learner=SplitModel,
    requests=frozenset({Kind.MODEL}),
    work=split_training,
    trained=trained,
    networks="{large}, its stem on every client ({config.split.mode})",
    cases=(
        RoundCase("sequential", {"split_mode": "sequential"}),
        RoundCase("parallel", {"split_mode": "parallel"}),
    ),
    last_phase=CLIENTS_TRAIN,
)
