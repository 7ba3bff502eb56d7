import subprocess

import h5py
import numpy as np
import pytest
import torch

from gkt_mpi.errors import ConfigError, WireError
from gkt_mpi.learners.bank import Bank
from gkt_mpi.learners.feature_rows import BankConfig, FeatureRows
from gkt_mpi.seeding import torch_generator
from gkt_mpi.wire.codec import Codec
from gkt_mpi.wire.header import Header, Kind
from gkt_mpi.wire.messages import FeatureBlock

SHARDS = [np.array([3, 5, 9]), np.array([0, 1, 2, 4, 6]), np.array([7, 8])]
CODEC = Codec("float32", (2, 2, 4))
CPU = torch.device("cpu")


def feature_of(sample_id):
    """A feature that identifies its sample: (n, 4, 2, 2)."""
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
    bank.admit(header, message.sample_id, message.label, message.logit).copy_(message.feature)
    bank.claim(message)
    bank.check(message)


@pytest.fixture(params=[None, 0.0005, 0], ids=["in memory", "in both", "in a file"])
def bank(request, tmp_path):
    """A bank of 640 bytes of features; 0.0005 MiB hold those of the first two clients."""
    made = Bank(SHARDS, 10, CODEC, CPU, BankConfig(request.param), tmp_path)
    assert made.feature.num_in_memory == {None: 10, 0.0005: 8, 0: 0}[request.param]
    assert (tmp_path / "feature_bank.h5").exists() == (request.param is not None)
    yield made
    made.close()
    assert list(tmp_path.iterdir()) == []


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
    assert all(sample_id in SHARDS[client] for client, sample_id in zip(batch.client, ids, strict=True))


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


def test_classes_are_counted_by_client_and_of_what_has_arrived(bank):
    deliver(bank, block(1, 0, 2))
    deliver(bank, block(2, 0, 2))
    expected = torch.zeros(3, 10, dtype=torch.int64)
    for client in (1, 2):
        for sample_id in SHARDS[client][:2]:
            expected[client, sample_id % 10] += 1
    assert torch.equal(bank.class_counts(), expected)


def test_a_client_is_complete_when_all_its_samples_have_arrived(bank):
    deliver(bank, block(1, 0, 2))
    assert bank.num_missing(1) == 3
    deliver(bank, block(1, 2, 3))
    assert bank.num_missing(1) == 0
    bank.open_round()
    assert bank.num_missing(1) == 5


def test_rows_sent_twice_are_refused_before_they_are_received(bank):
    deliver(bank, block(1, 0, 2))
    again = block(1, 1, 2)
    with pytest.raises(WireError, match="client 1 in round 1 sent 2 rows from 1 on twice"):
        bank.admit(Header(Kind.BLOCK, 1, first=1, num_samples=2), again.sample_id, again.label, again.logit)


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
    with pytest.raises(WireError, match=f"client 0 in round 1 sent {message}"):
        deliver(bank, block(0, 0, 2, **changes))
    assert bank.num_missing(0) == 3


def test_a_file_for_several_runs_has_a_name_that_is_the_runs_own(tmp_path):
    config = BankConfig(0, str(tmp_path / "fast disk"))
    banks = [Bank(SHARDS, 10, CODEC, CPU, config, tmp_path / out / "run") for out in ("a", "b")]
    files = {bank.feature.path for bank in banks}
    assert len(files) == 2
    assert all(file.parent == tmp_path / "fast disk" and file.exists() for file in files)
    for bank in banks:
        bank.close()
    assert list((tmp_path / "fast disk").iterdir()) == []


def test_the_file_is_an_hdf5_file_with_one_contiguous_data_set(tmp_path):
    bank = Bank(SHARDS, 10, CODEC, CPU, BankConfig(0), tmp_path)
    for client in range(3):
        deliver(bank, block(client, 0, len(SHARDS[client])))
    with h5py.File(tmp_path / "feature_bank.h5") as file:
        assert file["feature"].chunks is None
        assert np.array_equal(file["feature"][:], CODEC.encode(feature_of(bank.sample_id)).numpy())


@pytest.mark.parametrize("kib", [4, 20, 1024])
def test_a_full_disk_is_a_clear_error_before_anything_is_sent_and_leaves_nothing(tmp_path, kib):
    """On a real file system of this size, if this user may create one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "none", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("this user cannot mount a small file system")
    try:
        message = (
            r"needs 2,097,152 bytes in .*feature_bank-run-\w{8}\.h5, but: no space left on device; .*bank.spill_dir"
        )
        with pytest.raises(ConfigError, match=message):
            FeatureRows([2**14], 128, BankConfig(0, str(disk)), tmp_path / "run")
        assert list(disk.iterdir()) == []
        if kib == 1024:
            FeatureRows([2**12], 128, BankConfig(0, str(disk)), tmp_path / "run").close()  # this much fits
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_file_that_cannot_be_created_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConfigError, match=r"needs 128 bytes in .*, but: (file exists|not a directory)"):
        FeatureRows([1], 128, BankConfig(0, str(tmp_path / "file")), tmp_path)
    with pytest.raises(ConfigError, match="needs 1,152,921,504,606,846,976 bytes in .*, but: file too large"):
        FeatureRows([2**53], 128, BankConfig(0), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("order", ["mixed", "by_client"])
def test_reopened_rows_are_in_no_batch_until_they_arrive_again(full, order):
    assert full.reopen(1) == 5
    assert (full.num_arrived, full.num_missing(1)) == (5, 5)
    for batches in (full.train_batches(order, 3, torch_generator(0, "epoch")), full.all_batches(3)):
        rows = torch.cat([batch.row for batch in batches])
        assert rows.sort().values.tolist() == [0, 1, 2, 8, 9]
    deliver(full, block(1, 0, 5))
    assert torch.cat([batch.row for batch in full.all_batches(3)]).tolist() == list(range(10))
