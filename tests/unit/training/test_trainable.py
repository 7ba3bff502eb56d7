"""A user's own model is trained and saved: every number of it, including integers, is restored exactly."""

from typing import ClassVar

import pytest
import torch
from torch import nn

from gkt_mpi.errors import ConfigError
from gkt_mpi.federation.client import ClientConfig
from gkt_mpi.training.trainable import Edge, Trainable, weights_of
from tests.conftest import figures, run_in_threads

CONFIG = ClientConfig(lr=0.01)


class Own(nn.Module):
    """A network with all state of torch's BatchNorm, and a buffer of each kind that is not float32."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        # Without momentum, the running statistics are means over all batches: the number of batches matters.
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=None), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(4 * 36, 5)
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("table", torch.tensor([[-1, 2**31 - 1], [0, -(2**31)]], dtype=torch.int32))
        self.register_buffer("large", torch.tensor(-(2**63)))
        self.register_buffer("empty", torch.empty(0, dtype=torch.int64))
        self.register_buffer("bytes", torch.arange(256, dtype=torch.uint8))

    def forward(self, image):
        return self.head(self.stem(image))


def train(model, optimizer, seed, steps=3):
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(steps):
        image = torch.randn(8, 3, 8, 8, generator=generator)
        optimizer.step(nn.functional.cross_entropy(model(image), torch.arange(8) % 5))


def values(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("weights_travel", [False, True])
def test_a_state_brings_every_number_of_a_model_back_and_is_of_finite_numbers(weights_travel):
    edge = Edge(Own(), CONFIG, weights_travel)
    train(edge.model, edge.optimizer, 1)
    before, state, weights = values(edge.model), edge.state(), edge.weights.clone()
    assert state.dtype == torch.uint8 and len(state) == edge.state_bytes
    assert (state.view(torch.float32).abs() <= 1e10).all()  # the server checks this in a client's report
    with torch.no_grad():
        for buffer in (*edge.model.parameters(), *edge.model.buffers()):
            buffer.zero_()
    edge.load(state)
    if weights_travel:
        edge.weights.copy_(weights)
    assert equal(values(edge.model), before)
    assert int(edge.model.stem[1].num_batches_tracked) == 3


def test_two_clients_that_take_turns_in_one_edge_train_as_they_would_alone():
    edge = Edge(Own(), CONFIG)
    states = [edge.state(), edge.state()]
    alone = [Trainable(Own(), CONFIG) for _ in states]
    for turn in range(3):
        for client in range(2):
            edge.load(states[client])
            train(edge.model, edge.optimizer, 10 * turn + client, steps=1 + client)
            states[client] = edge.state()
            train(alone[client].model, alone[client].optimizer, 10 * turn + client, steps=1 + client)
    for client in range(2):
        edge.load(states[client])
        assert equal(values(edge.model), values(alone[client].model))
        assert int(edge.model.stem[1].num_batches_tracked) == 3 * (1 + client)


def test_what_clients_share_are_weights_and_statistics_and_no_counts():
    model = Own()
    giver, taker = Edge(model, CONFIG, shared=[model.stem]), Edge(other := Own(1), CONFIG, shared=[other.stem])
    train(giver.model, giver.optimizer, 1)
    shared = giver.shared_weights
    assert len(shared) == giver.travelling_bytes == 4 * (4 * 27 + 4 + 4 + 4 + 4 + 4)
    before = values(other)
    taker.adopt(shared)
    for name, value in values(other).items():
        is_shared = name.startswith("stem") and not name.endswith("num_batches_tracked")
        assert torch.equal(value, values(model)[name] if is_shared else before[name]), name


def test_a_mean_of_states_is_of_the_weights_and_has_the_firsts_counts():
    """The mean is compared with torch's own arithmetic in float64."""
    trained = Trainable(Own(), CONFIG)
    states, kept = [], []
    for steps in (2, 5):
        train(trained.model, trained.optimizer, steps, steps)
        states.append(trained.state())
        kept.append(values(trained.model))
    trained.load(trained.mean(states, [1, 3]))
    found = values(trained.model)
    for name, value in found.items():
        if value.dtype == torch.float32:
            assert torch.equal(value, ((kept[0][name].double() + 3 * kept[1][name].double()) / 4).float())
        else:
            assert torch.equal(value, kept[0][name])
    assert int(found["stem.1.num_batches_tracked"]) == 2


def test_weights_are_the_parameters_and_the_statistics():
    names = ["weight", "bias", "running_mean", "running_var"]
    norm = nn.BatchNorm2d(3)
    assert [id(tensor) for tensor in weights_of(norm)] == [id(getattr(norm, name)) for name in names]


@pytest.mark.parametrize("where", ["parameter", "buffer"])
def test_numbers_of_another_precision_are_refused_by_name(where):
    model = Own()
    if where == "parameter":
        model.head.double()
    else:
        model.head.register_buffer("scale", torch.ones(2, dtype=torch.float16))
    expected = {"parameter": r"head\.weight .* float64", "buffer": r"head\.scale .* float16"}[where]
    with pytest.raises(ConfigError, match=expected + ".*expected float32"):
        Trainable(model, CONFIG)


class CountingNorm(nn.BatchNorm2d):
    """As torch creates it: this package's networks have no count."""

    made: ClassVar[list["CountingNorm"]] = []

    def __init__(self, channels):
        super().__init__(channels)
        self.made.append(self)

    def __setattr__(self, name, value):
        if name != "num_batches_tracked" or value is not None:
            super().__setattr__(name, value)


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm": "fedgkt", "client__share": "edge", "client__extract": "shared"},
        {"algorithm": "fedavg"},
        {"algorithm": "centralized"},
        {"algorithm": "split_learning", "split__mode": "parallel"},
    ],
    ids=lambda changes: changes["algorithm"],
)
def test_networks_that_count_their_batches_give_the_same_results(tiny, monkeypatch, changes):
    """The count has no effect with a fixed momentum; but it is in every state and checkpoint."""
    without = figures(run_in_threads(tiny(name="without", **changes), 3))
    monkeypatch.setattr(nn, "BatchNorm2d", CountingNorm)
    monkeypatch.setattr(CountingNorm, "made", [])
    run_in_threads(tiny(name="counting", **changes | {"rounds": 1}), 3)
    counting = figures(run_in_threads(tiny(name="counting", **changes), 3))  # resumed from the checkpoint
    assert max(int(norm.num_batches_tracked) for norm in CountingNorm.made) > 0
    for one, other in zip(without, counting, strict=True):
        assert {key for key in one if one[key] != other[key]} <= {"simulation_bytes"}
