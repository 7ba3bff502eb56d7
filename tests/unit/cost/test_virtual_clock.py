"""Seconds of rounds on devices, by hand."""

import pytest

from gkt_mpi.cost.devices import DeviceProfile, Devices
from gkt_mpi.cost.virtual_clock import ClientCost, RoundWork, client_s, clients_s, round_cost, round_s, server_s

SLOW = DeviceProfile("slow", flop_s=100, uplink_bit_s=8, downlink_bit_s=16, availability=0.5)
FAST = DeviceProfile("fast", flop_s=1000, uplink_bit_s=80, downlink_bit_s=80, availability=1.0)
SERVER = DeviceProfile("server", flop_s=10_000, uplink_bit_s=1, downlink_bit_s=1, availability=0.5)
DEVICES = Devices((SLOW, FAST), SERVER)
COST = ClientCost(up_bytes=3, down_bytes=10, edge_flops=400, served_flops=5000)
CLIENTS = {0: COST, 1: COST, 4: COST}  # slow, fast, slow
SLOW_S, FAST_S = 24.0, 1.0 + 0.4 + 0.3


def test_a_client_receives_computes_and_sends_while_available():
    """10 bytes at 2 per second, 400 operations at 100, 3 bytes at 1 per second, available half of the time."""
    assert client_s(COST, SLOW) == SLOW_S == (5 + 4 + 3) / 0.5
    assert client_s(COST, FAST) == pytest.approx(FAST_S, rel=1e-15)


def test_profiles_are_assigned_to_the_clients_in_turn():
    assert clients_s(CLIENTS, "together", DEVICES) == {0: SLOW_S, 1: pytest.approx(FAST_S), 4: SLOW_S}


def test_the_server_computes_while_it_is_available():
    assert server_s(20_000, SERVER) == 4.0


def test_together_the_slowest_client_counts_and_then_the_server():
    assert round_s(RoundWork(CLIENTS, 20_000), DEVICES) == SLOW_S + 4
    assert round_s(RoundWork({1: COST}, 20_000), DEVICES) == pytest.approx(FAST_S + 4)


def test_in_a_second_exchange_the_slowest_counts_once_more():
    work = RoundWork(CLIENTS, 20_000, then={1: COST})
    assert round_s(work, DEVICES) == pytest.approx(SLOW_S + FAST_S + 4)
    assert work.edge_flops == 4 * COST.edge_flops


def test_in_turn_all_clients_count():
    work = RoundWork(CLIENTS, 15_000, "in_turn")
    assert round_s(work, DEVICES) == pytest.approx(24 + 1.7 + 24 + 3, rel=1e-15)


def test_side_by_side_the_slowest_client_counts_with_its_share_of_the_server():
    assert round_s(RoundWork(CLIENTS, 15_000, "side_by_side"), DEVICES) == SLOW_S + 1


def test_side_by_side_the_server_counts_where_it_has_more_to_do():
    fast = dict.fromkeys((1, 3, 5, 7), COST)
    assert round_s(RoundWork(fast, 20_000, "side_by_side"), DEVICES) == 4.0


def test_of_one_client_sequential_and_parallel_split_learning_take_equally_long():
    in_turn, at_once = (RoundWork({0: COST}, 5000, order) for order in ("in_turn", "side_by_side"))
    assert round_s(in_turn, DEVICES) == round_s(at_once, DEVICES) == SLOW_S + 1


@pytest.mark.parametrize("order", ["together", "in_turn", "side_by_side"])
def test_without_clients_the_servers_time_counts(order):
    assert round_s(RoundWork({}, 20_000, order), DEVICES) == 4.0


def test_seconds_do_not_depend_on_the_order_of_the_clients():
    costs = {client: ClientCost(up_bytes=10**client, down_bytes=3, edge_flops=7 * client) for client in range(12)}
    turned = dict(reversed(costs.items()))
    for order in ("together", "in_turn", "side_by_side"):
        assert round_cost(RoundWork(costs, 9, order), DEVICES) == round_cost(RoundWork(turned, 9, order), DEVICES)


def test_operations_of_the_edge_are_summed_exactly():
    cost = ClientCost(0, 0, 2**60 + 1)
    assert round_cost(RoundWork({0: cost, 1: cost}, 0), DEVICES).edge_flops == 2**61 + 2


@pytest.mark.parametrize(
    ("start_s", "expected"), [(0, 24 + 4), (5, 24 + 7 + 4), (20, 24 + 7 + 4), (24, 24 + 3 + 4), (27, 24 + 4)]
)
def test_a_round_in_which_a_client_is_away_is_longer_and_idle_the_while(start_s, expected):
    """Its 24 seconds of work, away from second 24 to 27, or from 20; then the server's 4 seconds."""
    leaves_s = 20 if start_s in (5, 20) else 24
    away = DeviceProfile("away", 100, 8, 16, 0.5, ((leaves_s, 27.0),))
    cost = round_cost(RoundWork({0: COST}, 20_000), Devices((away,), SERVER), start_s)
    assert cost.virtual_s == expected
    assert cost.virtual_server_idle == pytest.approx(1 - 4 / expected)
    assert cost.virtual_client_idle == pytest.approx(1 - 24 / expected)
