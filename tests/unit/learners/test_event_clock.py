"""The order of uploads: the virtual clock by hand, the real one by arrival."""

import math

import pytest

from gkt_mpi.cost.devices import DeviceProfile, Devices
from gkt_mpi.cost.virtual_clock import ClientCost, end_of_work
from gkt_mpi.cost.work import Prices
from gkt_mpi.errors import GktError
from gkt_mpi.learners.event_clock import RealClock, VirtualClock

SERVER = DeviceProfile("server", flop_s=10, uplink_bit_s=1, downlink_bit_s=1, availability=1.0)
COST = ClientCost(up_bytes=0, down_bytes=0, edge_flops=100)


def device(flop_s, *away):
    return DeviceProfile("edge", flop_s, 1e9, 1e9, 1.0, away)


class Here:
    """Uploads that have all arrived, recording the order in which they were waited for."""

    def __init__(self, late=()):
        self.late, self.received = list(late), 0

    def complete(self):
        return [client for client in range(9) if client not in self.late]

    def receive(self):
        self.received += 1
        self.late.pop(0)


def clock_of(*devices):
    clock = VirtualClock(Prices(Devices(devices, SERVER), lambda *_: COST, training_flops=20, prediction_flops=5))
    for client in range(len(devices)):
        clock.ask(client, COST)
    return clock


def test_clients_come_in_the_order_of_their_devices_not_of_arrival():
    """100 operations at 10, 50 and 20 per second: 10, 2 and 5 seconds; the server needs 2 seconds per sample."""
    clock, uploads = clock_of(device(10), device(50), device(20)), Here(late=[1])
    assert clock.next_clients(1, uploads) == [1] and uploads.received == 1
    assert clock.now == 2 and clock.times_of(1) == (0, 2)
    clock.compute(trained=1, predicted=2)
    assert clock.now == 2 + 2 + 1
    clock.ask(1, COST)  # its next arrives at 7
    assert clock.next_clients(1, uploads) == [2] and clock.now == 5
    clock.ask(2, COST)  # at 10
    assert clock.next_clients(1, uploads) == [1] and clock.now == 7
    clock.ask(1, COST)  # at 9
    clock.compute(trained=2)  # until 11: all three arrive meanwhile
    assert clock.next_clients(1, uploads) == [0, 1, 2] and clock.now == 11
    assert [clock.times_of(client) for client in range(3)] == [(0, 10), (7, 9), (5, 10)]


def test_a_buffer_waits_for_its_number_of_uploads():
    clock = clock_of(device(10), device(50), device(20))
    assert clock.next_clients(2, Here()) == [1, 2] and clock.now == 5
    for client in (1, 2):
        clock.ask(client, COST)
    assert clock.next_clients(3, Here()) == [0, 1, 2] and clock.now == 10


def test_the_server_works_until_the_next_upload_is_due():
    clock = clock_of(device(10), device(50))
    clock.next_clients(1, Here())
    clock.ask(1, COST)  # due at 4, a sample takes 2
    assert not clock.is_next_due(1, samples=1, uploads=Here())
    assert clock.is_next_due(1, samples=2, uploads=Here())
    assert not clock.is_next_due(2, samples=4, uploads=Here())  # the second only at 10


def test_idle_shares_of_a_round():
    """Client 1 arrives at 2 and is answered at 5, then arrives at 7 and 9; client 0 works until 10. The server works 5
    s.
    """
    clock = clock_of(device(10), device(50))
    clock.next_clients(1, Here())
    clock.compute(trained=1, predicted=2)
    clock.ask(1, COST)
    clock.next_clients(1, Here())
    clock.compute(trained=1)
    clock.ask(1, COST)
    figures = clock.end_round()
    assert figures["virtual_s"] == 9
    assert figures["virtual_server_idle"] == pytest.approx(1 - 5 / 9)
    assert figures["virtual_client_idle"] == pytest.approx(1 - (9 + 4) / 2 / 9)
    for client in clock.next_clients(1, Here()):  # client 0, at 10
        clock.ask(client, COST)
    assert clock.end_round() == pytest.approx({"virtual_s": 1, "virtual_server_idle": 1, "virtual_client_idle": 0})


@pytest.mark.parametrize(
    ("start", "seconds", "away", "end"),
    [
        (0, 5, (), 5),
        (0, 5, ((5, 9),), 5),  # done just before
        (0, 5, ((4, 9),), 10),
        (6, 5, ((4, 9),), 14),  # asked while away
        (9, 5, ((4, 9),), 14),
        (0, 5, ((1, 2), (3, 10), (20, 30)), 13),
        (0, 18, ((1, 2), (3, 10), (20, 30)), 36),
        (0, 5, ((4, math.inf),), math.inf),
        (0, 4, ((4, math.inf),), 4),
        (0, 5, ((0, math.inf),), math.inf),
    ],
)
def test_a_device_that_is_away_rests(start, seconds, away, end):
    assert end_of_work(start, seconds, device(1, *away)) == end


def test_a_client_that_leaves_and_returns_is_late_and_not_busy():
    clock = clock_of(device(10, (4, 24)), device(50))
    assert clock.is_coming(0)
    for _ in range(15):
        for client in clock.next_clients(1, Here()):
            clock.ask(client, COST)
    assert clock.now == 30 and clock.times_of(0) == (0, 30)
    assert clock.end_round()["virtual_client_idle"] == pytest.approx(1 - (10 + 30) / 2 / 30)


def test_a_client_that_never_answers_is_not_waited_for():
    clock = clock_of(device(10, (0, math.inf)), device(50))
    assert not clock.is_coming(0) and clock.is_coming(1)
    assert clock.next_clients(1, Here()) == [1]
    clock.ask(1, COST)
    assert clock.next_clients(2, Here()) == [1] and clock.now == 4  # a buffer of 2 can no longer fill


def test_when_all_have_left_the_run_ends():
    clock = clock_of(device(10, (3, math.inf)), device(50, (3, math.inf)))
    assert clock.next_clients(2, Here()) == [1] and clock.now == 2
    clock.ask(1, COST)
    assert clock.is_next_due(1, samples=1, uploads=Here())  # no upload is to come
    with pytest.raises(GktError, match="all devices have left for good, 2 s into the run.*lower --rounds"):
        clock.next_clients(1, Here())


def test_a_clock_resumes_at_its_time():
    clock = clock_of(device(10), device(50), device(20))
    clock.next_clients(1, Here())
    clock.compute(trained=3)
    clock.ask(1, COST)
    clock.end_round()
    other = clock_of(device(10), device(50), device(20))
    other.load(clock.state())
    for one in (clock, other):
        assert one.next_clients(1, Here()) == [2] and one.now == 8
    assert clock.end_round() == other.end_round()


def test_the_real_clock_takes_uploads_that_have_arrived():
    clock, uploads = RealClock(), Here(late=[0, 3, 4])
    for client in range(9):
        clock.ask(client, COST)
    clock.note_complete(5)
    assert not clock.is_next_due(8, samples=10**9, uploads=uploads) and clock.is_next_due(6, 1, uploads)
    assert clock.next_clients(8, uploads) == [0, 1, 2, 3, 5, 6, 7, 8] and uploads.received == 2
    asked, done = clock.times_of(5)
    assert 0 <= asked <= done <= clock.now
    assert clock.end_round() == {}
