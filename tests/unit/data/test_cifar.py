import pickle

import numpy as np
import pytest

from gkt_mpi.data.data_config import DataConfig
from gkt_mpi.data.datasets import prepare
from gkt_mpi.errors import DataError
from tests.unit.data.made import silent, write_cifar


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_a_cifar_archive_is_decoded_pixel_for_pixel(tmp_path, name, classes):
    written = write_cifar(tmp_path, name, classes=classes)
    file = prepare(DataConfig(name=name, dir=str(tmp_path)), silent)
    assert file.image_shape == (32, 32, 3)
    assert len(file.classes) == classes
    assert file.checksums == "other"  # these are not the published images, and the file records it
    for split, (images, labels) in written.items():
        rows = np.arange(len(labels))[::-1].copy()
        assert np.array_equal(file.images(split, rows), images[rows])
        assert np.array_equal(file.labels(split), labels)


def test_a_cifar_archive_with_one_class_is_refused(tmp_path):
    write_cifar(tmp_path, "cifar10", classes=1)
    with pytest.raises(DataError, match=r"cifar-10-batches-py has 1 class \(name 0\); expected 2 to 32,767"):
        prepare(DataConfig(name="cifar10", dir=str(tmp_path)), silent)


def test_a_cifar_archive_without_test_images_is_refused(tmp_path):
    write_cifar(tmp_path, "cifar10", counts=(3, 0))
    with pytest.raises(DataError, match=r"cifar-10-batches-py has no test images"):
        prepare(DataConfig(name="cifar10", dir=str(tmp_path)), silent)


def without(key):
    return lambda entries: {k: v for k, v in entries.items() if k != key}


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("data_batch_3", lambda e: [e], "cannot be read .it contains no dictionary"),
        ("data_batch_3", without("labels"), "has no 'labels', only 'data'"),
        ("data_batch_3", without("data"), "has no 'data', only 'labels'"),
        ("test_batch", lambda e: {}, "has no 'data'; it is empty"),
        ("data_batch_2", lambda e: e | {"labels": e["labels"] + [1, 2]}, "3 images but 5 labels"),
        ("data_batch_2", lambda e: e | {"labels": [1, 10, 3]}, "labels outside 0..9, which are the classes"),
        ("data_batch_2", lambda e: e | {"labels": [1, -1, 3]}, "labels outside 0..9"),
        ("data_batch_2", lambda e: e | {"labels": [1, 10**30, 3]}, "labels outside 0..9"),
        ("data_batch_2", lambda e: e | {"labels": [1, 2.5, 3]}, "labels that are not integers"),
        ("data_batch_2", lambda e: e | {"labels": "abc"}, "labels that are not integers"),
        ("data_batch_2", lambda e: e | {"data": e["data"][:, :3071]}, r"data of uint8 \(3, 3071\)"),
        ("data_batch_2", lambda e: e | {"data": e["data"].astype(np.int16)}, r"data of int16 \(3, 3072\)"),
        ("data_batch_2", lambda e: e | {"data": e["data"].tolist()}, "data of list"),
        ("batches.meta", without("label_names"), "has no 'label_names'; it is empty"),
        ("batches.meta", lambda e: {"label_names": [["a"], "b"]}, "label_names that are not a list of text"),
        ("batches.meta", lambda e: {"label_names": 7}, "label_names that are not a list of text"),
    ],
)
def test_an_incomplete_file_of_an_archive_is_named_with_its_missing_part(tmp_path, file, change, message):
    write_cifar(tmp_path, "cifar10")
    path = tmp_path / "cifar-10-batches-py" / file
    path.write_bytes(pickle.dumps(change(pickle.loads(path.read_bytes()))))
    with pytest.raises(DataError, match=message) as caught:
        prepare(DataConfig(name="cifar10", dir=str(tmp_path)), silent)
    assert str(caught.value).startswith(str(path)) and "get the archive again" in str(caught.value)
    assert "Error" not in str(caught.value)


def test_labels_may_be_an_array_of_any_integers(tmp_path):
    written = write_cifar(tmp_path, "cifar10")
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    batch = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps(batch | {"labels": np.array(batch["labels"], np.uint16)}))
    file = prepare(DataConfig(name="cifar10", dir=str(tmp_path)), silent)
    assert np.array_equal(file.labels("test"), written["test"][1])


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_download_without_a_network_is_a_clear_error(tmp_path, monkeypatch, name):
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # a port without a listener
    with pytest.raises(DataError, match=r"the download of CIFAR100? into .* failed"):
        prepare(DataConfig(name=name, dir=str(tmp_path), download=True), silent)


@pytest.mark.parametrize("kept", [0, 1, 100, -1])
def test_a_truncated_batch_is_named(tmp_path, kept):
    write_cifar(tmp_path, "cifar10")
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"data_batch_3 cannot be read \(it is truncated\); get the archive again"):
        prepare(DataConfig(name="cifar10", dir=str(tmp_path)), silent)


def test_an_unreadable_batch_is_named(tmp_path):
    write_cifar(tmp_path, "cifar10")
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    path.unlink()
    path.symlink_to("/proc/self/mem")  # a file to the system, but its first byte is unreadable
    with pytest.raises(DataError, match=r"data_batch_3 cannot be read \(Input/output error\)"):
        prepare(DataConfig(name="cifar10", dir=str(tmp_path)), silent)


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('the archive ran code')",)


def test_an_archive_that_would_run_code_is_refused(tmp_path):
    write_cifar(tmp_path, "cifar10")
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(pickle.dumps({"data": Evil()}))
    with pytest.raises(DataError, match=r"builtins\.exec"):
        prepare(DataConfig(name="cifar10", dir=str(tmp_path)), silent)
