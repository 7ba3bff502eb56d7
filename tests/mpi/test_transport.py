"""The MPI transport on any number of ranks: `make test-mpi-3`, or tests/e2e/test_mpi.py for 1, 2, 3 and 5.

Every rank runs every test; what one rank sends in a test, the others receive in the same test.
"""

import shutil
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from mpi4py import MPI

from gkt_mpi.errors import WireError
from gkt_mpi.seeding import torch_generator
from gkt_mpi.wire.contract import Contract
from gkt_mpi.wire.header import Kind
from gkt_mpi.wire.messages import ClientMetrics, ClientReport, FeatureBlock, HostClient, Setup, Stop, TrainRequest
from gkt_mpi.wire.mpi import MpiTransport
from gkt_mpi.wire.mpi_library import ask_cuda_support, is_cuda_aware, node_place

RANK, SIZE = MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size
WORKERS = range(1, SIZE)


@pytest.fixture
def transport():
    made = MpiTransport()
    yield made
    made.flush()
    MPI.COMM_WORLD.Barrier()  # no rank goes on to the next test before all have ended this one


def block(client, first, count, row_bytes=256):
    generator = torch_generator(0, "block", client, first)
    return FeatureBlock(
        client,
        0,
        first,
        torch.arange(first, first + count),
        torch.full((count,), client, dtype=torch.int16),
        torch.rand(count, 10, generator=generator),
        torch.randint(0, 256, (count, row_bytes), dtype=torch.uint8, generator=generator),
        (4, 4, 4),
        0,
    )


def contract(admit=None, rows=1000, row_bytes=256):
    return Contract(
        frozenset({Kind.BLOCK, Kind.REPORT}),
        round=0,
        num_classes=10,
        num_samples=dict.fromkeys(WORKERS, rows),
        sender={rank: rank for rank in WORKERS},
        feature_shape=(4, 4, 4),
        row_bytes=row_bytes,
        block_rows=rows,
        state_bytes=33,
        admit=admit,
    )


def same(a, b):
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def assert_same(a, b):
    assert type(a) is type(b)
    assert all(same(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))


def test_messages_to_every_worker_arrive_whole_and_in_order(transport):
    def messages(rank):
        return [
            Setup(10, (8, 8, 1), 1, torch.arange(32, dtype=torch.uint8)),
            HostClient(rank, torch.arange(7), torch.full((33,), rank, dtype=torch.uint8)),
            TrainRequest(rank, 0, torch.arange(0), torch.empty(0, 10)),
            TrainRequest(rank, 1, torch.arange(7), torch.rand(7, 10, generator=torch_generator(0, "x", rank))),
            Stop(),
        ]

    accepted = Contract(
        frozenset({Kind.SETUP, Kind.HOST, Kind.TRAIN, Kind.STOP}),
        num_classes=10,
        num_samples={RANK: 7},
        state_bytes=33,
        max_samples=100,
    )
    if RANK == 0:
        for rank in WORKERS:
            for message in messages(rank):
                transport.send(rank, message)
    else:
        for expected in messages(RANK):
            source, found = transport.receive(accepted)
            assert source == 0
            assert_same(found, expected)


def test_blocks_of_all_workers_land_in_their_own_memory(transport):
    """Many blocks from every worker at once, in whatever order they come."""
    if RANK > 0:
        for first in range(0, 1000, 100):
            transport.send(0, block(RANK, first, 100))
            transport.flush(pending=1)
        transport.send(0, ClientReport(RANK, 0, ClientMetrics(1, 2, 2, 1, 4, 5), torch.ones(33, dtype=torch.uint8)))
        return
    bank = {rank: torch.zeros(1000, 256, dtype=torch.uint8) for rank in WORKERS}
    accepted = contract(lambda header, *_: bank[header.client][header.first : header.first + header.num_samples])
    last = dict.fromkeys(WORKERS, 0)
    for _ in range(11 * len(WORKERS)):
        source, message = transport.receive(accepted)
        if isinstance(message, FeatureBlock):
            expected = block(source, last[source], 100)
            assert_same(message, expected)
            assert torch.equal(bank[source][message.first : message.first + 100], expected.feature)
            last[source] += 100
        else:
            assert last[source] == 1000


def test_large_blocks_cross_both_ways_at_the_same_time_without_a_deadlock(transport):
    """Every rank sends 8 MiB before it receives: sends must not wait for receives."""
    others = [rank for rank in range(SIZE) if rank != RANK]
    state = torch.full((2**23,), RANK, dtype=torch.uint8)
    for rank in others:
        transport.send(rank, HostClient(RANK, torch.arange(3), state))
    accepted = Contract(frozenset({Kind.HOST}), max_samples=3, state_bytes=2**23)
    received = [transport.receive(accepted) for _ in others]
    assert sorted(source for source, _ in received) == others
    assert all(message.client == source and int(message.state[-1]) == source for source, message in received)


