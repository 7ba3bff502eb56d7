from dataclasses import replace
from functools import partial

import pytest
import torch

from gkt_mpi.errors import WireError
from gkt_mpi.wire.contract import Contract
from gkt_mpi.wire.header import HEADER_BYTES, VERSION, Header, Kind
from gkt_mpi.wire.messages import (
    Check,
    ClientMetrics,
    ClientReport,
    FeatureBlock,
    Gradient,
    HostClient,
    LocalRequest,
    ModelState,
    Setup,
    Stop,
    TrainRequest,
    from_wire,
    header_names,
    payload_layout,
    payload_size,
    to_wire,
)

BLOCK = FeatureBlock(
    client=1,
    round=3,
    first=4,
    sample_id=torch.arange(5),
    label=torch.arange(5, dtype=torch.int16),
    logit=torch.rand(5, 10),
    feature=torch.zeros(5, 64, dtype=torch.uint8),
    shape=(2, 2, 4),
    codec=0,
)
MESSAGES = [
    Setup(10, (8, 8, 1), 1, torch.arange(32, dtype=torch.uint8)),
    HostClient(2, torch.arange(9), torch.ones(33, dtype=torch.uint8)),
    TrainRequest(1, 3, torch.arange(9), torch.rand(9, 10)),
    BLOCK,
    ClientReport(1, 3, ClientMetrics(1, 2.5, 2, 3, 4.25, 5), torch.ones(33, dtype=torch.uint8)),
    ModelState(1, 3, torch.arange(48, dtype=torch.uint8)),
    LocalRequest(1, 3),
    Gradient(1, 3, 4, torch.ones(6, 64, dtype=torch.uint8)),
    TrainRequest(1, 3, torch.arange(9), torch.rand(9, 10), torch.arange(48, dtype=torch.uint8)),
    Stop(),
]
CONTRACT = Contract(
    frozenset(Kind),
    round=3,
    num_classes=10,
    num_samples={0: 9, 1: 9},
    sender={0: 1, 1: 2},
    feature_shape=(2, 2, 4),
    row_bytes=64,
    block_rows=6,
    first=4,
    state_bytes=33,
    model_bytes=48,
    max_samples=100,
)


def same(a, b):
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_survives_the_wire(message):
    header, payload = to_wire(message)
    words = header.pack()
    assert words.nbytes == HEADER_BYTES
    assert header.payload_bytes == sum(buffer.nbytes for buffer in payload) == payload_size(header)
    again = from_wire(Header.unpack(words, 1), payload)
    assert type(again) is type(message)
    assert all(same(a, b) for a, b in zip(vars(again).values(), vars(message).values(), strict=True))


U8, I64, F32, F64 = torch.uint8, torch.int64, torch.float32, torch.float64


