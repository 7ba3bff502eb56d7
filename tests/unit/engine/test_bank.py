import numpy as np
import pytest
import torch

from gkt_mpi.engine.bank import Bank
from gkt_mpi.errors import WireError
from gkt_mpi.seeding import torch_generator
from gkt_mpi.wire.codec import Codec
from gkt_mpi.wire.messages import FeatureBlock, Header, Kind

SHARDS = [np.array([3, 5, 9]), np.array([0, 1, 2, 4, 6]), np.array([7, 8])]
CODEC = Codec("float32", (2, 2, 4))
CPU = torch.device("cpu")


def feature_of(sample_id):
    """A feature that tells which sample it belongs to: (n, 4, 2, 2)."""
    return (sample_id.float()[:, None, None, None] + torch.arange(16).reshape(4, 2, 2) / 16).contiguous()


def block(client, first, count, **changes):
    ids = torch.from_numpy(SHARDS[client])[first : first + count]
    values = {
        "client": client,
        "round": 0,
        "first": first,
        "sample_id": ids,
        "label": (ids % 10).to(torch.int16),
        "logit": ids[:, None].float().repeat(1, 10),
        "feature": CODEC.encode(feature_of(ids)),
        "shape": CODEC.shape,
        "codec": CODEC.code_id,
    }
    return FeatureBlock(**(values | changes))


def deliver(bank, message):
    header = Header(Kind.BLOCK, message.client, first=message.first, num_samples=len(message.sample_id))
    bank.memory(header).copy_(message.feature)
    bank.accept(message)


@pytest.fixture
def bank():
    return Bank(SHARDS, 10, CODEC, CPU)


@pytest.fixture
def full(bank):
    for client, first, count in [(1, 2, 3), (2, 0, 2), (0, 0, 3), (1, 0, 2)]:  # any order of arrival
        deliver(bank, block(client, first, count))
    return bank


def check_batch(bank, batch):
    ids = bank.sample_id[batch.row]
    assert torch.equal(batch.feature, feature_of(ids))
    assert torch.equal(batch.label, ids % 10)
    assert torch.equal(batch.client_logit, ids[:, None].float().repeat(1, 10))


@pytest.mark.parametrize("order", ["mixed", "by_client"])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_an_epoch_has_every_sample_once_with_its_own_feature_label_and_logit(full, order, batch_size):
    batches = list(full.train_batches(order, batch_size, torch_generator(0, "epoch")))
    for batch in batches:
        check_batch(full, batch)
    rows = torch.cat([batch.row for batch in batches])
    assert rows.sort().values.tolist() == list(range(10))


def test_by_client_never_mixes_clients_and_keeps_their_order(full):
    owners = [
        [client for client in range(3) for row in batch.row.tolist() if row in range(*full.rows_of(client).indices(10))]
        for batch in full.train_batches("by_client", 2, torch_generator(0, "epoch"))
    ]
    assert all(len(set(batch)) == 1 for batch in owners)
    assert [batch[0] for batch in owners] == [0, 0, 1, 1, 1, 2]


def test_mixed_batches_cross_clients_and_the_generator_decides(full):
    def rows(seed):
        return torch.cat([b.row for b in full.train_batches("mixed", 4, torch_generator(seed, "epoch"))]).tolist()

    assert rows(0) == rows(0) != rows(1)


def test_all_batches_go_in_order(full):
    rows = [batch.row.tolist() for batch in full.all_batches(4)]
    assert rows == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_client_is_complete_when_all_its_samples_have_arrived(bank):
    deliver(bank, block(1, 0, 2))
    with pytest.raises(WireError, match="client 1 .* 3 samples missing"):
        bank.require_complete(1, 0)
    deliver(bank, block(1, 2, 3))
    bank.require_complete(1, 0)
    bank.open_round()
    with pytest.raises(WireError, match="5 samples missing"):
        bank.require_complete(1, 1)


def test_rows_sent_twice_are_refused_before_they_are_received(bank):
    deliver(bank, block(1, 0, 2))
    with pytest.raises(WireError, match="twice in round 0"):
        bank.memory(Header(Kind.BLOCK, 1, first=1, num_samples=2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_id": torch.tensor([3, 9])}, "sample ids"),
        ({"sample_id": torch.tensor([0, 1])}, "sample ids"),
        ({"label": torch.tensor([10, 0], dtype=torch.int16)}, r"labels outside 0\.\.9"),
        ({"label": torch.tensor([0, -1], dtype=torch.int16)}, r"labels outside 0\.\.9"),
        ({"logit": torch.full((2, 10), float("nan"))}, "logits that are not finite"),
        ({"feature": CODEC.encode(torch.full((2, 4, 2, 2), float("inf")))}, "features that are not finite"),
    ],
)
def test_an_invalid_upload_is_refused_by_client_and_round(bank, changes, message):
    with pytest.raises(WireError, match=f"client 0 in round 0 sent {message}"):
        deliver(bank, block(0, 0, 2, **changes))
    with pytest.raises(WireError, match="3 samples missing"):
        bank.require_complete(0, 0)
