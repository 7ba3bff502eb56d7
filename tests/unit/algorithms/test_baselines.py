"""FedAvg, split learning, centralized and standalone training: against plain loops, against each other, and by hand."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from gkt_mpi.errors import ConfigError, WireError
from gkt_mpi.federation.worker import Worker
from gkt_mpi.ranks.rank import run_rank
from gkt_mpi.training.losses import proximal_term
from gkt_mpi.training.trainable import weighted_mean
from gkt_mpi.wire.local import run_local
from tests.conftest import figures, run_in_threads
from tests.unit.algorithms.plain import adam, new_model, shards_of, train_epochs

EVERY = [
    {"algorithm": "fedavg"},
    {"algorithm": "split_learning"},
    {"algorithm": "split_learning", "split__mode": "parallel"},
    {"algorithm": "standalone"},
    {"algorithm": "centralized"},
    {"algorithm": "fedgkt", "participation": 0.5},
    {"client__share": "edge", "client__extract": "shared", "client__model": "[resnet4, resnet8]", "participation": 0.5},
]
MORE = [
    {"algorithm": "fedgkt", "participation": 0.5, "bank__absent": "drop"},
    {"algorithm": "fedavg", "participation": 0.5, "client__proximal_mu": 0.1},
    {"algorithm": "split_learning", "split__mode": "parallel", "participation": 0.5, "client__epochs": 2},
    {"client__share": "stem"},
    {"client__share": "stem", "client__extract": "shared", "bank__absent": "drop", "participation": 0.5},
    {"client__share": "edge", "client__model": "[resnet4, resnet8]", "participation": 0.5},
    {"algorithm": "fedgkt", "client__norm": "group", "server__norm": "group"},
    {"algorithm": "fedgkt", "client__model": "{resnet4: 0.5, resnet8: 0.5}"},
    {"algorithm": "standalone", "client__model": "[resnet4, resnet6]"},
]
SAME = {"client__lr": 0.003, "server__lr": 0.003, "client__batch_size": 8, "server__batch_size": 8}


def losses(records, key):
    return torch.tensor([record[key] for record in records])


def plain_fedavg(config):
    """FedAvg as a plain loop over models: the mean of state dictionaries, by numpy in float64."""
    shards = shards_of(config)
    central = new_model(config)
    models = [copy.deepcopy(central) for _ in shards]
    optimizers = [adam(model, config.client.lr) for model in models]
    found = []
    for round in range(config.rounds):
        total = 0.0
        for k, (shard, model, optimizer) in enumerate(zip(shards, models, optimizers, strict=True)):
            model.load_state_dict(central.state_dict())
            epochs, mu = config.client.epochs, config.client.proximal_mu
            total += train_epochs(model, optimizer, shard, config, k, round, epochs, config.client.batch_size, mu)
        for name, value in central.state_dict().items():  # in float64, or a new deep network amplifies the difference
            parts = [len(s) * m.state_dict()[name].double().numpy() for s, m in zip(shards, models, strict=True)]
            value.copy_(torch.from_numpy(sum(parts) / sum(map(len, shards))))
        found.append(total / sum(map(len, shards)) / config.client.epochs)
    return torch.tensor(found)


@pytest.mark.parametrize("mu", [0.0, 0.5])
def test_fedavg_is_the_mean_of_models_that_a_plain_loop_trains(tiny, mu):
    changes = {"data__partition": "quantity", "data__alpha": 1.0, "client__epochs": 2, "client__proximal_mu": mu}
    config = tiny(algorithm="fedavg", rounds=2, **changes)
    found = losses(run_in_threads(config, 3), "client_train_loss")
    torch.testing.assert_close(found, plain_fedavg(config), rtol=1e-6, atol=0)


def test_centralized_training_is_that_of_a_plain_loop(tiny):
    config = tiny(algorithm="centralized", clients=1, server__epochs=2, **SAME)
    model = new_model(config)
    optimizer, (shard,) = adam(model, 0.003), shards_of(config)
    expected = [train_epochs(model, optimizer, shard, config, 0, round, 2, 8) / len(shard) / 2 for round in range(2)]
    found = losses(run_in_threads(config, 2), "server_train_loss")
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-6, atol=0)


def test_fedavg_of_one_client_is_centralized_training_step_for_step(tiny):
    fedavg = run_in_threads(tiny(algorithm="fedavg", name="a", rounds=3, clients=1, **SAME), 2)
    central = run_in_threads(tiny(algorithm="centralized", name="b", rounds=3, **SAME), 2)
    assert [r["client_train_loss"] for r in fedavg] == [r["server_train_loss"] for r in central]
    assert [r["test_accuracy"] for r in fedavg] == [r["test_accuracy"] for r in central]


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
def test_split_learning_of_one_client_is_training_the_uncut_model(tiny, mode):
    changes = SAME | {"client__epochs": 2, "server__epochs": 2}
    split = run_in_threads(tiny(algorithm="split_learning", name="a", clients=1, split__mode=mode, **changes), 2)
    central = run_in_threads(tiny(algorithm="centralized", name="b", **changes), 2)
    found, expected = (losses(records, "server_train_loss") for records in (split, central))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)


def test_sequential_split_learning_trains_one_model_on_one_client_after_another(tiny):
    config = tiny(algorithm="split_learning", rounds=1, **SAME)
    shards, model = shards_of(config), new_model(config)
    stem, rest = model.cut()
    optimizer = adam(rest, 0.003)
    total = 0.0
    for k, shard in enumerate(shards):
        both = torch.optim.Optimizer([{"params": model.parameters()}], {})  # steps of rest and a client's stem
        own = adam(stem, 0.003)
        both.zero_grad, both.step = model.zero_grad, lambda own=own: (own.step(), optimizer.step())
        total += train_epochs(model, both, shard, config, k, 0, 1, 8)
    found = run_in_threads(config, 3)[0]["server_train_loss"]
    assert found == pytest.approx(total / sum(map(len, shards)), rel=1e-3)


def test_parallel_split_learning_begins_like_fedavg(tiny):
    """Both train one copy of the whole for each client from the same weights: the first round is identical."""
    fedavg = run_in_threads(tiny(algorithm="fedavg", name="a", rounds=1), 3)
    split = run_in_threads(tiny(algorithm="split_learning", name="b", rounds=1, split__mode="parallel"), 3)
    assert split[0]["server_train_loss"] == pytest.approx(fedavg[0]["client_train_loss"], rel=1e-3)


def test_standalone_clients_equal_fedgkt_clients_before_distillation(tiny):
    alone = run_in_threads(tiny(algorithm="standalone", name="a"), 3)
    taught = run_in_threads(tiny(name="b"), 3)
    assert alone[0]["client_train_loss"] == taught[0]["client_train_loss"]
    assert alone[0]["client_test_accuracy"] == taught[0]["client_test_accuracy"] == alone[0]["test_accuracy"]
    assert alone[1]["client_train_loss"] != taught[1]["client_train_loss"]
    assert alone[1]["upload_bytes"] == alone[1]["download_bytes"] == 0


@pytest.mark.parametrize(
    "changes",
    [*EVERY, *(pytest.param(changes, marks=pytest.mark.grid) for changes in MORE)],
    ids=lambda changes: " ".join(map(str, changes.values())),
)
def test_ranks_do_not_change_a_bit_nor_does_an_interruption(tiny, changes):
    whole = figures(run_in_threads(tiny(name="whole", rounds=3, **changes), 3))
    assert whole == figures(run_in_threads(tiny(name="more", rounds=3, **changes), 5))
    run_in_threads(tiny(name="cut", rounds=2, **changes), 2)
    assert figures(run_in_threads(tiny(name="cut", rounds=3, **changes), 3)) == whole


def test_centralized_training_needs_no_worker(tiny):
    config = tiny(algorithm="centralized", name="one")
    assert run_local(1, lambda transport: run_rank(config, transport, (0, 1, True))) == [0]
    assert (Path(config.out) / "one" / "summary.json").exists()


@pytest.mark.parametrize("algorithm", ["fedavg", "split_learning"])
def test_one_network_for_all_refuses_different_ones(tiny, algorithm):
    with pytest.raises(ConfigError, match=f"in {algorithm} all clients train one network, resnet11, .*client.model"):
        tiny(algorithm=algorithm, client__model="[resnet4, resnet8]")


def test_unsigned_codecs_are_refused_for_gradients(tiny, capsys):
    config = tiny(algorithm="split_learning", wire__codec="int8")
    statuses = run_local(2, lambda transport: run_rank(config, transport, (transport.rank, 2, True)))
    assert statuses == [2, 0]
    assert "wire.codec int8" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
def test_a_client_whose_batch_is_refused_is_dropped_and_does_not_hang(tiny, monkeypatch, mode):
    """Its second batch of the second round is not finite; the third round has all clients again."""

    def exchange(self, client, round, first, row, feature, original=Worker.exchange):
        if (client.id, round, first) == (1, 1, 8):
            feature = feature * float("nan")
        return original(self, client, round, first, row, feature)

    monkeypatch.setattr(Worker, "exchange", exchange)
    changes = {"algorithm": "split_learning", "split__mode": mode, "rounds": 3}
    records = run_in_threads(tiny(name="drop", faults__on_bad_client="drop", **changes), 3)
    assert [record["dropped_clients"] for record in records] == [0, 1, 0]
    assert [record["participants"] for record in records] == [4, 3, 4]
    assert all(np.isfinite(record["server_train_loss"]) for record in records)
    with pytest.raises(WireError, match="client 1 in round 2 sent features that are not finite.*on_bad_client drop"):
        run_in_threads(tiny(name="stop", **changes), 3)


def test_participants_are_drawn_anew_each_round_and_bytes_are_theirs(tiny):
    records = run_in_threads(tiny(algorithm="fedavg", clients=6, participation=0.5, rounds=4), 3)
    everybody = run_in_threads(tiny(algorithm="fedavg", clients=6, rounds=1, name="all"), 3)
    assert {record["participants"] for record in records} == {3}
    assert {record["upload_bytes"] for record in records} == {everybody[0]["upload_bytes"] // 2}
    assert len({record["client_train_loss"] for record in records}) == 4


def test_the_bank_keeps_or_drops_what_absent_clients_have_sent(tiny):
    keep, drop = (
        run_in_threads(tiny(name=absent, participation=0.5, rounds=3, bank__absent=absent, data__augment="none"), 3)
        for absent in ("keep", "drop")
    )
    assert keep[0]["server_train_loss"] == drop[0]["server_train_loss"]  # nobody that has sent anything is absent
    assert keep[2]["server_train_loss"] != drop[2]["server_train_loss"]
    assert keep[2]["upload_bytes"] == drop[2]["upload_bytes"]


def test_the_weighted_mean_is_numpys():
    parts = [torch.randn(1000, generator=torch.Generator().manual_seed(k)) * 10.0**k for k in range(4)]
    found = weighted_mean([part.view(torch.uint8) for part in parts], [5, 1, 20, 3]).view(torch.float32)
    expected = np.average(np.stack([part.double().numpy() for part in parts]), axis=0, weights=[5, 1, 20, 3])
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-6)
    alone = weighted_mean([parts[0].view(torch.uint8)], [7]).view(torch.float32)
    assert torch.equal(alone, parts[0])  # exactly


def test_the_proximal_term_and_its_gradient_are_those_computed_by_hand():
    weights = [torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([[3.0]], requires_grad=True)]
    sent = [torch.tensor([0.0, 4.0]), torch.tensor([[1.0]])]
    loss = proximal_term(weights, sent, 0.5)
    loss.backward()
    assert loss.item() == 0.25 * (1 + 4 + 4)
    assert weights[0].grad.tolist() == [0.5, -1.0] and weights[1].grad.tolist() == [[1.0]]
