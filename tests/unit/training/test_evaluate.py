import numpy as np
import pytest
import torch

from gkt_mpi.data.augment import Augmentation, ImagePipeline
from gkt_mpi.data.data_config import DataConfig
from gkt_mpi.data.datasets import prepare
from gkt_mpi.data.shard import Shard
from gkt_mpi.federation.client import ClientConfig, build_edge
from gkt_mpi.models.networks import build_server_model
from gkt_mpi.seeding import torch_generator
from gkt_mpi.training.evaluate import count_pairs, evaluate, num_evaluated

CPU = torch.device("cpu")


@pytest.fixture
def setting(tmp_path):
    file = prepare(DataConfig(name="digits", dir=str(tmp_path)), lambda done, total: None)
    pipeline = ImagePipeline(torch.from_numpy(file.mean), torch.from_numpy(file.std), Augmentation())
    test = Shard.load(file, "test", np.arange(50), pipeline, CPU)
    edges = [build_edge(ClientConfig(), (8, 8, 1), 10, seed, CPU, "resnet8") for seed in range(3)]
    return test, edges, build_server_model("resnet11", (8, 8, 16), 10, torch_generator(0, "server"), CPU)


def accuracy_by_hand(test, edge, server_model, rows):
    """One image at a time, counting in Python."""
    edge.model.eval()
    server_model.eval()
    right = [0, 0]
    with torch.no_grad():
        for row in rows:
            feature, edge_logit = edge.model(test.pipeline.plain(test.image[row : row + 1]))
            for side, logit in enumerate((server_model(feature), edge_logit)):
                right[side] += int(logit[0].argmax()) == int(test.label[row])
    return right


@pytest.mark.parametrize("mode", ["sharded", "full"])
def test_every_stem_is_followed_by_the_server_model_on_its_part_or_on_all(setting, mode):
    test, edges, server_model = setting
    parts = [range(16), range(16, 33), range(33, 50)] if mode == "sharded" else [range(50)] * 3
    by_hand = [accuracy_by_hand(test, e, server_model, p) for e, p in zip(edges, parts, strict=True)]
    total = num_evaluated(mode, 3, 50)
    assert total == sum(map(len, parts))
    advanced = []
    spare = build_edge(ClientConfig(), (8, 8, 1), 10, 9, CPU, "resnet8")
    found = evaluate(server_model, [spare] * 3, [e.state() for e in edges], test, mode, 7, advanced.append)
    assert found.result == pytest.approx(sum(right[0] for right in by_hand) / total)
    assert found.client == pytest.approx(sum(right[1] for right in by_hand) / total)
    assert sum(advanced) == total


def test_clients_with_the_same_model_are_evaluated_once_and_each_counts(setting, monkeypatch):
    """With shared edge models the figures equal those of evaluating every client."""
    test, edges, server_model = setting
    states = [edges[k].state() for k in (0, 1, 0, 0)]
    images, advanced = [], []
    spare = build_edge(ClientConfig(), (8, 8, 1), 10, 9, CPU, "resnet8")
    spare.model.register_forward_hook(lambda model, inputs, output: images.append(len(inputs[0])))
    found = evaluate(server_model, [spare] * 4, states, test, "full", 7, advanced.append)
    assert sum(images) == 2 * 50 and sum(advanced) == 4 * 50
    by_hand = [accuracy_by_hand(test, edges[k], server_model, range(50)) for k in (0, 1, 0, 0)]
    assert [[score.correct, score.correct_alone] for score in found.by_client] == by_hand
    assert int(found.confusion.sum()) == 4 * 50
    assert int(found.confusion.trace()) == sum(right for right, _ in by_hand)


def test_more_clients_than_test_images_leaves_some_stems_out(setting):
    test, edges, server_model = setting
    states = [edges[k % 3].state() for k in range(60)]
    found = evaluate(server_model, [edges[0]] * len(states), states, test, "sharded", 7, lambda images: None)
    assert 0 <= found.result <= 1


def test_every_client_has_a_score_and_every_pair_of_classes_a_count(setting):
    test, edges, server_model = setting
    parts = [range(16), range(16, 33), range(33, 50)]
    found = evaluate(server_model, edges, [e.state() for e in edges], test, "sharded", 7, lambda images: None)
    by_hand = [accuracy_by_hand(test, e, server_model, p) for e, p in zip(edges, parts, strict=True)]
    assert found.by_client == tuple((k, len(parts[k]), *right) for k, right in enumerate(by_hand))
    assert found.confusion.sum(1).tolist() == test.label.bincount(minlength=10).tolist()
    assert int(found.confusion.trace()) == sum(right[0] for right in by_hand)


def test_pairs_of_classes_are_counted():
    logit = torch.tensor([[0.0, 2, 1], [3, 0, 0], [0, 0, 1], [0, 1, 0]])
    assert count_pairs(logit, torch.tensor([1, 0, 1, 1])).tolist() == [[1, 0, 0], [0, 2, 1], [0, 0, 0]]
