import numpy as np
import pytest
import torch

from gkt_mpi.data.augment import Augmentation, ImagePipeline
from gkt_mpi.data.data_config import DataConfig
from gkt_mpi.data.datasets import prepare
from gkt_mpi.data.shard import Shard
from gkt_mpi.data.synthetic import SyntheticConfig
from gkt_mpi.errors import ConfigError, WireError
from gkt_mpi.federation.client import Client, ClientConfig, build_edge
from gkt_mpi.seeding import torch_generator

CPU = torch.device("cpu")


def make_shard(num=10, size=8, classes=10, first_id=0):
    generator = torch_generator(0, "shard", num)
    pipeline = ImagePipeline(torch.full((1,), 0.5), torch.full((1,), 0.25), Augmentation(crop_padding=1))
    image = torch.randint(0, 256, (num, size, size, 1), dtype=torch.uint8, generator=generator)
    label = torch.randint(0, classes, (num,), generator=generator)
    ids = torch.randperm(1000, generator=generator)[:num].sort().values + first_id
    return Shard(ids, label, image, pipeline)


def make_client(shard=None, **changes):
    config = ClientConfig(**({"batch_size": 4} | changes))
    edge = build_edge(config, (8, 8, 1), 10, 0, CPU, "resnet8")
    return Client(0, shard or make_shard(), edge, config, seed=0), edge


def train(client, round=0):
    client.model.train()
    for _, image, label in client.batches(round, 0):
        client.step(torch.nn.functional.cross_entropy(client.model(image)[1], label))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_state_and_load_carry_everything_that_training_depends_on(optimizer):
    client, edge = make_client(optimizer=optimizer)
    fresh = edge.state()
    train(client)
    middle = edge.state()
    train(client, 1)
    after = edge.state()
    assert len({bytes(s.numpy()) for s in (fresh, middle, after)}) == 3
    _, other = make_client(optimizer=optimizer)
    other.load(middle)
    assert torch.equal(other.state(), middle)
    train(Client(0, client.shard, other, client.config, 0), 1)
    assert torch.equal(other.state(), after)


def test_a_state_has_one_size_from_the_start_of_about_170_kb():
    _, edge = make_client()
    assert len(edge.state()) == edge.state_bytes
    assert 165_000 < edge.state_bytes < 175_000


def test_a_client_learns_the_synthetic_classes(tmp_path):
    made = SyntheticConfig(train=1000, test=300, size=8)
    file = prepare(DataConfig(name="synthetic", dir=str(tmp_path), synthetic=made), lambda done, total: None)
    pipeline = ImagePipeline(torch.from_numpy(file.mean), torch.from_numpy(file.std), Augmentation())
    config = ClientConfig(lr=0.003, batch_size=32)
    edge = build_edge(config, (8, 8, 3), 10, 0, CPU, "resnet8")
    client = Client(0, Shard.load(file, "train", np.arange(1000), pipeline, CPU), edge, config, 0)
    for round in range(3):
        train(client, round)
    edge.model.eval()
    test = Shard.load(file, "test", np.arange(300), pipeline, CPU)
    image, label = next(test.plain_batches(slice(0, 300), 300))
    assert float((edge.model(image)[1].argmax(1) == label).float().mean()) > 0.8  # chance is 0.1


def test_every_client_begins_with_the_same_weights_and_a_seed_of_its_own_run():
    states = [build_edge(ClientConfig(), (8, 8, 1), 10, seed, CPU, "resnet8").state() for seed in (0, 0, 1)]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_logits_are_aligned_by_sample_id_whatever_their_order():
    client, _ = make_client()
    ids = client.shard.sample_id
    logit = ids[:, None].float() * torch.ones(10) + torch.arange(10) / 100  # each row identifies its sample
    shuffle = torch.randperm(len(ids), generator=torch_generator(1, "shuffle"))
    assert torch.equal(client.align(ids[shuffle], logit[shuffle]), logit)
    assert client.align(ids[:0], logit[:0]) is None


@pytest.mark.parametrize("change", ["missing", "unknown", "twice"])
def test_logits_of_other_samples_are_refused(change):
    client, _ = make_client()
    ids = client.shard.sample_id.clone()
    if change == "missing":
        ids = ids[:-1]
    else:
        ids[0] = 5000 if change == "unknown" else ids[1]
    with pytest.raises(WireError, match="client 0"):
        client.align(ids, torch.zeros(len(ids), 10))


@pytest.mark.parametrize(("num", "batch_size"), [(10, 256), (10, 3), (1, 4), (12, 4)])
def test_an_epoch_visits_every_sample_once_the_last_partial_batch_too(num, batch_size):
    client, _ = make_client(make_shard(num), batch_size=batch_size)
    batches = list(client.batches(0, 0))
    rows = torch.cat([row for row, _, _ in batches])
    assert rows.sort().values.tolist() == list(range(num))
    assert [len(row) for row, _, _ in batches[:-1]] == [batch_size] * (len(batches) - 1)
    for row, image, label in batches:
        assert len(row) == len(image) == len(label)
        assert torch.equal(label, client.shard.label[row])


def test_order_and_views_differ_by_client_round_and_epoch_and_repeat_for_the_same():
    shard = make_shard(16)

    def first_batch(client_id, round, epoch):
        client, edge = make_client(shard)
        row, image, _ = next(iter(Client(client_id, shard, edge, client.config, 0).batches(round, epoch)))
        return tuple(row.tolist()), image

    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert len({first_batch(*key)[0] for key in keys}) == len(keys)
    assert torch.equal(first_batch(*keys[0])[1], first_batch(*keys[0])[1])


@pytest.mark.parametrize("block_rows", [1, 3, 10, 100])
def test_the_upload_goes_through_the_shard_in_stored_order(block_rows):
    client, _ = make_client()
    rows = [row for row, _ in client.upload_views(0, block_rows)]
    covered = np.concatenate([np.arange(10)[row] for row in rows])
    assert covered.tolist() == list(range(10))
    assert max(row.stop - row.start for row in rows) == min(block_rows, 10)


@pytest.mark.parametrize("wrong", [{"epochs": -1}, {"lr": 0}, {"weight_decay": -1}, {"batch_size": 0}])
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"client.{next(iter(wrong))}"):
        ClientConfig(**wrong)
