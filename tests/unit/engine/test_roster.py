import numpy as np
import pytest

from gkt_mpi.engine.roster import Roster


@pytest.mark.parametrize(("clients", "ranks"), [(4, 2), (4, 5), (7, 4), (20, 3), (3, 6)])
def test_clients_are_dealt_out_as_equally_as_can_be(clients, ranks):
    roster = Roster([np.arange(k + 1) for k in range(clients)], ranks)
    assert list(roster) == list(range(clients))
    hosted = [list(roster.worker_of.values()).count(rank) for rank in range(1, ranks)]
    assert sum(hosted) == clients
    assert max(hosted) - min(hosted) <= 1
    assert roster.num_samples == {k: k + 1 for k in range(clients)}
