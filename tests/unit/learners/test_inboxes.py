"""Refusals of FedAvg's and split learning's inboxes, and that discarded uploads leave no trace."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gkt_mpi.algorithms.split_learning import train_batch
from gkt_mpi.errors import GktError, WireError
from gkt_mpi.federation.client import edge_names
from gkt_mpi.learners.global_model import AveragedModel
from gkt_mpi.learners.site import Images, LearnerConfig, Machine, ServerConfig, Site, SplitConfig
from gkt_mpi.learners.split_model import SplitModel, Turn
from gkt_mpi.log.timeline import Timeline
from gkt_mpi.placement import PlacementConfig, place
from gkt_mpi.training.compute import ComputeConfig
from gkt_mpi.wire.codec import Codec, WireConfig
from gkt_mpi.wire.header import Kind
from gkt_mpi.wire.messages import FeatureBlock, Gradient, ModelState, to_wire

SHARDS = [np.arange(0, 7), np.arange(7, 19)]
CODEC = Codec("float32", (8, 8, 16))


@pytest.fixture
def site():
    """The parts of a site that two clients' inboxes need."""
    from gkt_mpi.federation.client import ClientConfig

    unread = dict.fromkeys(("distill", "bank", "evaluate", "async_"))
    config = LearnerConfig(
        **unread,
        seed=0,
        rounds=2,
        clock="virtual",
        client=ClientConfig(batch_size=4, epochs=2),
        server=ServerConfig(),
        split=SplitConfig(mode="parallel"),
        wire=WireConfig(),
        compute=ComputeConfig(precision="float32", compile=False),
    )
    images = Images(SimpleNamespace(classes=list("abcdefghij"), image_shape=(8, 8, 3)), None, SHARDS, None)
    watch = SimpleNamespace(transport=SimpleNamespace(timeline=Timeline()))
    machine = Machine(place(PlacementConfig(device="cpu", threads=1), 0, 1, True), watch, None)
    return Site(config, images, machine, edges=[], codec=CODEC, prices=None, rounds_left=2)


