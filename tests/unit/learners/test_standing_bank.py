"""The bank of asynchronous training: an upload stays in use until the next one is complete."""

import numpy as np
import pytest
import torch

from gkt_mpi.errors import WireError
from gkt_mpi.learners.feature_rows import BankConfig
from gkt_mpi.learners.standing_bank import StandingBank
from gkt_mpi.wire.codec import Codec
from gkt_mpi.wire.messages import FeatureBlock, to_wire

CODEC = Codec("float32", (2, 2, 3))
SHARDS = [np.array([4, 0]), np.array([5, 1, 3]), np.array([2])]


@pytest.fixture(params=[None, 0, 0.0002])  # MiB: all in memory, all on disk, the first slots in memory
def bank(request, tmp_path):
    bank = StandingBank(SHARDS, 10, CODEC, torch.device("cpu"), BankConfig(memory_mib=request.param), tmp_path)
    yield bank
    bank.close()


def upload(bank, client, value, parts=None):
    """Send a client's upload (or some of its parts of one row), with one value for all features, labels and logits."""
    for first in range(len(SHARDS[client])) if parts is None else parts:
        feature = CODEC.encode(torch.full((1, 3, 2, 2), float(value)))
        ids = torch.from_numpy(SHARDS[client][first : first + 1])
        label, logit = torch.full((1,), value, dtype=torch.int16), torch.full((1, 10), float(value))
        block = FeatureBlock(client, 0, first, ids, label, logit, feature, CODEC.shape, CODEC.code_id)
        bank.admit(to_wire(block)[0], ids, label, logit).copy_(feature)
        bank.claim(block)
        bank.check(block)


def values(bank):
    """The values of every row that is trained on, in order: of its feature, its label, and its logits."""
    batch = bank.batch(bank.arrived_rows())
    assert torch.equal(batch.feature[:, 0, 0, 0], batch.label.float())
    assert torch.equal(batch.client_logit[:, 0], batch.label.float())
    return batch.label.tolist()


def test_an_upload_is_used_when_it_lands_and_not_before(bank):
    upload(bank, 1, 7)
    assert bank.num_arrived == 0 and bank.landed == []
    bank.land(1)
    assert bank.landed == [1] and values(bank) == [7, 7, 7]
    upload(bank, 1, 8)
    upload(bank, 0, 5)
    assert values(bank) == [7, 7, 7]
    bank.land(0)
    assert values(bank) == [5, 5, 7, 7, 7]
    bank.land(1)
    assert values(bank) == [5, 5, 8, 8, 8]
    for value in (9, 1, 2):
        upload(bank, 1, value)
        assert bank.missing(1) == ""
        bank.land(1)
        assert values(bank) == [5, 5, value, value, value]


def test_a_partial_upload_can_be_discarded_and_repeated(bank):
    upload(bank, 1, 7)
    bank.land(1)
    upload(bank, 1, 8, parts=[0, 2])
    assert bank.missing(1) == "1 samples"
    with pytest.raises(WireError, match="twice"):
        upload(bank, 1, 8, parts=[2])
    assert bank.reopen(1) == 2 and bank.missing(1) == "3 samples"
    assert values(bank) == [7, 7, 7]
    upload(bank, 1, 9)
    bank.land(1)
    assert values(bank) == [9, 9, 9]


def test_samples_keep_their_numbers_wherever_their_rows_are(bank):
    for client, value in ((0, 1), (1, 2), (2, 3), (1, 4)):
        upload(bank, client, value)
        bank.land(client)
    sample = torch.tensor([4, 5, 0])
    batch = bank.batch(bank.row_of(sample))
    assert batch.label.tolist() == [4, 3, 1]
    assert batch.client.tolist() == [1, 2, 0] == bank.client_of(sample).tolist()
    assert [bank.samples_of(client).tolist() for client in range(3)] == [[0, 1], [2, 3, 4], [5]]
    assert bank.sample_id[batch.row].tolist() == [3, 2, 4]
    assert bank.class_counts().nonzero().tolist() == [[0, 1], [1, 4], [2, 3]]
    assert [b.label.tolist() for b in bank.all_batches(2, clients=[0, 2])] == [[1, 1], [3]]
