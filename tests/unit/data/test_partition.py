import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gkt_mpi.data.data_config import DataConfig
from gkt_mpi.data.partition import MIN_SAMPLES, count_by_class, partition
from gkt_mpi.errors import ConfigError
from gkt_mpi.log.run_log import RunLog


def labels_of(size, classes=10, seed=0):
    return np.random.default_rng(seed).permutation(np.arange(size) % classes)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["homo", "hetero", "shards", "quantity"]),
    st.integers(1, 12),
    st.integers(400, 900),
    st.integers(0, 1000),
    st.floats(0.3, 100),
)
def test_every_sample_goes_to_exactly_one_client(kind, clients, size, seed, alpha):
    each = 10 if clients == 1 else max(2, -(-10 // clients))
    config = DataConfig(partition=kind, alpha=alpha, classes_per_client=each)
    parts = partition(labels_of(size), clients, config, seed)
    assert len(parts) == clients
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(size))
    assert all(part.dtype == np.int64 and np.all(np.diff(part) > 0) for part in parts)
    if kind in ("hetero", "quantity"):
        assert min(map(len, parts)) >= MIN_SAMPLES
    if kind == "homo":
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("kind", ["homo", "hetero", "shards", "quantity"])
def test_the_seed_decides_the_partition(kind):
    labels, config = labels_of(500), DataConfig(partition=kind)
    first, again, other = (partition(labels, 5, config, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_hetero_is_more_skewed_for_a_smaller_alpha():
    labels = labels_of(5000)

    def skew(alpha):
        counts = count_by_class(labels, partition(labels, 10, DataConfig(partition="hetero", alpha=alpha), 0), 10)
        return (counts / counts.sum(axis=1, keepdims=True)).std()

    assert skew(0.2) > 1.5 * skew(1.0) > 1.5 * 1.5 * skew(50.0)


def test_hetero_closes_a_client_that_holds_its_share():
    """A client stops receiving classes once it has N / n samples: it never exceeds this by more than one class."""
    labels = labels_of(4000)
    counts = count_by_class(labels, partition(labels, 8, DataConfig(partition="hetero", alpha=0.5), 3), 10)
    total_before = np.cumsum(counts, axis=1) - counts
    assert np.all(counts[total_before >= 4000 / 8] == 0)


def test_shards_gives_every_client_its_number_of_classes():
    labels = labels_of(1000)
    counts = count_by_class(labels, partition(labels, 10, DataConfig(partition="shards", classes_per_client=3), 0), 10)
    assert np.all((counts > 0).sum(axis=1) == 3)


def test_limit_draws_that_many_images_by_the_seed():
    labels, config = labels_of(1000), DataConfig(limit=120)
    drawn = [np.sort(np.concatenate(partition(labels, 4, config, seed))) for seed in (0, 0, 1)]
    assert len(drawn[0]) == 120 == len(np.unique(drawn[0]))
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


@pytest.mark.parametrize(
    ("kind", "clients", "size", "message"),
    [
        ("homo", 11, 10, "11 clients"),
        ("hetero", 5, 49, "at least 10 images"),
        ("quantity", 5, 49, "at least 10 images"),
        ("shards", 4, 100, "classes_per_client"),
    ],
)
def test_too_few_images_or_classes_are_a_clear_error(kind, clients, size, message):
    with pytest.raises(ConfigError, match=message):
        partition(labels_of(size), clients, DataConfig(partition=kind), 0)


def test_a_hetero_partition_that_cannot_be_drawn_is_a_clear_error():
    with pytest.raises(ConfigError, match="raise data.alpha"):
        partition(labels_of(100), 10, DataConfig(partition="hetero", alpha=0.01), 0)


def test_counts_and_the_saved_file_agree_with_the_partition(tmp_path):
    labels = labels_of(300)
    parts = partition(labels, 3, DataConfig(partition="hetero"), 0)
    counts = count_by_class(labels, parts, 10)
    for client, part in enumerate(parts):
        assert [int((labels[part] == label).sum()) for label in range(10)] == counts[client].tolist()
    RunLog(tmp_path, {}, "").save_partition(parts, counts, list("abcdefghij"))
    with np.load(tmp_path / "partition.npz") as saved:
        for client in range(3):
            rows = slice(saved["first"][client], saved["first"][client + 1])
            assert np.array_equal(saved["sample_id"][rows], parts[client])
        assert np.array_equal(saved["count"], counts)
