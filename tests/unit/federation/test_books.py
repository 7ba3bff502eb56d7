"""The books of a round, without a run: bytes, reports and costs, by hand."""

from types import SimpleNamespace

import pytest
import torch

from gkt_mpi.cost.virtual_clock import Participant, RoundCost
from gkt_mpi.errors import WireError
from gkt_mpi.federation.books import RoundBooks
from gkt_mpi.log.timeline import Timeline
from gkt_mpi.wire.messages import ClientMetrics, ClientReport
from gkt_mpi.wire.transport import Ledger


@pytest.fixture
def ledger():
    return Ledger()


@pytest.fixture
def priced():
    """What the books have asked the price of."""
    return []


@pytest.fixture
def books(ledger, priced):
    def price(participants, server_samples, start_s):
        priced.append((participants, server_samples, start_s))
        return RoundCost(edge_flops=5, virtual_s=2.5, virtual_server_idle=0.0, virtual_client_idle=0.0)

    return RoundBooks(SimpleNamespace(ledger=ledger, timeline=Timeline()), price)


def report(client, round=0, loss=2.0, samples=10):
    metrics = ClientMetrics(samples, loss * samples, loss * samples, 4, 1.0, 0.5, 100)
    return ClientReport(client, round, metrics, torch.zeros(4, dtype=torch.uint8))


def move(ledger, up=0, down=0):
    ledger.received["algorithm"] += up
    ledger.sent["algorithm"] += down


def test_a_round_counts_its_own_bytes_and_its_own_time(books, ledger, priced):
    move(ledger, up=1000)  # before the first round
    for round, up in enumerate((7, 9)):
        books.begin(round)
        books.take_part(3, Participant(10))
        move(ledger, up=up, down=1)
        record = books.end(20).record
        assert (record["round"], record["upload_bytes"], record["download_bytes"]) == (round + 1, up, 1)
        assert record["virtual_s"] == 2.5
    assert books.virtual_s == 5.0
    assert [(samples, start_s) for _, samples, start_s in priced] == [(20, 0.0), (20, 2.5)]


def test_the_first_request_of_a_round_determines_a_clients_cost(books, priced):
    books.begin(0)
    books.take_part(3, Participant(10, gets_logits=False))
    books.take_part(3, Participant(10, gets_logits=True))
    books.end(None)
    assert priced[0][0] == {3: Participant(10, gets_logits=False)}


def test_costs_that_have_been_noted_are_those_of_the_round(books, priced):
    books.begin(0)
    books.note({"upload_bytes": 3, "virtual_s": 9.0})
    assert books.end(None).record["upload_bytes"] == 3
    assert not priced and books.virtual_s == 0


def test_reports_are_averaged_over_samples_without_removed_ones(books):
    books.begin(0)
    with books.clients_phase():
        books.take_in(report(0, loss=1.0, samples=30), rank=1)
        books.take_in(report(1, loss=5.0, samples=10), rank=2)
        books.take_in(report(2, loss=99.0), rank=2)
        books.take_out(2, 0)
    finished = books.end(None)
    assert finished.record["client_train_loss"] == (30 * 1.0 + 10 * 5.0) / 40
    assert finished.record["participants"] == 2
    assert finished.record["slowest_client_s"] == 1.5
    assert {rank: len(spans) for rank, spans in finished.spans.items()} == {1: 1, 2: 2}


def test_a_round_without_a_usable_report_is_an_error(books):
    books.begin(4)
    with (
        pytest.raises(WireError, match="no client has uploaded anything that can be used in round 5"),
        books.clients_phase(),
    ):
        pass


def test_what_is_uncounted_leaves_no_trace(books, ledger):
    books.begin(0)
    move(ledger, up=5)
    with books.uncounted():
        books.take_part(1, Participant(3))
        books.take_in(report(1), rank=1)
        move(ledger, up=1000)
    assert books.sum_reports() == {}
    assert books.end(None).record["upload_bytes"] == 5


def test_problems_between_two_rounds_count_for_the_next(books):
    books.begin(0)
    assert [books.count("refused_messages") for _ in range(2)] == [1, 2]
    assert books.end(None).record["refused_messages"] == 2
    books.count("lost_workers")
    books.begin(1)
    record = books.end(None).record
    assert (record["round"], record["refused_messages"], record["lost_workers"]) == (2, 0, 1)
