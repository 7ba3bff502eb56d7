"""Who hosts whom, and in what state, without a run."""

import numpy as np
import pytest
import torch

from gkt_mpi.cost.virtual_clock import Participant
from gkt_mpi.errors import GktError
from gkt_mpi.federation.hosting import Hosting
from gkt_mpi.federation.roster import Roster
from gkt_mpi.wire.messages import ClientMetrics, ClientReport, HostClient, LocalRequest, TrainRequest

SHARDS = [np.arange(3), np.arange(3, 7), np.arange(7, 8)]


class Transport:
    """Notes what is sent to whom, and who is told to stop."""

    def __init__(self):
        self.sent, self.stopped = [], []

    def send(self, rank, message):
        self.sent.append((rank, message))

    def stop(self, rank):
        self.stopped.append(rank)


class Edge:
    def __init__(self, value):
        self.value = value

    def state(self):
        return torch.full((4,), self.value, dtype=torch.uint8)


@pytest.fixture
def transport():
    return Transport()


@pytest.fixture
def hosting(transport):
    edges = [Edge(value) for value in range(3)]
    return Hosting(transport, Roster(SHARDS, num_ranks=3), edges, ["resnet8", "resnet4", "resnet8"])


def hosted(transport):
    return [(rank, m.client, m.sample_id.tolist(), int(m.state[0])) for rank, m in transport.sent]


def test_every_client_goes_to_its_worker_with_its_samples_and_state(hosting, transport):
    hosting.host_all()
    assert hosted(transport) == [(1, 0, [0, 1, 2], 0), (2, 1, [3, 4, 5, 6], 1), (1, 2, [7], 2)]
    assert hosting.state_bytes == {0: 4, 1: 4, 2: 4}


def test_clients_of_a_lost_worker_move_as_they_last_reported(hosting, transport):
    """Client 2 has reported in this round: it is hosted in the new state, which counts only with its upload."""
    state = torch.full((4,), 77, dtype=torch.uint8)
    report = ClientReport(2, 0, ClientMetrics(0, 0, 0, 0, 0, 0), state)
    assert hosting.move(1, {2: report}) == [0, 2]
    assert transport.stopped == [1]
    assert hosted(transport) == [(2, 0, [0, 1, 2], 0), (2, 2, [7], 77)]
    assert int(hosting.states[2][0]) == 2
    with pytest.raises(GktError, match="no worker is left"):
        hosting.move(2, {})


def test_what_a_round_costs_depends_on_what_the_request_carries(hosting):
    empty, some = torch.empty(0, dtype=torch.int64), torch.arange(4)
    logits = torch.zeros(4, 10)
    weights = torch.zeros(8, dtype=torch.uint8)
    assert hosting.participant(1, TrainRequest(1, 0, some, logits)) == Participant(4, "resnet4", True, False)
    found = hosting.participant(1, TrainRequest(1, 0, empty, logits[:0], weights))
    assert found == Participant(4, "resnet4", False, True)
    assert hosting.participant(0, LocalRequest(0, 0)) == Participant(3, "resnet8", False, False)


def test_hosting_sends_host_messages(hosting, transport):
    hosting.host(1)
    assert isinstance(transport.sent[0][1], HostClient)