@pytest.mark.parametrize(
    ("message", "words", "layout"),
    [
        (MESSAGES[0], {"num_classes": 10, "height": 8, "width": 8, "channels": 1, "precision": 1}, [(U8, (32,))]),
        (MESSAGES[1], {"client": 2, "num_samples": 9, "state_bytes": 33}, [(I64, (9,)), (U8, (33,))]),
        (
            replace(MESSAGES[8], at=1.5),
            {"client": 1, "round": 3, "first": 1_500_000, "num_samples": 9, "num_classes": 10, "state_bytes": 48},
            [(I64, (9,)), (F32, (9, 10)), (U8, (48,))],
        ),
        (
            BLOCK,
            {"client": 1, "round": 3, "first": 4, "num_samples": 5, "num_classes": 10, "row_bytes": 64}
            | {"height": 2, "width": 2, "channels": 4},
            [(U8, (5 * (8 + 4 * 10 + 2),)), (U8, (5, 64))],
        ),
        (
            replace(MESSAGES[4], spans=torch.zeros(2, 3, dtype=F64)),
            {"client": 1, "round": 3, "state_bytes": 33, "num_spans": 2},
            [(F64, (7,)), (U8, (33,)), (F64, (2, 3))],
        ),
        (MESSAGES[5], {"client": 1, "round": 3, "state_bytes": 48}, [(U8, (48,))]),
        (MESSAGES[6], {"client": 1, "round": 3}, []),
        (MESSAGES[7], {"client": 1, "round": 3, "first": 4, "num_samples": 6, "row_bytes": 64}, [(U8, (6, 64))]),
        (MESSAGES[9], {}, []),
        (Check(torch.zeros(7, dtype=U8)), {"state_bytes": 7}, [(U8, (7,))]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_message_is_these_integers_and_these_buffers(message, words, layout):
    header, payload = to_wire(message)
    assert header == Header(message.kind, **words, payload_bytes=sum(buffer.nbytes for buffer in payload))
    assert payload_layout(header) == layout == [(buffer.dtype, tuple(buffer.shape)) for buffer in payload]
    assert set(words) <= header_names(message.kind)


def test_the_contract_accepts_what_it_describes():
    for message in (MESSAGES[2], BLOCK, *MESSAGES[4:8]):
        header, _ = to_wire(message)
        CONTRACT.check(2, header)  # raises nothing
        assert payload_size(header) == header.payload_bytes


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", 11),
        ("kind", -1),
        ("client", 2),
        ("client", -1),
        ("client", 0),  # known, but hosted by another rank
        ("round", 2),
        ("round", 4),
        ("first", -1),
        ("first", 5),
        ("num_samples", 0),
        ("num_samples", 7),
        ("num_samples", 2**62),
        ("num_classes", 9),
        ("height", 3),
        ("width", 3),
        ("channels", 5),
        ("row_bytes", 65),
        ("codec", 1),
        ("payload_bytes", 1),
    ],
)
def test_a_block_with_a_wrong_field_is_refused_by_rank_and_field(field, value):
    header = to_wire(BLOCK)[0]._replace(**{field: value})
    with pytest.raises(WireError, match=rf"rank 2 .* {field} is"):
        CONTRACT.check(2, header)


@pytest.mark.parametrize(
    ("message", "field", "value"),
    [
        (MESSAGES[5], "state_bytes", 44),
        (MESSAGES[5], "state_bytes", 2**50),
        (MESSAGES[5], "client", 0),
        (MESSAGES[5], "round", 4),
        (MESSAGES[5], "num_samples", 1),
        (MESSAGES[6], "client", 7),
        (MESSAGES[6], "payload_bytes", 8),
        (MESSAGES[8], "state_bytes", 44),
        (MESSAGES[7], "first", 5),
        (MESSAGES[7], "num_samples", 5),
        (MESSAGES[7], "row_bytes", 32),
        (MESSAGES[7], "client", 2),
    ],
)
def test_a_wrong_field_of_weights_requests_and_gradients_is_refused(message, field, value):
    header = to_wire(message)[0]._replace(**{field: value})
    with pytest.raises(WireError, match=rf"rank 2 .* {field} is"):
        CONTRACT.check(2, header)


def test_the_state_of_each_client_has_a_size_of_its_own():
    contract = replace(CONTRACT, state_bytes={0: 20, 1: 33})
    contract.check(2, to_wire(MESSAGES[4])[0])  # raises nothing
    with pytest.raises(WireError, match="state_bytes is 33; expected 20"):
        contract.check(1, to_wire(replace(MESSAGES[4], client=0))[0])
    with pytest.raises(WireError, match="state_bytes"):  # a client that nobody knows
        replace(contract, round=None).check(0, to_wire(replace(MESSAGES[1], client=9))[0])


def test_a_report_with_a_state_of_another_size_is_refused():
    header = to_wire(MESSAGES[4])[0]._replace(state_bytes=2**50)
    with pytest.raises(WireError, match="state_bytes"):
        CONTRACT.check(2, header)


def test_another_program_or_version_is_refused():
    words = to_wire(BLOCK)[0].pack()
    words[1] += 1
    with pytest.raises(WireError, match=f"version {VERSION + 1}, this rank {VERSION}"):
        Header.unpack(words, 4)
    words[0] = 0
    with pytest.raises(WireError, match="rank 4"):
        Header.unpack(words, 4)


def test_a_blocks_features_are_received_in_the_memory_given_for_them():
    """It is asked for when all the rest has come, and may be filled later."""
    memory = torch.empty(5, 64, dtype=torch.uint8)
    header, payload = to_wire(BLOCK)
    asked, later = [], []
    contract = Contract(frozenset({Kind.BLOCK}), admit=lambda *about: asked.append(about) or memory, fill=later.append)
    buffers = []
    for (buffer, fill), sent in zip(contract.buffers(header), payload, strict=True):
        assert bool(asked) == bool(buffers)
        fill(partial(buffer.copy_, sent))
        buffers.append(buffer)
    assert buffers[-1] is memory and len(later) == 1
    assert asked[0][0] == header
    assert all(map(torch.equal, asked[0][1:], (BLOCK.sample_id, BLOCK.label, BLOCK.logit)))


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_what_a_block_says_of_its_samples_travels_whole_however_it_lies_in_memory(count, classes):
    ids = torch.arange(3 * count)[::3]
    logit = torch.rand(classes, count).T
    label = torch.tensor(5, dtype=torch.int16).expand(count)
    block = replace(BLOCK, sample_id=ids, label=label, logit=logit, feature=torch.zeros(count, 64, dtype=torch.uint8))
    found = from_wire(*to_wire(block))
    assert all(map(torch.equal, (found.sample_id, found.label, found.logit), (ids, label, logit)))
