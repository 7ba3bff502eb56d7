"""The drift of stems, against numpy in float64 on features computed another way."""

import numpy as np
import pytest
import torch

from gkt_mpi.data.augment import Augmentation, ImagePipeline
from gkt_mpi.data.shard import Shard
from gkt_mpi.federation.client import ClientConfig, build_edge
from gkt_mpi.learners.drift import NUM_IMAGES, StemDrift

CPU = torch.device("cpu")


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (NUM_IMAGES + 5, 8, 8, 3), dtype=torch.uint8, generator=generator)
    pipeline = ImagePipeline(torch.full((3,), 0.5), torch.full((3,), 0.25), Augmentation())
    return Shard(torch.arange(len(image)), torch.zeros(len(image), dtype=torch.int64), image, pipeline)


def new_edges():
    """Three clients, two of which have the same kind of edge model, and their states."""
    config = ClientConfig()
    large, small = (
        build_edge(config, (8, 8, 3), 10, 0, CPU, "resnet8"),
        build_edge(config, (8, 8, 3), 10, 0, CPU, "resnet4"),
    )
    edges = [large, small, large]
    states = []
    for seed, name in enumerate(("resnet8", "resnet4", "resnet8")):
        states.append(build_edge(config, (8, 8, 3), 10, seed, CPU, name).state())
    return edges, states


def features(edge, state, images):
    edge.load(state)
    edge.model.eval()
    with torch.no_grad():
        return edge.model(images.pipeline.plain(images.image[:NUM_IMAGES]))[0].numpy().astype(np.float64).ravel()


def test_drift_cosine_and_spread_are_those_of_numpy(images):
    edges, first = new_edges()
    second = [first[2], first[1], first[0]]  # clients 0 and 2 swap stems
    drift = StemDrift(edges, images)
    before, after = ([features(e, s, images) for e, s in zip(edges, each, strict=True)] for each in (first, second))
    assert drift.measure(first) == {"feature_spread": pytest.approx(spread(before), rel=1e-6)}
    found = drift.measure(second)
    norm = np.linalg.norm
    assert found["feature_spread"] == pytest.approx(spread(after), rel=1e-6)
    pairs = list(zip(before, after, strict=True))
    assert found["feature_drift"] == pytest.approx(np.mean([norm(a - b) / norm(b) for b, a in pairs]), rel=1e-6)
    assert found["feature_cosine"] == pytest.approx(np.mean([a @ b / norm(a) / norm(b) for b, a in pairs]), rel=1e-6)
    assert found["feature_drift"] > 0.1 and found["feature_cosine"] < 0.99


def spread(feature):
    mean = np.mean(feature, axis=0)
    return np.sqrt(np.mean([np.sum((f - mean) ** 2) for f in feature])) / np.linalg.norm(mean)


def test_equal_stems_that_stay_have_no_spread_and_no_drift_also_after_a_resume(images):
    edges, states = new_edges()
    same = [states[0], states[1], states[0]]
    edges, same = [edges[0], edges[2]], [same[0], same[2]]
    drift = StemDrift(edges, images)
    drift.measure(same)
    resumed = StemDrift(edges, images)
    resumed.load(drift.state())
    for each in (drift, resumed):
        found = each.measure(same)
        assert found["feature_spread"] == pytest.approx(0, abs=1e-6)
        assert found["feature_drift"] == 0
        assert found["feature_cosine"] == pytest.approx(1, abs=1e-12)
