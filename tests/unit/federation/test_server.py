"""The server's actions between rounds, and their timing."""

import threading

from gkt_mpi.federation import worker
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
