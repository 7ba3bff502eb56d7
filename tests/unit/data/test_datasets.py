from pathlib import Path

import h5py
import numpy as np
import pytest

from gkt_mpi.data.data_config import DataConfig
from gkt_mpi.data.datasets import ImageFile, file_path, look_for, prepare
from gkt_mpi.data.synthetic import SyntheticConfig
from gkt_mpi.errors import ConfigError, DataError
from tests.unit.data.made import damage, silent, write_cifar


def keep_one_class(file):
    file.attrs["classes"] = ["only"]
    for split in ("train", "test"):
        file[f"{split}/label"][:] = 0


def test_a_file_of_one_class_is_refused_by_name(tmp_path):
    config = DataConfig(name="digits", dir=str(tmp_path))
    prepare(config, silent)
    damage(file_path(config), keep_one_class)
    with pytest.raises(DataError, match=r"digits\.h5 has 1 class \(only\); expected 2 to 32,767"):
        ImageFile(file_path(config))


def test_classes_without_images_in_a_split_are_reported_with_their_number(tmp_path):
    made = SyntheticConfig(train=3, test=9, size=8, classes=10)
    file = prepare(DataConfig(name="synthetic", dir=str(tmp_path), synthetic=made), silent)
    assert file.notes == [
        "7 of 10 classes have no training images and cannot be learned: 3, 4, 5, 6, 7 and 2 more",
        "1 of 10 classes has no test images for evaluation: 9",
    ]


def test_channel_statistics_are_those_of_the_training_images(tmp_path):
    file = prepare(DataConfig(name="digits", dir=str(tmp_path)), silent)
    pixels = file.images("train", np.arange(len(file.labels("train")))).astype(np.float64) / 255
    np.testing.assert_allclose(file.mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(file.std, pixels.std(axis=(0, 1, 2)), rtol=1e-6)


def test_synthetic_images_have_the_asked_size_and_do_not_depend_on_a_run(tmp_path):
    made = SyntheticConfig(train=1500, test=30, size=16, classes=4, seed=5)
    configs = [DataConfig(name="synthetic", dir=str(tmp_path / folder), synthetic=made) for folder in "ab"]
    first, again = (prepare(config, silent) for config in configs)
    assert first.image_shape == (16, 16, 3)
    assert np.bincount(first.labels("train")).tolist() == [375] * 4
    rows = np.arange(1500)
    assert np.array_equal(first.images("train", rows), again.images("train", rows))
    assert not np.array_equal(first.images("train", rows[:30]), first.images("test", rows[:30]))


def test_the_file_is_made_once_and_read_through_a_memory_map(tmp_path):
    config = DataConfig(name="synthetic", dir=str(tmp_path))
    calls = []
    prepare(config, lambda done, total: calls.append((done, total)))
    assert calls[0] == (0, 2500) and calls[-1] == (2500, 2500) and len(calls) == 4
    made = file_path(config).stat().st_mtime_ns
    file = prepare(config, silent)
    assert file_path(config).stat().st_mtime_ns == made
    file.images("train", np.array([0]))
    assert str(file_path(config)) in Path("/proc/self/maps").read_text()
    with h5py.File(file_path(config)) as stored:
        rows = np.array([1999, 0, 7, 7])
        expected = stored["train/image"][:][rows]
    assert np.array_equal(file.images("train", rows), expected)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "cinic10"])
def test_a_missing_data_set_names_the_path_and_two_ways_to_get_it(tmp_path, name):
    with pytest.raises(DataError, match=r"(?s)not found.*Either .*, or ") as caught:
        prepare(DataConfig(name=name, dir=str(tmp_path / "nowhere")), silent)
    assert str(tmp_path / "nowhere") in str(caught.value)


def test_images_stay_readable_after_their_archive_is_deleted(tmp_path):
    write_cifar(tmp_path, "cifar10")
    config = DataConfig(name="cifar10", dir=str(tmp_path))
    before = prepare(config, silent).labels("train")
    (tmp_path / "cifar-10-batches-py").rename(tmp_path / "gone")
    assert np.array_equal(prepare(config, silent).labels("train"), before)


def set_label(file):
    file["train/label"][0] = 10


def shorten_labels(file):
    del file["test/label"]
    file["test/label"] = np.zeros(3, np.int64)


def odd_size(file):
    for split in ("train", "test"):
        images = file[f"{split}/image"][:, :7]
        del file[f"{split}/image"]
        file[f"{split}/image"] = images


def column_of_labels(file):
    labels = file["train/label"][:]
    del file["train/label"]
    file["train/label"] = labels[:, None]


def float_labels(file):
    labels = file["train/label"][:]
    del file["train/label"]
    file["train/label"] = labels + 0.5


def no_spread(file):
    file.attrs["std"] = [0.0, 0.1, 0.1]


def group_for_images(file):
    del file["train/image"]
    file.create_group("train/image")


def no_test(file):
    del file["test"]


