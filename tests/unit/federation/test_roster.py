import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gkt_mpi.errors import GktError
from gkt_mpi.federation.roster import Roster


@pytest.mark.parametrize(("clients", "ranks"), [(4, 2), (4, 5), (7, 4), (20, 3), (3, 6)])
def test_clients_are_assigned_as_equally_as_possible(clients, ranks):
    roster = Roster([np.arange(k + 1) for k in range(clients)], ranks)
    assert list(roster) == list(range(clients))
    hosted = [list(roster.worker_of.values()).count(rank) for rank in range(1, ranks)]
    assert sum(hosted) == clients
    assert max(hosted) - min(hosted) <= 1
    assert roster.num_samples == {k: k + 1 for k in range(clients)}


@given(clients=st.integers(1, 40), ranks=st.integers(2, 12), data=st.data())
def test_clients_of_lost_workers_move_to_the_remaining_ones(clients, ranks, data):
    roster = Roster([np.arange(1)] * clients, ranks)
    alive = set(range(1, ranks))
    for lost in data.draw(st.permutations(sorted(alive)))[:-1]:
        before = dict(roster.worker_of)
        alive.remove(lost)
        moved = roster.lose(lost)
        assert moved == [client for client, rank in before.items() if rank == lost]
        assert set(roster.worker_of) == set(range(clients)) and set(roster.worker_of.values()) <= alive
        assert all(roster.worker_of[client] == before[client] for client in roster if client not in moved)
    with pytest.raises(GktError, match="no worker is left; start the same command again to resume"):
        roster.lose(alive.pop())