def weights(model, fill=None):
    state = model.weights if isinstance(model, AveragedModel) else model.stem_weights
    return state.clone() if fill is None else torch.full((len(state) // 4,), fill).view(torch.uint8)


def test_a_repeated_or_non_finite_model_is_refused_and_not_in_the_mean(site):
    average = AveragedModel(site)
    first, second = ModelState(0, 1, weights(average, 2.0)), ModelState(1, 1, weights(average, 5.0))
    assert (average.inbox.claim(first), average.inbox.claim(second)) == (7, 12)
    with pytest.raises(WireError, match="client 0 in round 2 sent a second model") as caught:
        average.inbox.claim(first)
    assert caught.value.client == 0
    average.inbox.check(first)
    broken = weights(average, 5.0)
    broken.view(torch.float32)[17] = float("inf")
    assert average.inbox.reopen(1) == 12 and average.inbox.missing(1) == "its model"
    average.inbox.claim(replace(second, weights=broken))
    with pytest.raises(WireError, match="client 1 in round 2 sent weights that are not finite"):
        average.inbox.check(replace(second, weights=broken))
    average.inbox.claim(second)
    average.update()
    assert torch.equal(average.weights.view(torch.float32), torch.full((len(broken) // 4,), (7 * 2 + 12 * 5) / 19))
    assert average.inbox.missing(0)  # the next round begins empty


def batch(client, first, ids, fill=0.5, labels=1):
    ids = torch.tensor(ids)
    feature = CODEC.encode(torch.full((len(ids), 16, 8, 8), fill))
    label = torch.full((len(ids),), labels, dtype=torch.int16)
    return FeatureBlock(client, 0, first, ids, label, torch.empty(len(ids), 0), feature, CODEC.shape, CODEC.code_id)


class Served:
    """A turn of both clients, and the messages sent to them."""

    def __init__(self, site):
        self.model, self.sent = SplitModel(site), []
        self.turn = Turn(self.model, [0, 1], train_batch, lambda client, message: self.sent.append(message))

    def take(self, message):
        header = to_wire(message)[0]
        if header.kind == Kind.BLOCK:
            self.turn.accepts().admit(header, message.sample_id, message.label, message.logit)
        return self.turn.claim(message)

    def finish(self, client):
        """Let a client complete its turn."""
        for _ in range(2):
            for first in range(0, len(SHARDS[client]), 4):
                self.take(batch(client, first, SHARDS[client][first : first + 4], fill=0.1 * client))
        self.take(ModelState(client, 0, weights(self.model)))


def test_the_gradient_is_that_of_the_loss_with_respect_to_the_features(site):
    served = Served(site)
    _, rest = SplitModel(site).whole.cut()
    rest.train()
    feature = torch.full((4, 16, 8, 8), 0.5, requires_grad=True)
    F.cross_entropy(rest(feature), torch.ones(4, dtype=torch.int64)).backward()
    assert served.take(batch(0, 0, [0, 1, 2, 3])) == 4
    (answer,) = served.sent
    assert isinstance(answer, Gradient) and (answer.client, answer.round, answer.first) == (0, 0, 0)
    torch.testing.assert_close(CODEC.decode(answer.gradient), feature.grad, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (batch(0, 4, [4, 5, 6]), "a batch out of order, from sample 4 on"),
        (batch(0, 0, [0, 1, 2, 9]), "differ from its shard"),
        (batch(0, 0, [0, 1, 1, 2]), "differ from its shard"),
        (batch(0, 0, [0, 1], labels=10), r"labels outside 0\.\.9"),
        (batch(0, 0, [0, 1], labels=-1), r"labels outside 0\.\.9"),
        (batch(0, 0, [0, 1], fill=float("nan")), "features that are not finite"),
    ],
)
def test_an_impossible_batch_is_refused_and_changes_nothing(site, wrong, why):
    served = Served(site)
    before = served.model.server_part.memory.clone()
    with pytest.raises(WireError, match=f"client 0 in round 1 sent .*{why}"):
        served.take(wrong)
    assert torch.equal(served.model.server_part.memory, before) and not served.sent
    assert served.turn.missing(0) == "14 samples"


def test_more_epochs_than_agreed_are_refused(site):
    served = Served(site)
    served.finish(0)
    assert served.turn.missing(0) == ""
    with pytest.raises(WireError, match="out of order"):
        served.take(batch(0, 0, [0, 1, 2, 3]))
    with pytest.raises(WireError, match="a second stem"):
        served.take(ModelState(0, 0, weights(served.model)))


def test_neither_the_order_of_batches_nor_a_discarded_one_changes_the_result(site):
    one, other = Served(site), Served(site)
    for served in (one, other):
        served.model.begin_round(0)
    one.finish(0)
    one.finish(1)
    other.finish(1)
    other.take(batch(0, 0, [3, 2, 1, 0], fill=2.0))
    other.take(batch(0, 4, [4, 5, 6], fill=2.0))
    assert other.turn.reopen(0) == 7
    other.finish(0)
    for served in (one, other):
        served.turn.end()
    assert torch.equal(one.model.server_part.memory, other.model.server_part.memory)
    assert one.model.end_round() == other.model.end_round()


def test_a_client_with_an_incomplete_turn_is_not_in_the_mean(site):
    both, alone = Served(site), Served(site)
    for served in (both, alone):
        served.finish(1)
    both.take(batch(0, 0, [0, 1, 2, 3]))
    both.turn.reopen(0)
    for served in (both, alone):
        served.turn.end()
    assert torch.equal(both.model.server_part.memory, alone.model.server_part.memory)


def test_a_diverging_server_is_reported_at_once(site):
    served = Served(site)
    with torch.no_grad():
        served.model.server_part.weights.view(torch.float32).fill_(float("inf"))
    served.turn = Turn(served.model, [0], train_batch, lambda client, message: None)
    with pytest.raises(GktError, match=r"the server's training has diverged .* lower server\.lr"):
        served.take(batch(0, 0, [0, 1]))


def test_edge_models_are_assigned_in_turn_or_by_shares():
    assert edge_names("resnet8", 3) == ["resnet8"] * 3
    assert edge_names(["resnet4", "resnet6"], 5) == ["resnet4", "resnet6", "resnet4", "resnet6", "resnet4"]
    assert edge_names({"resnet4": 0.5, "resnet8": 0.5}, 5) == ["resnet4"] * 2 + ["resnet8"] * 3
    for num in range(1, 40):
        found = edge_names({"resnet4": 1 / 3, "resnet6": 1 / 3, "resnet8": 1 / 3}, num)
        counts = [found.count(name) for name in ("resnet4", "resnet6", "resnet8")]
        assert sum(counts) == num and max(counts) - min(counts) <= 1
