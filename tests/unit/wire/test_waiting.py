import time

import pytest

from gkt_mpi.wire.waiting import LONGEST_SLEEP_S, poll


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only while somebody sleeps; the sleeps so far."""
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(time, "perf_counter", lambda: sum(slept))
    return slept


def test_looks_are_eager_at_first_and_a_sleep_is_one_percent_of_the_wait_up_to_the_longest(clock):
    poll(lambda: sum(clock) > 100)
    first, rest = clock[:10], clock[10:]
    assert first == [0] * 10
    waited = 0.0
    for seconds in rest:
        assert seconds == pytest.approx(min(max(waited / 100, 200e-6), LONGEST_SLEEP_S))
        waited += seconds
    assert rest[0] == 200e-6 and rest[-1] == 0.1


def test_what_is_ready_is_not_slept_for(clock):
    poll(lambda: True)
    poll(lambda: True, shortest_sleep_s=1, eager=0)
    assert clock == []
