"""What specifications say of themselves agrees, and no list has two of a name."""

from dataclasses import replace

import pytest

from gkt_mpi.algorithms import ALGORITHMS, client_side, fedgkt
from gkt_mpi.data.partition import PARTITIONS
from gkt_mpi.data.sources import DATA_SOURCES
from gkt_mpi.facts import ALGORITHM_FACTS, facts_of
from gkt_mpi.models.networks import EDGE_FAMILIES, SERVER_FAMILIES
from gkt_mpi.wire.codec import CODECS


@pytest.mark.parametrize(
    "listed",
    [ALGORITHMS, DATA_SOURCES, PARTITIONS, EDGE_FAMILIES, SERVER_FAMILIES, CODECS],
    ids=["algorithms", "data", "partitions", "edges", "servers", "codecs"],
)
def test_a_list_finds_a_specification_by_its_own_name(listed):
    assert [its.name for its in listed.values()] == list(listed)


def test_reports_have_the_facts_of_every_algorithm_in_the_same_order():
    assert {name: its.facts for name, its in ALGORITHMS.items()} == ALGORITHM_FACTS
    assert list(ALGORITHMS) == list(ALGORITHM_FACTS)


def test_an_algorithm_without_clients_asks_nobody():
    for algorithm in ALGORITHMS.values():
        assert bool(algorithm.requests) == algorithm.facts.has_clients
    with pytest.raises(AssertionError, match="centralized"):
        replace(ALGORITHMS["centralized"], requests=ALGORITHMS["fedgkt"].requests)


def test_asynchronous_clients_do_what_synchronous_ones_do():
    assert client_side(ALGORITHMS["fedgkt_async"]) is client_side(ALGORITHMS["fedgkt"]) is fedgkt.run_client


def test_an_algorithm_that_is_not_in_the_list_keeps_its_name_in_reports():
    assert facts_of("mine:ALGORITHM").title == "mine:ALGORITHM"
    assert facts_of("mine:ALGORITHM").is_synchronous
