"""Asynchronous FedGKT: nobody waits for the slowest client. Read fedgkt.py first; the client side is the same.

A client continues as soon as the server has learnt from its upload (after `async.buffer` uploads, as in
FedBuff, Nguyen et al., AISTATS 2022); its next upload then replaces its last one in the bank. Meanwhile
the server trains on the current bank, in which stale samples have less weight (`async.staleness`, as
in FedAsync, Xie et al. 2019). A round is as many uploads as there are clients, whichever clients they come from.

    rank 0      run_server      learners/arrivals.py       requested and arrived uploads, and their turns
                                learners/event_clock.py    by the devices' virtual time, or by this machine's
                                learners/async_teacher.py  the large model, its passes over the bank, the weights by age
                                learners/standing_bank.py  the clients' last and next features
    other ranks                 as in fedgkt.py
"""

from collections.abc import Iterator

from gkt_mpi.cost.work import RoundCase, knowledge_transfer
from gkt_mpi.facts import FEDGKT, FEDGKT_ASYNC
from gkt_mpi.federation.server import Server
from gkt_mpi.learners.algorithm import Algorithm
from gkt_mpi.learners.async_teacher import AsyncTeacher
from gkt_mpi.learners.bank import BankBatch
from gkt_mpi.learners.teacher import trained
from gkt_mpi.training.losses import server_loss
from gkt_mpi.wire.header import Kind


def run_server(server: Server, teacher: AsyncTeacher) -> None:
    """Learn from every upload in turn."""
    arrivals = teacher.open(server)
    for round in server.rounds(synchronous=False):
        teacher.begin_round_of_uploads(round)  # the first round asks all clients
        while arrivals.is_in_round:
            clients = arrivals.next_clients()  # their uploads are in the bank now
            with server.training(arrivals.others_are_at_work):
                train(teacher, teacher.due_batches(clients))
                teacher.predict(clients)
            arrivals.answer(teacher.fresh)  # with the server's logits; clients and server continue to train
            with server.training(others_are_at_work=True):
                train(teacher, teacher.overtime_batches())
        server.note(teacher.end_round(round) | teacher.drift.measure(server.hosting.states))


def train(teacher: AsyncTeacher, batches: Iterator[BankBatch]) -> None:
    """Train the large model on batches of the bank."""
    for batch in batches:
        logit_BC = teacher.model(batch.feature)
        weight_BC, age_weight_B = teacher.weight(batch), teacher.age_weight(batch)  # None when all weights are equal
        loss = server_loss(logit_BC, batch.label, batch.client_logit, teacher.distill, weight_BC, age_weight_B)
        teacher.step(loss, len(batch.label))


ALGORITHM = Algorithm(
    facts=FEDGKT_ASYNC,
    run_server=run_server,
    run_client=FEDGKT.name,
    learner=AsyncTeacher,
    requests=frozenset({Kind.TRAIN, Kind.LOCAL}),
    work=knowledge_transfer,  # one upload per client; the cost of one upload is in `async_prices`
    trained=trained,
    networks="{edge} at the edge, {large} on the server, {config.clock} clock",
    cases=(RoundCase("synchronous"),),
    may_share=True,
    bank_places=2,  # the one in use, and the one being received
)
