"""Arrays in npz and HDF5 files: what is read, and what is refused, naming the file and the array."""

import zipfile

import numpy as np
import pytest

from gkt_mpi.data.data_config import DataConfig
from gkt_mpi.data.datasets import file_path, prepare
from gkt_mpi.errors import ConfigError, DataError
from tests.unit.data.made import arrays, damage, silent, write_arrays


def config_of(tmp_path, kind, **fields):
    suffix = {"npz": "npz", "hdf5": "h5"}[kind]
    return DataConfig(name=kind, dir=str(tmp_path / "data"), file=str(tmp_path / f"mine.{suffix}"), **fields)


def read(tmp_path, kind, made, **fields):
    config = config_of(tmp_path, kind, **fields)
    write_arrays(config.file_path, made)
    return prepare(config, silent)


@pytest.mark.parametrize("kind", ["npz", "hdf5"])
@pytest.mark.parametrize("channels", [(), (1,), (3,), (5,)])
def test_arrays_are_read_as_they_are(tmp_path, kind, channels):
    made = arrays(channels, train_labels=(np.arange(12) % 3).astype(np.uint8)[:, None])
    file = read(tmp_path, kind, made)
    assert (file.image_shape, file.classes) == ((8, 16, *(channels or (1,))), ["0", "1", "2"])
    for split in ("train", "test"):
        count = len(made[f"{split}_images"])
        assert np.array_equal(file.images(split, np.arange(count)).ravel(), made[f"{split}_images"].ravel())
        assert np.array_equal(file.labels(split), np.arange(count) % 3)
    assert file.owners("train") is None


@pytest.mark.parametrize("kind", ["npz", "hdf5"])
def test_owners_and_class_names_are_read(tmp_path, kind):
    names = np.array(["cat", "dog", "eel", "fox"])
    file = read(tmp_path, kind, arrays(classes=names, train_owner=np.array(["zoe", "ann", "bob"] * 4)))
    assert file.classes == names.tolist()
    assert file.owners("train").tolist() == [2, 0, 1] * 4
    assert file.notes[0] == "1 of 4 classes has no training images and cannot be learned: fox"


def test_the_image_file_changes_with_the_path_and_the_size(tmp_path):
    paths = {file_path(config_of(tmp_path, kind, size=size)) for kind in ("npz", "hdf5") for size in (None, 16, 32)}
    paths |= {file_path(config_of(tmp_path / "other", "npz"))}
    assert len(paths) == 7 and paths == {path for path in paths if path.suffix == ".h5"}


def test_images_of_arrays_are_resized(tmp_path):
    made = arrays((1,), train_images=np.full((12, 8, 16, 1), 77, np.uint8))
    file = read(tmp_path, "npz", made, size=32)
    assert file.image_shape == (32, 32, 1)
    assert (file.images("train", np.arange(12)) == 77).all()
    with pytest.raises(DataError, match="images of 5 channels cannot be resized"):
        read(tmp_path, "npz", arrays((5,)), size=32)


def mixed_sizes():
    images = np.empty(12, object)
    images[:] = [np.zeros((8 + k, 8), np.uint8) for k in range(12)]
    return images


@pytest.mark.parametrize("kind", ["npz", "hdf5"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_labels": None}, "has no array train_labels, only test_images, test_labels, train_images; expected"),
        ({"train_images": np.zeros((12, 8, 8))}, r"train_images is float64 \(12, 8, 8\); expected uint8 .* scale them"),
        ({"train_images": np.zeros((12, 8), np.uint8)}, r"train_images is uint8 \(12, 8\); expected uint8"),
        ({"train_images": np.zeros((11, 8, 16, 3), np.uint8)}, "has 11 images in train_images, but 12 labels"),
        (
            {"test_images": np.zeros((5, 8, 12, 3), np.uint8)},
            r"test have the shape \(8, 12, 3\), but those of train",
        ),
        ({"train_labels": np.arange(12) / 2}, r"train_labels is float64 \(12,\); expected integers"),
        ({"train_labels": np.eye(12, dtype=np.int64)}, r"train_labels is int64 \(12, 12\); expected integers"),
        ({"train_labels": np.arange(12) - 1}, "train_labels has the label -1; expected 0 to 32766"),
        ({"train_labels": np.arange(12) * 10**6}, "train_labels has the label 11000000; expected 0 to 32766"),
        ({"train_labels": np.zeros(12, int), "test_labels": np.zeros(5, int)}, r"has 1 class \(0\); expected 2"),
        ({"test_labels": np.array([0, 1, 2, 3, 1])}, "test_labels has the label 3, which no training image has"),
        ({"test_labels": np.array([0, 1, 2, -3, 1])}, "test_labels: image 3 has the label -3; expected 0 to 2"),
        ({"classes": np.array(["a", "b"])}, "train_labels: image 2 has the label 2; expected 0 to 1"),
        ({"train_labels": np.int64(3)}, r"train_labels is int64 \(\); expected integers"),
        ({"train_owner": np.int64(3)}, r"train_owner is int64 \(\); expected integers or text"),
        ({"train_images": np.uint8(3)}, r"train_images is uint8 \(\); expected uint8"),
        ({"train_images": np.zeros((0, 8, 8), np.uint8), "train_labels": np.zeros(0, int)}, "has no train images"),
        ({"classes": np.arange(3)}, r"classes is int64 \(3,\); expected text"),
        ({"train_owner": np.arange(11)}, r"train_owner is int64 \(11,\); expected integers or text \(12,\)"),
        ({"train_owner": np.arange(12) / 2}, r"train_owner is float64 \(12,\)"),
        ({"test_images": np.zeros((0, 8, 16, 3), np.uint8), "test_labels": np.zeros(0, int)}, "has no test images"),
        ({"train_images": np.zeros((12, 3, 32, 32), np.uint8)}, "channels come last: use images.transpose"),
        ({"train_images": np.zeros((12, 30, 30), np.uint8)}, "of 30x30 do not fit the models.*set data.size"),
    ],
    ids=lambda its: "-".join(its) if isinstance(its, dict) else None,
)
def test_arrays_that_do_not_fit_are_named(tmp_path, kind, changes, message):
    made = arrays(**changes)
    if "transpose" in message or "30x30" in message:
        made["test_images"] = made["train_images"][:5]
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, kind, made)
    assert "mine." in str(caught.value) and "\n" not in str(caught.value)
    assert not list((tmp_path / "data").glob("*"))


