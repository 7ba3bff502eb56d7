import numpy as np
import pytest
from PIL import Image

from gkt_mpi.data.data_config import DataConfig
from gkt_mpi.data.datasets import prepare
from gkt_mpi.errors import DataError
from tests.unit.data.made import silent


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


def test_a_png_of_another_size_is_named(tmp_path):
    folder = write_cinic10(tmp_path)
    Image.fromarray(np.zeros((31, 32, 3), np.uint8)).save(folder / "train/bird/1.png")
    with pytest.raises(DataError, match=r"1\.png has 32x31 pixels"):
        prepare(DataConfig(name="cinic10", dir=str(folder)), silent)


def test_a_broken_png_is_named(tmp_path):
    (write_cinic10(tmp_path) / "train/bird/bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"bad\.png"):
        prepare(DataConfig(name="cinic10", dir=str(tmp_path)), silent)
    assert not list(tmp_path.glob("*cinic10*"))  # no partial file is left
