import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from gkt_mpi.data.data_config import DataConfig
from gkt_mpi.data.datasets import ImageFile, file_path, look_for, prepare
from gkt_mpi.data.synthetic import SyntheticConfig
from gkt_mpi.errors import ConfigError, DataError


def silent(done, total):
    pass


def write_cifar(root, name, counts=(3, 2), classes=10, seed=0):
    """Write a few random images in the layout of the official archive; return them as (N, 32, 32, 3) and labels."""
    rng = np.random.default_rng(seed)
    ten = name == "cifar10"
    folder = root / ("cifar-10-batches-py" if ten else "cifar-100-python")
    folder.mkdir(parents=True)
    files = {
        "train": [f"data_batch_{k}" for k in range(1, 6)] if ten else ["train"],
        "test": ["test_batch" if ten else "test"],
    }
    written = {}
    for split, count in zip(("train", "test"), counts, strict=True):
        images, labels = [], []
        for file in files[split]:
            data = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
            label = rng.integers(0, classes, count).tolist()
            entry = {"data": data, "labels" if ten else "fine_labels": label}
            (folder / file).write_bytes(pickle.dumps(entry))
            images.append(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            labels += label
        written[split] = np.concatenate(images), np.array(labels)
    meta = {"label_names" if ten else "fine_label_names": [f"name {k}" for k in range(classes)]}
    (folder / ("batches.meta" if ten else "meta")).write_bytes(pickle.dumps(meta))
    return written


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


def test_cinic10_reads_its_folders_of_png_files(tmp_path):
    rng = np.random.default_rng(0)
    written = {}
    for split in ("train", "valid", "test"):
        for name in ("bird", "airplane"):
            folder = tmp_path / "CINIC-10" / split / name
            folder.mkdir(parents=True)
            for k in range(3):
                written[split, name, k] = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(written[split, name, k]).save(folder / f"{k}.png")
    config = DataConfig(name="cinic10", dir=str(tmp_path))
    file = prepare(config, silent)
    assert file.classes == ["airplane", "bird"]
    for split in ("train", "valid", "test"):
        assert file.labels(split).tolist() == [0, 0, 0, 1, 1, 1]
        expected = np.stack([written[split, name, k] for name in file.classes for k in range(3)])
        assert np.array_equal(file.images(split, np.arange(6)), expected)
    Image.fromarray(written["train", "bird", 0]).save(tmp_path / "CINIC-10/train/bird/9.png")
    assert len(prepare(config, silent).labels("train")) == 7  # created again, because the folder has changed


def write_cinic10(root, classes=("airplane", "bird"), suffix="png"):
    """Write an image of each class into each split, in the layout of the official archive, and return the folder."""
    for split in ("train", "valid", "test"):
        for name in classes:
            folder = root / "CINIC-10" / split / name
            folder.mkdir(parents=True)
            Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(folder / f"0.{suffix}")
    return root / "CINIC-10"


def as_jpeg(folder):
    (folder / "test/bird/0.png").rename(folder / "test/bird/0.JPG")


def one_more_as_jpeg(folder):
    (folder / "test/bird/1.jpeg").write_bytes(b"")


def empty_class(folder):
    (folder / "train/bird/0.png").unlink()


def class_missing_in_one_split(folder):
    (folder / "valid/bird/0.png").unlink()
    (folder / "valid/bird").rmdir()


def class_in_one_split_alone(folder):
    (folder / "test/cat").mkdir()


def one_class(folder):
    for split in ("train", "valid", "test"):
        (folder / split / "bird/0.png").unlink()
        (folder / split / "bird").rmdir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (as_jpeg, r"CINIC-10/test/bird holds 1 image that is not PNG, 0\.JPG first"),
        (one_more_as_jpeg, r"CINIC-10/test/bird holds 1 image that is not PNG, 1\.jpeg first"),
        (empty_class, r"CINIC-10/train/bird holds no PNG file"),
        (class_missing_in_one_split, r"there is no .*CINIC-10/valid/bird"),
        (class_in_one_split_alone, r"CINIC-10/test has a folder cat that .*CINIC-10/train lacks"),
        (one_class, r"CINIC-10 has 1 class \(airplane\); expected 2 to 32,767"),
    ],
)
def test_a_class_of_cinic10_that_lacks_images_is_named_with_its_folder(tmp_path, change, message):
    change(write_cinic10(tmp_path))
    with pytest.raises(DataError, match=message) as caught:
        prepare(DataConfig(name="cinic10", dir=str(tmp_path)), silent)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*cinic10*"))


def test_other_files_do_not_disturb_cinic10(tmp_path):
    folder = write_cinic10(tmp_path, suffix="PNG")
    (folder / "train/bird/README.txt").write_text("about birds")
    (folder / "train/.cache").mkdir()
    file = prepare(DataConfig(name="cinic10", dir=str(tmp_path)), silent)
    assert file.classes == ["airplane", "bird"]
    assert file.notes == []


def test_a_cifar_archive_with_one_class_is_refused(tmp_path):
    write_cifar(tmp_path, "cifar10", classes=1)
    with pytest.raises(DataError, match=r"cifar-10-batches-py has 1 class \(name 0\); expected 2 to 32,767"):
        prepare(DataConfig(name="cifar10", dir=str(tmp_path)), silent)


def test_a_cifar_archive_without_test_images_is_refused(tmp_path):
    write_cifar(tmp_path, "cifar10", counts=(3, 0))
    with pytest.raises(DataError, match=r"cifar-10-batches-py has no test images"):
        prepare(DataConfig(name="cifar10", dir=str(tmp_path)), silent)


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


def test_a_png_of_another_size_is_named(tmp_path):
    folder = write_cinic10(tmp_path)
    Image.fromarray(np.zeros((31, 32, 3), np.uint8)).save(folder / "train/bird/1.png")
    with pytest.raises(DataError, match=r"1\.png has 32x31 pixels"):
        prepare(DataConfig(name="cinic10", dir=str(folder)), silent)


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


def test_a_broken_png_is_named(tmp_path):
    (write_cinic10(tmp_path) / "train/bird/bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"bad\.png"):
        prepare(DataConfig(name="cinic10", dir=str(tmp_path)), silent)
    assert not list(tmp_path.glob("*cinic10*"))  # no partial file is left


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


def test_images_stay_readable_after_their_archive_is_deleted(tmp_path):
    write_cifar(tmp_path, "cifar10")
    config = DataConfig(name="cifar10", dir=str(tmp_path))
    before = prepare(config, silent).labels("train")
    (tmp_path / "cifar-10-batches-py").rename(tmp_path / "gone")
    assert np.array_equal(prepare(config, silent).labels("train"), before)


def damage(path, change):
    with h5py.File(path, "r+") as file:
        change(file)


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