def test_images_of_mixed_sizes_are_refused_without_unpickling(tmp_path):
    with pytest.raises(DataError, match=r"mine.npz: train_images holds Python objects, as it does when images differ"):
        read(tmp_path, "npz", arrays(train_images=mixed_sizes()))


def test_statistics_of_large_images_are_those_of_numpy(tmp_path):
    rng = np.random.default_rng(3)
    images = rng.integers(0, rng.integers(1, 256, (40, 1, 1, 3)), (40, 224, 224, 3), dtype=np.uint8)
    made = arrays(train_images=images, train_labels=np.arange(40) % 3, test_images=images[:5])
    file = read(tmp_path, "npz", made)
    np.testing.assert_allclose(file.mean, (images / 255).mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(file.std, (images / 255).std(axis=(0, 1, 2)), rtol=1e-6)


def test_an_npz_that_holds_no_array_is_named(tmp_path):
    config = config_of(tmp_path, "npz")
    write_arrays(config.file_path, arrays(test_images=None))
    with zipfile.ZipFile(config.file_path, "a") as file:
        file.writestr("test_images", "text")
    with pytest.raises(DataError, match=r"test_images cannot be read \(it is not an array\); write it again"):
        prepare(config, silent)


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('the file ran code')",)


def test_an_npz_that_would_run_code_is_refused(tmp_path):
    labels = np.empty(12, object)
    labels[:] = [Evil() for _ in range(12)]
    with pytest.raises(DataError, match="train_labels holds Python objects"):
        read(tmp_path, "npz", arrays(train_labels=labels))


@pytest.mark.parametrize("kind", ["npz", "hdf5"])
def test_a_file_that_is_missing_or_of_another_kind_is_named(tmp_path, kind):
    config = config_of(tmp_path, kind)
    with pytest.raises(DataError, match=f"there is no file {config.file_path}"):
        prepare(config, silent)
    config.file_path.write_bytes(b"no arrays")
    with pytest.raises(DataError, match=r"mine\.(npz is not a file of numpy.savez|h5 is not a readable HDF5 file)"):
        prepare(config, silent)


@pytest.mark.parametrize("kind", ["npz", "hdf5"])
def test_a_truncated_file_is_named(tmp_path, kind):
    config = config_of(tmp_path, kind)
    write_arrays(config.file_path, arrays())
    content = config.file_path.read_bytes()
    config.file_path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"mine\."):
        prepare(config, silent)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "npz"}, "data.file is None; expected a path, which data.name npz needs"),
        ({"name": "digits", "file": "x.npz"}, "data.file is 'x.npz'; expected null, since data.name digits"),
        ({"name": "npz", "file": "x.npz", "size": 30}, "data.size is 30; expected a multiple of 4"),
        ({"partition": "file"}, "data.partition_file is None; expected a path, which data.partition file needs"),
        ({"partition_file": "x.csv"}, "data.partition_file is 'x.csv'; expected null, since data.partition homo"),
    ],
)
def test_a_file_is_given_exactly_where_it_is_read(fields, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(**fields)


def test_an_image_file_of_this_package_is_used_as_it_is(tmp_path):
    made = prepare(DataConfig(name="digits", dir=str(tmp_path / "made")), silent)
    kept = made.path.rename(tmp_path / "study.h5")
    kept.chmod(0o444)
    before = kept.stat()
    config = DataConfig(name="hdf5", file=str(kept), dir=str(tmp_path / "nowhere"))
    file = prepare(config, silent)
    assert file.path == kept == file_path(config) and file.digest == made.digest
    assert not (tmp_path / "nowhere").exists()
    assert (before.st_mtime_ns, before.st_ino) == (kept.stat().st_mtime_ns, kept.stat().st_ino)
    larger = prepare(DataConfig(name="hdf5", file=str(kept), dir=str(tmp_path / "data"), size=16), silent)
    assert larger.image_shape == (16, 16, 1) and np.array_equal(larger.labels("test"), made.labels("test"))


def test_a_changed_image_file_of_the_users_own_is_not_to_be_deleted(tmp_path):
    made = prepare(DataConfig(name="digits", dir=str(tmp_path)), silent)

    def change(file):
        file["train/label"][0] = (file["train/label"][0] + 1) % 10

    damage(made.path, change)
    with pytest.raises(DataError, match=r"digits.h5 was changed.*; write it again"):
        prepare(DataConfig(name="hdf5", file=str(made.path), dir=str(tmp_path)), silent)