def test_a_message_that_breaks_the_contract_is_refused_by_rank_and_field_and_the_next_is_received(transport):
    if RANK > 0:
        for round in (1, 0):
            metrics = ClientMetrics(1, 2, 2, 1, 4, 5)
            transport.send(0, ClientReport(RANK, round, metrics, torch.ones(33, dtype=torch.uint8)))
        return
    refused, received = [], []
    for _ in range(2 * len(WORKERS)):
        try:
            received.append(transport.receive(contract())[0])
        except WireError as error:
            assert "sent a message whose round is 1; expected 0" in str(error)
            refused.append(int(str(error).split()[1]))
    assert sorted(refused) == sorted(received) == list(WORKERS)


@pytest.mark.parametrize("largest_send", [1, 100, 256, 999])
def test_a_buffer_larger_than_one_send_goes_in_pieces(largest_send):
    """The path of a buffer over 1 GiB, with a lower limit."""
    transport = MpiTransport(largest_send=largest_send)
    if RANK > 0:
        transport.send(0, block(RANK, 0, 10))
        transport.send(0, ClientReport(RANK, 0, ClientMetrics(1, 2, 2, 1, 4, 5), torch.ones(33, dtype=torch.uint8)))
        transport.flush()
    for _ in range(2 * len(WORKERS)) if RANK == 0 else ():
        source, message = transport.receive(contract())
        if isinstance(message, FeatureBlock):
            assert_same(message, block(source, 0, 10))
    MPI.COMM_WORLD.Barrier()


def test_the_ledger_of_the_receiver_equals_that_of_the_senders(transport):
    if RANK > 0:
        transport.send(0, block(RANK, 0, 10))
        transport.send(0, ClientReport(RANK, 0, ClientMetrics(1, 2, 2, 1, 4, 5), torch.ones(33, dtype=torch.uint8)))
    else:
        for _ in range(2 * len(WORKERS)):
            transport.receive(contract())
    sent = MPI.COMM_WORLD.allreduce(transport.ledger.sent["algorithm"])
    simulated = MPI.COMM_WORLD.allreduce(transport.ledger.sent["simulation"])
    if RANK == 0:
        assert transport.ledger.received == {"algorithm": sent, "simulation": simulated}
        assert sent == len(WORKERS) * (17 * 8 + 10 * (8 + 2 + 40 + 256))
        assert transport.ledger.simulation_bytes == simulated


@pytest.mark.parametrize(("answer", "expected"), [(1, True), (0, False), (None, False)])
def test_cuda_support_is_what_the_mpi_library_answers(answer, expected):
    library = SimpleNamespace() if answer is None else SimpleNamespace(MPIX_Query_cuda_support=lambda: answer)
    assert ask_cuda_support(library) is expected


def test_cuda_awareness_is_as_chosen_and_detected_as_open_mpis_own_tool_tells():
    assert is_cuda_aware(True) is True
    assert is_cuda_aware(False) is False
    info = shutil.which("ompi_info")
    if info is None or "Open MPI" not in MPI.Get_library_version():
        pytest.skip("there is no ompi_info to compare with")
    known = subprocess.run([info, "--parsable", "--all"], capture_output=True, text=True, check=True, timeout=60).stdout
    assert is_cuda_aware("auto") is ("mpi_built_with_cuda_support:value:true" in known)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("choice", ["auto", False])
def test_gpu_tensors_cross_both_ways(choice):
    transport = MpiTransport(cuda_aware=is_cuda_aware(choice), largest_send=1000)
    logit = torch.rand(7, 10, generator=torch_generator(0, "gpu"))
    device = torch.device("cuda", 0)
    accepted = Contract(frozenset({Kind.TRAIN}), num_classes=10, num_samples={RANK: 7}, device=device)
    if RANK == 0:
        bank = torch.zeros(10, 256, dtype=torch.uint8, device=device)
        for rank in WORKERS:
            transport.send(rank, TrainRequest(rank, 1, torch.arange(7, device=device), logit.to(device)))
        for _ in WORKERS:
            source, found = transport.receive(contract(lambda *_: bank))
            assert torch.equal(found.feature.cpu(), block(source, 0, 10).feature)
    else:
        _, found = transport.receive(accepted)
        assert found.logit.device == device and torch.equal(found.logit.cpu(), logit)
        sent = block(RANK, 0, 10)
        transport.send(0, replace(sent, logit=sent.logit.to(device), feature=sent.feature.to(device)))
    transport.flush()
    MPI.COMM_WORLD.Barrier()


def test_every_rank_knows_its_place_on_the_node():
    local_rank, local_size, has_server = node_place()
    assert (local_rank, local_size, has_server) == (RANK, SIZE, True)  # tests run on one node
