"""The data sets that torchvision reads, from small files in their published formats, made here."""

import hashlib
import struct

import numpy as np
import pytest

from gkt_mpi.data.data_config import DataConfig
from gkt_mpi.data.datasets import look_for, prepare
from gkt_mpi.data.sources import DATA_SOURCES
from gkt_mpi.errors import DataError
from gkt_mpi.torchvision_import import import_torchvision
from tests.unit.data.made import silent

IDX = {
    "mnist": ("MNIST", "train", "t10k", 10),
    "fashion_mnist": ("FashionMNIST", "train", "t10k", 10),
    "emnist": ("EMNIST", "emnist-balanced-train", "emnist-balanced-test", 47),
}


def write_idx(path, array):
    """Write an array in the format of MNIST's files: big-endian magic number and sizes, then bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def write_mnist(root, name, seed=0):
    """Write a few random images; return them as (N, 28, 28) with labels, by split."""
    folder, train, test, classes = IDX[name]
    rng, written = np.random.default_rng(seed), {}
    for split, prefix, count in (("train", train, 2 * classes), ("test", test, classes)):
        images, labels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8), np.arange(count) % classes
        write_idx(root / folder / "raw" / f"{prefix}-images-idx3-ubyte", images)
        write_idx(root / folder / "raw" / f"{prefix}-labels-idx1-ubyte", labels)
        written[split] = images, labels
    return written


@pytest.mark.parametrize("name", IDX)
def test_files_in_the_format_of_mnist_are_read_upright(tmp_path, name):
    written = write_mnist(tmp_path, name)
    file = prepare(DataConfig(name, str(tmp_path)), silent)
    size = DATA_SOURCES[name].size
    assert (len(file.classes), file.image_shape) == (size.classes, size.image_shape) == (IDX[name][3], (28, 28, 1))
    for split, (images, labels) in written.items():
        upright = images.transpose(0, 2, 1) if name == "emnist" else images  # EMNIST's files are transposed
        assert np.array_equal(file.images(split, np.arange(len(labels)))[..., 0], upright)
        assert np.array_equal(file.labels(split), labels)


def test_the_class_names_are_those_of_torchvision(tmp_path):
    datasets = import_torchvision("datasets")
    names = {}
    for name in IDX:
        write_mnist(tmp_path, name)
        names[name] = prepare(DataConfig(name, str(tmp_path)), silent).classes
    assert names["emnist"] == datasets.EMNIST.classes_split_dict["balanced"]
    assert names["fashion_mnist"] == datasets.FashionMNIST.classes
    assert names["mnist"] == [name[0] for name in datasets.MNIST.classes]


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_svhn_is_read_with_ten_for_the_digit_zero(tmp_path, monkeypatch):
    io, svhn = pytest.importorskip("scipy.io"), import_torchvision("datasets").SVHN
    rng, written = np.random.default_rng(0), {}
    for split in ("train", "test"):
        images, digits = rng.integers(0, 256, (32, 32, 3, 10), dtype=np.uint8), np.arange(1, 11)
        path = tmp_path / f"{split}_32x32.mat"
        io.savemat(path, {"X": images, "y": digits[:, None].astype(np.uint8)})
        written[split] = images.transpose(3, 0, 1, 2)
        monkeypatch.setitem(svhn.split_list, split, ["", path.name, md5(path)])  # of the published files otherwise
    file = prepare(DataConfig("svhn", str(tmp_path)), silent)
    for split, images in written.items():
        assert np.array_equal(file.images(split, np.arange(10)), images)
        assert file.labels(split).tolist() == [*range(1, 10), 0]


def test_stl10_is_read_from_its_columns(tmp_path, monkeypatch):
    stl10, folder = import_torchvision("datasets").STL10, tmp_path / "stl10_binary"
    folder.mkdir()
    rng, written = np.random.default_rng(0), {}
    for split in ("train", "test", "unlabeled"):
        written[split] = rng.integers(0, 256, (10, 96, 96, 3), dtype=np.uint8)
        (folder / f"{split}_X.bin").write_bytes(written[split].transpose(0, 3, 2, 1).tobytes())
        (folder / f"{split}_y.bin").write_bytes(bytes(range(1, 11)))
    for listed in ("train_list", "test_list"):
        sums = [[name, md5(folder / name)] for name, _ in getattr(stl10, listed)]
        monkeypatch.setattr(stl10, listed, sums)
    file = prepare(DataConfig("stl10", str(tmp_path)), silent)
    for split in ("train", "test"):
        assert np.array_equal(file.images(split, np.arange(10)), written[split])
        assert file.labels(split).tolist() == list(range(10))


@pytest.mark.parametrize("name", [*IDX, "svhn", "stl10"])
def test_missing_files_are_named_with_two_ways_to_get_them(tmp_path, name):
    for look in (prepare, lambda config, report: look_for(config)):
        with pytest.raises(DataError, match=rf"{name} was not found: there is no {tmp_path}.*Either .*, or ") as caught:
            look(DataConfig(name, str(tmp_path)), silent)
        assert "\n" not in str(caught.value)
    config = DataConfig(name, str(tmp_path), download=True)
    assert look_for(config) == f"{name} will be downloaded into {tmp_path} when the run begins"


def test_a_download_without_a_network_is_one_line(tmp_path, monkeypatch):
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # a port without a listener
    with pytest.raises(DataError, match=r"the download of mnist into .* failed") as caught:
        prepare(DataConfig("mnist", str(tmp_path), download=True), silent)
    assert len(" ".join(str(caught.value).split())) < 1000


@pytest.mark.parametrize("name", ["mnist", "svhn"])
def test_damaged_files_are_named_with_their_folder(tmp_path, name):
    write_mnist(tmp_path, "mnist")
    path = tmp_path / "MNIST/raw/t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    for split in ("train", "test"):
        (tmp_path / f"{split}_32x32.mat").write_bytes(b"damaged")
    where = tmp_path / "MNIST/raw" if name == "mnist" else tmp_path
    message = rf"{where}: the t\w+ files of {name} are damaged \(.*\); get them again"
    with pytest.raises(DataError, match=message) as caught:
        prepare(DataConfig(name, str(tmp_path)), silent)
    assert "\n" not in str(caught.value)
