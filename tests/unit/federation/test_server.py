"""The server's actions in and between rounds, and their timing."""

import threading
from types import SimpleNamespace

import pytest

from gkt_mpi.federation import worker
from gkt_mpi.federation.plan import Plan
from gkt_mpi.federation.server import Server
from gkt_mpi.learners import teacher
from gkt_mpi.placement import Placement
from tests.conftest import run_in_threads


def run_and_note(tiny, monkeypatch, wait_s, **changes):
    """Run three rounds; return whether clients were working again while the server evaluated after the first."""
    at_work_again, seen = threading.Event(), []

    def train(self, client_round, request, original=worker.Worker.run_client_round):
        if request.round == 1:
            at_work_again.set()
        original(self, client_round, request)

    def evaluate(*arguments, original=teacher.evaluate):
        if not seen:  # the first evaluation, after the first round
            seen.append(at_work_again.wait(wait_s))
        return original(*arguments)

    monkeypatch.setattr(worker.Worker, "run_client_round", train)
    monkeypatch.setattr(teacher, "evaluate", evaluate)
    records = run_in_threads(tiny(rounds=3, **changes), 3)
    assert [record["round"] for record in records] == [1, 2, 3] and all("test_accuracy" in r for r in records)
    for record in records:
        parts = ("client_s", "wire_s", "server_s", "evaluate_s", "checkpoint_s")
        assert sum(record[part] for part in parts) <= record["round_s"] + 1e-6  # nothing is counted twice
    return seen[0]


def test_the_clients_work_while_the_server_evaluates_and_saves(tiny, monkeypatch):
    assert run_and_note(tiny, monkeypatch, wait_s=60, placement__threads=1)


def test_the_clients_wait_where_the_server_evaluates_on_their_cores(tiny, monkeypatch):
    monkeypatch.setattr(Placement, "has_own_cores", False)
    assert not run_and_note(tiny, monkeypatch, wait_s=0.5)


def server_of(events, clients=10, participation=1.0, rounds=3, has_own_cores=True):
    """A server whose parts note in `events` what is asked of them."""

    def noting(name):
        return lambda *arguments: events.append((name, *arguments))

    ended = iter(range(rounds))
    books = SimpleNamespace(
        begin=noting("begin"), end=lambda samples: f"round {next(ended)}", begin_clients_time=noting("clients again")
    )
    hosting = SimpleNamespace(roster=range(clients), host_all=noting("host all"))
    round_end = SimpleNamespace(
        rounds_done=0, begin=noting("start"), end=noting("evaluate, save, log"), finish=noting("summary")
    )
    transport = SimpleNamespace(size=3, send=lambda rank, message: noting("stop")(rank), flush=noting("flush"))
    watch = SimpleNamespace(
        transport=transport,
        progress=None,
        interrupt=SimpleNamespace(check=None),
        placement=SimpleNamespace(has_own_cores=has_own_cores),
    )
    requests = SimpleNamespace(hosting=hosting, books=books)
    plan = Plan(rounds, participation, 7, None)
    return Server(plan, SimpleNamespace(samples_trained=None), requests, round_end, watch)


def test_a_round_is_ended_when_the_algorithm_says_so_in_the_next_and_the_last_one_by_itself():
    events = []
    server = server_of(events, rounds=2)
    for round in server.rounds():
        events.append(("algorithm", round))
        server.end_last_round()
    assert events == [
        *(("host all",), ("start",)),
        *(("begin", 0), ("algorithm", 0)),
        *(("begin", 1), ("algorithm", 1), ("evaluate, save, log", "round 0"), ("clients again",)),
        *(("evaluate, save, log", "round 1"), ("clients again",), ("summary",)),
        *(("stop", 1), ("stop", 2), ("flush",)),
    ]


def test_where_the_server_shares_its_cores_with_workers_a_round_is_ended_at_once():
    events = []
    for round in server_of(events, rounds=2, has_own_cores=False).rounds():
        events.append(("algorithm", round))
    assert events.index(("evaluate, save, log", "round 0")) < events.index(("begin", 1))


def test_an_algorithm_that_forgets_to_end_the_previous_round_fails():
    rounds = server_of([]).rounds()
    assert [next(rounds), next(rounds)] == [0, 1]
    with pytest.raises(AssertionError, match="the algorithm has not ended the previous round"):
        next(rounds)


@pytest.mark.parametrize(("participation", "count"), [(1.0, 10), (0.34, 3), (0.35, 4), (0.001, 1)])
def test_participants_are_drawn_from_the_seed_for_each_round(participation, count):
    server = server_of([], participation=participation)
    drawn = [tuple(server.participants(round)) for round in range(40)]
    assert all(len(set(clients)) == count and list(clients) == sorted(clients) for clients in drawn)
    assert drawn == [tuple(server_of([], participation=participation).participants(round)) for round in range(40)]
    assert set().union(*drawn) == set(range(10)) and (len(set(drawn)) > 1) == (count < 10)
