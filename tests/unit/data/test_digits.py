import numpy as np
import pytest

from gkt_mpi.data.data_config import DataConfig
from gkt_mpi.data.datasets import prepare
from tests.unit.data.made import silent


def test_digits_are_those_of_scikit_learn_with_a_fifth_for_testing(tmp_path):
    datasets = pytest.importorskip("sklearn.datasets")
    file = prepare(DataConfig(name="digits", dir=str(tmp_path)), silent)
    found = np.concatenate([file.images(s, np.arange(len(file.labels(s)))) for s in ("train", "test")])
    labels = np.concatenate([file.labels("train"), file.labels("test")])
    published = datasets.load_digits()
    expected = np.rint(published.images * 255 / 16).astype(np.uint8)[..., None]
    assert len(file.labels("test")) == round(0.2 * 1797)

    def ordered(images, labels):
        rows = np.concatenate([images.reshape(len(images), -1), labels[:, None]], axis=1)
        return rows[np.lexsort(rows.T)]

    assert np.array_equal(ordered(found, labels), ordered(expected, published.target))


def test_the_digits_test_split_is_fixed(tmp_path):
    file = prepare(DataConfig(name="digits", dir=str(tmp_path)), silent)
    assert np.bincount(file.labels("test")).tolist() == [32, 41, 34, 38, 39, 34, 45, 24, 34, 38]
    assert file.labels("test")[:10].tolist() == [5, 7, 3, 9, 6, 3, 5, 1, 8, 4]
