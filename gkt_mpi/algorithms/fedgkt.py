"""Federated group knowledge transfer (He, Annavaram, Avestimehr, NeurIPS 2020), synchronous. Read this first.

Every client trains a tiny network on its own images and uploads the features computed by its stem, with
its logits and labels. The server trains a large network on these features, and returns its logits as soft targets.

    rank 0      run_server      federation/server.py   the rounds, and the bookkeeping around them
                                learners/teacher.py    the large model and its training
                                learners/bank.py       the features of all clients
    other ranks run_client      federation/worker.py   a worker hosts clients, one after the other
                                federation/client.py   a client's shard, model and optimizer
    between     TrainRequest, FeatureBlock, ClientReport in wire/messages.py
    losses      training/losses.py     models  models/resnet.py     data  data/

B is the batch, C classes, N a client's samples, KHW a feature (16x32x32 for images of 32x32).
"""

import torch

from gkt_mpi.cost.work import RoundCase, knowledge_transfer
from gkt_mpi.facts import FEDGKT
from gkt_mpi.federation.client import Client
from gkt_mpi.federation.server import Server
from gkt_mpi.federation.worker import Worker
from gkt_mpi.learners.algorithm import Algorithm
from gkt_mpi.learners.teacher import Teacher, trained
from gkt_mpi.training.losses import client_loss, fpkd_weight, server_loss
from gkt_mpi.wire.header import Kind
from gkt_mpi.wire.messages import LocalRequest, ModelState, TrainRequest


def run_server(server: Server, teacher: Teacher) -> None:
    """Algorithm 1 of the paper, on the server."""
    for round in server.rounds():
        clients = server.participants(round)
        teacher.begin_upload(server, round, clients)
        with server.clients_phase():
            # The server's logits go down, keyed by sample id; the workers train their clients concurrently.
            server.request_all(teacher.request(client, round) for client in clients)
            server.end_last_round()  # evaluate, save and log the previous round while the clients work on this one
            if teacher.sharing_first is not None:  # client.extract shared: weights first, then features by the mean
                server.collect(round, teacher.sharing_first.inbox)
                server.request_all(teacher.sharing_first.answers(round))
            server.collect(round, teacher.inbox)  # blocks are received directly into the bank
            teacher.average()
        if not teacher.has_upload:  # client.upload_every
            continue

        with server.server_phase(teacher.begin_round(round)):
            for epoch in range(teacher.config.epochs):
                # DIFFERS: mixed across clients unless server.batch_order is by_client, as in the paper.
                for batch in teacher.batches(round, epoch):
                    logit_BC = teacher.model(batch.feature)
                    weight_BC = teacher.weight(batch)  # None without distill.lka
                    loss = server_loss(logit_BC, batch.label, batch.client_logit, teacher.distill, weight_BC)
                    teacher.step(loss, len(batch.label))
            # DIFFERS: the released code returns the training-mode logits of the last epoch, where every batch comes
            # from another state of the model. These come from one pass of the trained model in evaluation mode.
            teacher.predict()
        server.note(teacher.end_round(round) | teacher.drift.measure(server.hosting.states))


def run_client(worker: Worker, client: Client, request: TrainRequest | ModelState | LocalRequest) -> None:
    """Algorithm 1 of the paper, on the edge: one round of one client. A LocalRequest repeats its last upload.

    DIFFERS with client.share: clients also send their weights, and continue from the mean of all.
    """
    by_the_mean, has_trained = client.config.extract == "shared", isinstance(request, TrainRequest)
    if not isinstance(request, LocalRequest):
        client.adopt(request.weights)
    if isinstance(request, TrainRequest):
        train(worker, client, request)
    if client.config.share != "none" and (has_trained or not by_the_mean):
        worker.send_weights(client, request.round, client.shared_weights)
    if has_trained and (by_the_mean or not client.uploads_in(request.round)):
        return  # in a round with an upload the server answers with the mean, in a ModelState
    with worker.timed("extract"), torch.no_grad():  # DIFFERS: the released code extracts with gradients enabled
        for rows, image in client.upload_views(request.round, worker.block_rows):
            feature_NKHW, logit_NC = client.model(image)
            worker.upload(client, request.round, rows, feature_NKHW, logit_NC)  # sent while the next is computed


def train(worker: Worker, client: Client, request: TrainRequest) -> None:
    """Train a client on its own images, with the server's logits as a second teacher."""
    # DIFFERS: matched by sample id; the released code matches by batch number, though every pass reshuffles.
    server_logit_NC = client.align(request.sample_id, request.logit)  # None in the first round
    weight_C = fpkd_weight(client.class_count(request.logit.shape[1]), worker.distill)  # None without distill.fpkd
    with worker.timed("client train"):
        for epoch in range(client.config.epochs):
            for row_B, image, label_B in client.batches(request.round, epoch):
                _, logit_BC = client.model(image)
                teacher_BC = None if server_logit_NC is None else server_logit_NC[row_B]
                loss = client_loss(logit_BC, label_B, teacher_BC, worker.distill, weight_C)
                client.step(loss)
                client.count(loss, logit_BC, label_B)


ALGORITHM = Algorithm(
    facts=FEDGKT,
    run_server=run_server,
    run_client=run_client,
    learner=Teacher,
    requests=frozenset({Kind.TRAIN, Kind.MODEL, Kind.LOCAL}),
    work=knowledge_transfer,
    trained=trained,
    networks="{edge} at the edge, {large} on the server",
    cases=(RoundCase("first round", gets_logits=False), RoundCase("later")),
    may_share=True,
    may_skip_uploads=True,
    bank_places=1,
)
