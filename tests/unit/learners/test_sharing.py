"""The mean of shared weights: by hand, with edge models of several sizes, and with an unusable client."""

import pytest
import torch

from gkt_mpi.errors import ConfigError, WireError
from gkt_mpi.federation.client import Client, ClientConfig, build_edge
from gkt_mpi.learners.sharing import SharedEdges
from gkt_mpi.wire.messages import ModelState
from tests.conftest import run_in_threads

CPU = torch.device("cpu")
STEM = 4 * (464 + 2 * 16)  # bytes: parameters, means and variances


def edges(*names, share="edge"):
    made = {name: build_edge(ClientConfig(share=share), (8, 8, 3), 10, 0, CPU, name) for name in set(names)}
    return [made[name] for name in names]


def filled(edge, value):
    return torch.full((edge.travelling_bytes // 4,), float(value)).view(torch.uint8)


def test_stems_are_averaged_over_all_and_heads_by_model():
    """Clients 0 and 2 have the same edge model; 1, 2 and 3 take part with 10, 20 and 70 images."""
    all_edges = edges("resnet8", "resnet4", "resnet8", "resnet4")
    sharing = SharedEdges(all_edges, [50, 10, 20, 70])
    before = sharing.mean(0)
    for client in (3, 1, 2):
        sharing.inbox.claim(ModelState(client, 0, filled(all_edges[client], client)))
    assert sharing.update() == [1, 2, 3]
    stem = torch.full((STEM // 4,), (10 * 1 + 20 * 2 + 70 * 3) / 100)
    for client, head in ((0, 2.0), (1, (10 * 1 + 70 * 3) / 80), (2, 2.0), (3, (10 * 1 + 70 * 3) / 80)):
        mean = sharing.mean(client).view(torch.float32)
        assert torch.equal(mean[: len(stem)], stem)
        assert torch.equal(mean[len(stem) :], torch.full_like(mean[len(stem) :], head))
        assert torch.equal(sharing.news(client), sharing.mean(client))
    assert not torch.equal(sharing.mean(0), before)


def test_the_head_of_an_absent_kind_of_model_is_unchanged():
    all_edges = edges("resnet8", "resnet4")
    sharing = SharedEdges(all_edges, [5, 5])
    head = sharing.mean(1)[STEM:]
    sharing.inbox.claim(ModelState(0, 0, filled(all_edges[0], 7)))
    sharing.update()
    assert torch.equal(sharing.mean(1)[STEM:], head)
    assert torch.equal(sharing.mean(1)[:STEM].view(torch.float32), torch.full((STEM // 4,), 7.0))


def test_a_client_that_has_the_mean_is_not_sent_it_again():
    all_edges = edges("resnet8", "resnet8", "resnet8", share="stem")
    sharing = SharedEdges(all_edges, [1, 1, 1])
    assert all(len(sharing.news(client)) == 0 for client in range(3))  # all start with the same weights
    for client in (0, 1):
        sharing.inbox.claim(ModelState(client, 4, filled(all_edges[client], client)))
    assert [answer.client for answer in sharing.answers(4)] == [0, 1]
    assert [len(sharing.news(client)) for client in range(3)] == [0, 0, STEM]
    sharing.take_back(1)
    assert [len(sharing.news(client)) for client in range(3)] == [0, STEM, STEM]
    other = SharedEdges(all_edges, [1, 1, 1])
    other.load(sharing.state())
    assert torch.equal(other.mean(2), sharing.mean(2))
    assert [len(other.news(client)) for client in range(3)] == [0, STEM, STEM]


def test_an_edge_loads_shared_weights_and_keeps_the_rest():
    sender, receiver = (build_edge(ClientConfig(share="stem"), (8, 8, 3), 10, seed, CPU, "resnet8") for seed in (0, 1))
    head = receiver.model.head[-1].weight.detach().clone()
    sender.model.stem[1].running_var.fill_(3)
    receiver.adopt(sender.shared_weights)
    for own, other in zip(
        receiver.model.stem.state_dict().values(), sender.model.stem.state_dict().values(), strict=True
    ):
        assert torch.equal(own, other)
    assert torch.equal(receiver.model.head[-1].weight, head)


@pytest.mark.parametrize("when", ["its weights", "its features"])
def test_an_unusable_client_is_left_out_and_gets_the_mean_in_the_next_round(tiny, monkeypatch, when):
    """Client 1 sends NaN in round 2, in the first exchange or in the second; it continues from its own state."""
    adopted = []
    weights, adopt = Client.shared_weights.fget, Client.adopt

    def broken(client):
        found = weights(client)
        if client.id == 1 and len(rounds_of[1]) == 2 and when == "its weights":
            found.view(torch.float32)[3] = float("nan")
        return found

    rounds_of = {client: [] for client in range(4)}

    def watched(client, weights):
        adopted.append((client.id, len(weights)))
        adopt(client, weights)

    views = Client.upload_views

    def upload_views(client, round, block_rows):
        for rows, image in views(client, round, block_rows):
            yield rows, image * float("nan") if (client.id, round, when) == (1, 1, "its features") else image

    batches = Client.batches

    def counted(client, round, epoch):
        rounds_of[client.id].append(round)
        return batches(client, round, epoch)

    monkeypatch.setattr(Client, "shared_weights", property(broken))
    monkeypatch.setattr(Client, "adopt", watched)
    monkeypatch.setattr(Client, "upload_views", upload_views)
    monkeypatch.setattr(Client, "batches", counted)
    changes = {"client__share": "edge", "client__extract": "shared", "faults__on_bad_client": "drop"}
    records = run_in_threads(tiny(rounds=3, **changes), 2)
    assert [record["dropped_clients"] for record in records] == [0, 1, 0]
    of_client = [size > 0 for client, size in adopted if client == 1]
    # Asked to train and answered with the mean: round 1, round 2 (complete or not), round 3, which starts from it.
    answered = when == "its features"
    assert of_client == [False, True, False, *[True] * answered, True, True]
    assert sum(size > 0 for client, size in adopted if client == 2) == 3


def test_a_round_in_which_no_features_can_be_used_is_an_error_also_after_good_weights(tiny, monkeypatch):
    views = Client.upload_views

    def upload_views(client, round, block_rows):
        for rows, image in views(client, round, block_rows):
            yield rows, image * float("nan") if round == 1 else image

    monkeypatch.setattr(Client, "upload_views", upload_views)
    changes = {"client__share": "stem", "client__extract": "shared", "faults__on_bad_client": "drop"}
    with pytest.raises(WireError, match="no client has uploaded anything that can be used in round 2"):
        run_in_threads(tiny(rounds=3, **changes), 3)


def test_with_shared_features_every_stem_is_the_common_one(tiny):
    config = tiny(client__share="stem", client__extract="shared", evaluate__mode="full", rounds=3)
    for record in run_in_threads(config, 3):
        assert record["test_accuracy"] == record["global_test_accuracy"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"client__extract": "shared"}, "client.share is 'none'; expected stem or edge"),
        ({"client__share": "stem", "algorithm": "fedavg"}, "client.share is 'stem'; expected none in fedavg"),
        (
            {"client__share": "edge", "client__extract": "shared", "algorithm": "fedgkt_async"},
            "client.extract is 'shared'; expected own in fedgkt_async",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused(tiny, changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny(**changes)