def wrong_type(file):
    images = file["train/image"][:].astype(np.float32)
    del file["train/image"]
    file["train/image"] = images


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_label, "outside 0..9"),
        (shorten_labels, "500 images but 3 labels"),
        (odd_size, "7x8"),
        (no_test, "missing"),
        (wrong_type, "not uint8"),
        (column_of_labels, "not an integer array"),
        (float_labels, "not an integer array"),
        (no_spread, "mean and std"),
        (group_for_images, "not an image file"),
    ],
)
def test_a_file_with_wrong_shapes_or_labels_is_refused_by_name(tmp_path, change, message):
    config = DataConfig(name="synthetic", dir=str(tmp_path), synthetic=SyntheticConfig(size=8))
    prepare(config, silent)
    damage(file_path(config), change)
    with pytest.raises(DataError, match=message) as caught:
        prepare(config, silent)
    assert str(file_path(config)) in str(caught.value)


def invert_images(file):
    file["train/image"][:] = 255 - file["train/image"][:]


def change_one_pixel(file):
    file["test/image"][-1, -1, -1, -1] ^= 1


def shift_test_labels(file):
    file["test/label"][:] = (file["test/label"][:] + 1) % 10


def other_mean(file):
    file.attrs["mean"] = file.attrs["mean"] + 0.01


def swap_class_names(file):
    file.attrs["classes"] = file.attrs["classes"][::-1]


@pytest.mark.parametrize("look", [prepare, lambda config, report: look_for(config)], ids=["prepare", "look_for"])
@pytest.mark.parametrize(
    "change",
    [invert_images, change_one_pixel, shift_test_labels, other_mean, swap_class_names],
    ids=lambda f: f.__name__,
)
def test_a_file_changed_after_its_creation_is_refused_by_name(tmp_path, change, look):
    config = DataConfig(name="synthetic", dir=str(tmp_path), synthetic=SyntheticConfig(train=2100, test=30, size=8))
    prepare(config, silent)
    look(config, silent)
    damage(file_path(config), change)
    with pytest.raises(DataError, match="images, labels or statistics are not those it was created with") as caught:
        look(config, silent)
    assert str(file_path(config)) in str(caught.value)


def test_the_digest_of_a_file_is_of_its_content_alone(tmp_path):
    digests = []
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_cifar(tmp_path / folder, "cifar10", seed=seed)
        config = DataConfig(name="cifar10", dir=str(tmp_path / folder))
        made = prepare(config, silent)
        assert made.digest == prepare(config, silent).digest == ImageFile(file_path(config)).digest
        digests.append(made.digest)
    assert digests[0] == digests[1] != digests[2]
    assert all(len(digest) == 32 for digest in digests)


def as_version_1(file):
    file.attrs["format"] = 1
    del file.attrs["digest"]


def test_a_file_of_an_older_version_is_replaced_or_kept_if_its_archive_is_gone(tmp_path):
    write_cifar(tmp_path, "cifar10")
    config = DataConfig(name="cifar10", dir=str(tmp_path))
    digest = prepare(config, silent).digest
    damage(file_path(config), as_version_1)
    assert prepare(config, silent).digest == digest
    with h5py.File(file_path(config)) as file:
        assert file.attrs["digest"] == digest
    damage(file_path(config), as_version_1)
    (tmp_path / "cifar-10-batches-py").rename(tmp_path / "gone")
    assert prepare(config, silent).digest == digest
    with h5py.File(file_path(config)) as file:
        assert "digest" not in file.attrs


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9])
def test_a_truncated_file_is_created_again(tmp_path, share):
    config = DataConfig(name="synthetic", dir=str(tmp_path), synthetic=SyntheticConfig(train=20, test=10, size=8))
    whole = prepare(config, silent).images("train", np.arange(20))
    path = file_path(config)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=path.name):
        ImageFile(path)
    assert np.array_equal(prepare(config, silent).images("train", np.arange(20)), whole)


def test_a_file_that_is_not_hdf5_is_refused_by_name(tmp_path):
    path = tmp_path / "x.h5"
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="x.h5"):
        ImageFile(path)


@pytest.mark.parametrize("wrong", [{"alpha": 0.0}, {"limit": 0}, {"test_limit": -1}, {"classes_per_client": 0}])
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        DataConfig(**wrong)


@pytest.mark.grid
def test_real_images_are_read_in_their_official_layouts(real_images):
    for name, train, classes in (("cifar10", 50_000, 10), ("cifar100", 10_000, 100), ("cinic10", 1_200, 10)):
        file = prepare(DataConfig(name=name, dir=str(real_images)), silent)
        assert (len(file.labels("train")), len(file.classes)) == (train, classes)
        rows = np.arange(0, train, 7)
        pixels = file.images("train", rows).reshape(-1, 3) / 255
        np.testing.assert_allclose(pixels.mean(axis=0), file.mean, atol=0.02)
        np.testing.assert_allclose(pixels.std(axis=0), file.std, atol=0.02)
