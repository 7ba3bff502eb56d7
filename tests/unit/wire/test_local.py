import pytest
import torch

from gkt_mpi.wire.contract import Contract
from gkt_mpi.wire.header import Kind
from gkt_mpi.wire.local import run_local
from gkt_mpi.wire.messages import HostClient, Stop

HOST = Contract(frozenset({Kind.HOST, Kind.STOP}), max_samples=100, state_bytes=4)


def test_messages_between_two_ranks_keep_their_order_and_are_copies():
    def run(transport):
        if transport.rank == 0:
            state = torch.zeros(4, dtype=torch.uint8)
            for k in range(20):
                state.fill_(k)
                transport.send(1, HostClient(k, torch.arange(3), state))
            return transport.ledger.sent["simulation"]
        received = [transport.receive(HOST)[1] for _ in range(20)]
        assert [m.client for m in received] == list(range(20)) == [int(m.state[0]) for m in received]
        return transport.ledger.received["simulation"]

    sent, received = run_local(2, run, timeout_s=20)
    assert sent == received > 0


def test_an_exception_in_one_thread_ends_all_and_is_the_one_raised():
    def run(transport):
        if transport.rank == 1:
            raise ValueError("boom")
        transport.receive(HOST)

    with pytest.raises(ValueError, match="boom"):
        run_local(3, run, timeout_s=20)


def test_threads_that_wait_for_ever_are_a_timeout():
    release = []

    def run(transport):
        if transport.rank == 1:
            transport.receive(HOST)
        else:
            release.append(transport)

    with pytest.raises(TimeoutError, match="1 of 2"):
        run_local(2, run, timeout_s=0.5)
    release[0].send(1, Stop())
