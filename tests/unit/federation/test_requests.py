"""Requests and uploads of two clients between threads of one process: good clients, a bad one, and a lost worker."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gkt_mpi.errors import WireError
from gkt_mpi.federation.books import RoundBooks
from gkt_mpi.federation.faults import FaultsConfig
from gkt_mpi.federation.hosting import Hosting
from gkt_mpi.federation.model_inbox import ModelInbox
from gkt_mpi.federation.requests import Requests
from gkt_mpi.federation.roster import Roster
from gkt_mpi.wire.contract import Contract
from gkt_mpi.wire.header import Kind
from gkt_mpi.wire.local import run_local
from gkt_mpi.wire.messages import ClientMetrics, ClientReport, HostClient, LocalRequest, ModelState, Stop

SHARDS = [np.arange(0, 5), np.arange(5, 12)]
BEFORE, AFTER = torch.zeros(8, dtype=torch.uint8), torch.ones(8, dtype=torch.uint8)
ANY = {"num_samples": dict(enumerate(map(len, SHARDS))), "state_bytes": 8, "max_samples": 12}


def weights(value):
    return torch.full((3,), value).view(torch.uint8)


def report(client):
    return ClientReport(client, 4, ClientMetrics(len(SHARDS[client]), 2, 1, 3, 0, 0), AFTER)


def serve(transport, faults, inbox):
    """Host both clients, ask them for round 4, and collect; return their states and the books."""
    progress = SimpleNamespace(begin_phase=lambda name, total: None, advance=lambda samples: None)
    watch = SimpleNamespace(transport=transport, progress=progress, advance=lambda samples: None)
    edge = SimpleNamespace(state=lambda: BEFORE)
    hosting = Hosting(transport, Roster(SHARDS, transport.size), [edge, edge], ["resnet4", "resnet4"])
    books = RoundBooks(transport, None)
    books.begin(4)
    requests = Requests(faults, hosting, books, watch)
    hosting.host_all()
    try:
        for client in hosting.roster:
            requests.request(client, LocalRequest(client, 4))
        requests.collect(4, inbox)
    finally:
        for rank in range(1, transport.size):
            transport.send(rank, Stop())
        transport.flush()
    return hosting.states, books


def work(transport, sent_by):
    """Answer each request with what `sent_by(client)` returns."""
    while True:
        kinds = frozenset({Kind.HOST, Kind.LOCAL, Kind.STOP})
        _, message = transport.receive(Contract(kinds, **ANY))
        if isinstance(message, Stop):
            return
        if not isinstance(message, HostClient):
            for answer in sent_by(message.client):
                transport.send(0, answer)


def run(sent_by, on_bad_client="stop"):
    inbox = ModelInbox(12, [len(shard) for shard in SHARDS])

    def rank(transport):
        if transport.rank == 0:
            return serve(transport, FaultsConfig(on_bad_client=on_bad_client), inbox)
        return work(transport, sent_by)

    (states, books), *_ = run_local(3, rank, timeout_s=60)
    return states, books, inbox


def test_asked_clients_are_received_and_their_new_states_kept():
    states, _, inbox = run(lambda client: [ModelState(client, 4, weights(float(client))), report(client)])
    assert all(torch.equal(state, AFTER) for state in states)
    assert {client: model.view(torch.float32).tolist() for client, model in inbox.models.items()} == {
        0: [0.0] * 3,
        1: [1.0] * 3,
    }


def poisoned(client):
    value = float("nan") if client == 1 else 1.0
    return [ModelState(client, 4, weights(value)), report(client)]


def test_a_bad_client_ends_the_run_with_advice():
    with pytest.raises(WireError, match=r"client 1 in round 5 .*not finite.*--faults.on_bad_client drop"):
        run(poisoned)


def test_a_bad_client_is_dropped_and_keeps_its_state_from_before_the_round(said):
    states, _, inbox = run(poisoned, on_bad_client="drop")
    assert torch.equal(states[0], AFTER) and torch.equal(states[1], BEFORE)
    assert list(inbox.models) == [0]
    assert [text for text in said.messages if text.startswith("dropped in this round: client 1")]
