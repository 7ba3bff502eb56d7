"""What a rank knows of the others; nobody dies here, see tests/e2e/test_faults.py."""

import threading
import time

import pytest
from mpi4py import MPI

from gkt_mpi.errors import LostRankError
from gkt_mpi.wire.peers import Peers
from gkt_mpi.wire.transport import SERVER

RANK = MPI.COMM_WORLD.rank
SOMEBODY = 7  # no rank of these tests


@pytest.fixture
def peers():
    return Peers(MPI.COMM_WORLD)


def test_a_death_is_told_once_and_a_worker_is_told_of_the_servers_alone(peers):
    for rank in (SOMEBODY, SOMEBODY, SERVER):
        peers.bury(rank)
    for expected in [SOMEBODY, SERVER] if RANK == SERVER else [SERVER]:
        with pytest.raises(LostRankError) as caught:
            peers.tell()
        assert caught.value.rank == expected
    peers.tell()  # raises nothing
    assert peers.dead == peers.lost == {SERVER, SOMEBODY}


def test_a_death_in_the_middle_of_a_message_is_not_told_again(peers):
    peers.tell_of(SERVER)  # raises nothing
    peers.bury(SERVER)
    with pytest.raises(LostRankError, match="in the middle of a message"):
        peers.tell_of(SERVER)
    peers.tell()  # raises nothing


def test_nobody_is_silent_who_could_not_be_heard(peers, monkeypatch):
    """As when the whole job was suspended while this rank did not listen."""
    now = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    peers.timeout_s = 2.0
    peers.hear(RANK)
    now[0] += 8
    peers.begin_wait()
    assert not peers.is_silent(RANK)
    for _ in range(5):  # from now on it could be heard
        now[0] += 0.5
        is_silent = peers.is_silent(RANK)
    assert is_silent


def test_deaths_that_many_threads_find_are_all_told(peers):
    """None gets lost while another thread takes one out."""
    ranks = range(100, 1100)
    threads = [threading.Thread(target=lambda part: [*map(peers.bury, part)], args=(ranks[k::4],)) for k in range(4)]
    for thread in threads:
        thread.start()
    told = set()
    while any(thread.is_alive() for thread in threads) or told < set(ranks):
        for rank in ranks[::100]:
            try:
                peers.tell_of(rank)
            except LostRankError as error:
                told.add(error.rank)
        try:
            peers.tell()
            if RANK != SERVER and peers.dead == set(ranks):
                break
        except LostRankError as error:
            told.add(error.rank)
    assert peers.dead == set(ranks)


def test_a_rank_that_says_nothing_is_missed_once_and_one_that_speaks_is_not(peers):
    peers.timeout_s = 0.2
    peers.begin_wait()
    began = time.monotonic()
    peers.hear(RANK)
    with pytest.raises(LostRankError, match=r"has not answered for 0\.2 s"):
        while time.monotonic() < began + 30:
            peers.miss({RANK})
            time.sleep(0.01)
    assert time.monotonic() - began >= 0.2
    peers.miss({RANK})  # raises nothing
    assert peers.silent == peers.lost == {RANK}
    peers.hear(RANK)
    assert not peers.is_silent(RANK)
