"""Class folders of pictures: what is read, resized and refused. The pictures are made here."""

import numpy as np
import pytest
from PIL import Image

from gkt_mpi.data.data_config import DataConfig
from gkt_mpi.data.datasets import file_path, look_for, prepare
from gkt_mpi.errors import DataError
from tests.unit.data.made import silent, write_folder


def read(root, **fields):
    return prepare(DataConfig(name="folder", dir=str(root), **fields), silent)


def refusal(root, **fields):
    with pytest.raises(DataError) as caught:
        read(root, **fields)
    assert "\n" not in str(caught.value) and not list(root.glob("*.h5")) and not list(root.glob(".folder*"))
    return str(caught.value)


@pytest.mark.parametrize(("mode", "suffix"), [("RGB", "png"), ("L", "png"), ("RGB", "jpg"), ("L", "JPEG")])
def test_pictures_are_read_pixel_for_pixel_by_class_and_name(tmp_path, mode, suffix):
    pixels = write_folder(tmp_path, mode=mode, suffix=suffix)
    file = read(tmp_path)
    assert (file.classes, file.image_shape) == (["cat", "dog"], (8, 12, 1 if mode == "L" else 3))
    for split in ("train", "test"):
        assert file.labels(split).tolist() == [0, 0, 0, 1, 1, 1]
        expected = np.stack([pixels[split, name, k] for name in file.classes for k in range(3)])
        assert np.array_equal(file.images(split, np.arange(6)), expected.reshape(6, *file.image_shape))


def test_one_colour_picture_makes_all_of_them_colour(tmp_path):
    write_folder(tmp_path, mode="L")
    Image.new("RGB", (12, 8), (200, 10, 10)).save(tmp_path / "test/dog/9.png")
    file = read(tmp_path)
    grey = file.images("train", np.array([0]))[0]
    assert file.image_shape == (8, 12, 3) and np.array_equal(grey[..., 0], grey[..., 2])
    assert file.images("test", np.array([6]))[0, 0, 0].tolist() == [200, 10, 10]


def test_size_resizes_the_shorter_side_and_crops_the_centre(tmp_path):
    """A picture twice as wide: left red, centre green, right blue, each quarter, half, quarter."""
    write_folder(tmp_path, size=(30, 21))
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:, :16, 0] = picture[:, 16:48, 1] = picture[:, 48:, 2] = 255
    Image.fromarray(picture).save(tmp_path / "train/cat/wide.png")
    Image.fromarray(picture.transpose(1, 0, 2)).save(tmp_path / "train/cat/tall.png")
    file = read(tmp_path, size=16)
    assert file.image_shape == (16, 16, 3)
    for row in (3, 4):  # tall and wide follow 0, 1 and 2
        image = file.images("train", np.array([row]))[0]
        assert (image[2:-2, 2:-2] == [0, 255, 0]).all()
    assert file.path.name == "folder-resized-16x16.h5" and file.path != file_path(DataConfig("folder", str(tmp_path)))


def test_a_picture_of_the_right_size_is_not_changed_by_size(tmp_path):
    pixels = write_folder(tmp_path, size=(16, 16))
    assert np.array_equal(read(tmp_path, size=16).images("train", np.array([4]))[0], pixels["train", "dog", 1])


def test_a_picture_from_a_camera_is_turned_upright(tmp_path):
    write_folder(tmp_path, size=(8, 8))
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    Image.fromarray(picture).save(tmp_path / "train/cat/0.png", exif=exif)
    assert np.array_equal(read(tmp_path).images("train", np.array([0]))[0], picture[::-1])


def test_a_changed_picture_is_read_again(tmp_path):
    write_folder(tmp_path)
    read(tmp_path)
    Image.new("RGB", (12, 8), (1, 2, 3)).save(tmp_path / "test/dog/2.png")
    assert (read(tmp_path).images("test", np.array([5]))[0] == [1, 2, 3]).all()


def test_a_picture_that_moves_to_another_class_changes_its_label(tmp_path):
    write_folder(tmp_path)
    assert read(tmp_path).labels("train").tolist() == [0, 0, 0, 1, 1, 1]
    (tmp_path / "train/cat/2.png").rename(tmp_path / "train/dog/-.png")  # in the same place of all files by name
    assert read(tmp_path).labels("train").tolist() == [0, 0, 1, 1, 1, 1]


def other_size(root):
    Image.new("RGB", (16, 8)).save(root / "train/dog/1.png")


def truncated(root):
    content = (root / "train/dog/1.png").read_bytes()
    (root / "train/dog/1.png").write_bytes(content[:-60])


def not_a_picture(root):
    (root / "test/dog/1.png").write_bytes(b"<html>")


def unreadable(root):
    (root / "train/dog/1.png").unlink()
    (root / "train/dog/1.png").symlink_to("/proc/self/mem")


def sixteen_bits(root):
    Image.fromarray(np.full((8, 12), 40_000, np.uint16)).save(root / "train/dog/1.png")


def empty_folder(root):
    for path in (root / "train/dog").iterdir():
        path.unlink()


def only_other_files(root):
    for path in (root / "train/dog").iterdir():
        path.rename(path.with_suffix(".txt"))


def one_bitmap(root):
    (root / "train/dog/1.png").rename(root / "train/dog/1.bmp")


def class_in_test_alone(root):
    (root / "train/dog").rename(root / "dog")


def no_test(root):
    (root / "test").rename(root / "val")


def no_train(root):
    (root / "train").rename(root / "training")


def one_class(root):
    (root / "train/dog").rename(root / "train-dog")
    (root / "test/dog").rename(root / "test-dog")


def no_class(root):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (root / split / name).rename(root / f"{split}-{name}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_size, "train/dog/1.png has 16x8 pixels, but others have 12x8; set data.size"),
        (truncated, "train/dog/1.png is not a readable image: "),
        (not_a_picture, "test/dog/1.png is not a readable image: cannot identify image file"),
        (unreadable, "train/dog/1.png is not a readable image: [Errno 5]"),
        (sixteen_bits, "train/dog/1.png has pixels of mode I;16; expected 8 bits"),
        (empty_folder, "train/dog holds no PNG or JPEG file; add some, or delete the class everywhere"),
        (only_other_files, "train/dog holds no PNG or JPEG file, only 0.txt and 2 more"),
        (one_bitmap, "train/dog holds 1 image that is not PNG or JPEG, 1.bmp first"),
        (class_in_test_alone, "test has a folder dog that "),
        (no_test, "val: rename it to test"),
        (no_train, "train; expected pictures "),
        (one_class, "has 1 class (cat); expected 2 to"),
        (no_class, "has 0 classes; expected 2 to"),
    ],
    ids=lambda its: getattr(its, "__name__", None),
)
def test_a_folder_that_does_not_fit_is_one_line_naming_the_place(tmp_path, change, message):
    write_folder(tmp_path)
    change(tmp_path)
    assert message in refusal(tmp_path)


def test_a_size_that_the_models_cannot_take_is_refused_before_anything_is_written(tmp_path):
    write_folder(tmp_path, size=(30, 21))
    assert "images of 21x30 do not fit the models" in (text := refusal(tmp_path)) and "set data.size" in text


def test_class_folders_may_have_any_name(tmp_path):
    write_folder(tmp_path)
    for split in ("train", "test"):
        (tmp_path / split / "dog").rename(tmp_path / split / "chien \udcff, grand")  # a byte that is not UTF-8
    file = read(tmp_path)
    assert len(file.classes) == 2 and read(tmp_path).digest == file.digest


def test_a_class_without_test_pictures_is_a_note(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "test/dog").rename(tmp_path / "away")
    assert read(tmp_path).notes == ["1 of 2 classes has no test images for evaluation: dog"]


def test_the_check_before_a_run_says_what_will_be_created(tmp_path):
    write_folder(tmp_path)
    assert look_for(DataConfig("folder", str(tmp_path))) == f"{tmp_path}/folder.h5 will be created when the run begins"


def test_tiny_imagenet_is_read_in_its_published_layout(tmp_path):
    root, rng = tmp_path / "tiny-imagenet-200", np.random.default_rng(0)
    classes = ["n01443537", "n02094433"]
    (root / "val/images").mkdir(parents=True)
    (root / "wnids.txt").write_text("\n".join(reversed(classes)))
    for name in classes:
        (root / "train" / name / "images").mkdir(parents=True)
        for k in range(2):
            picture = Image.fromarray(rng.integers(0, 256, (64, 64), dtype=np.uint8))  # grey, as some of them are
            picture.save(root / "train" / name / f"images/{name}_{k}.JPEG")
    lines = []
    for k, name in enumerate([classes[1], classes[0], classes[1]]):
        Image.new("RGB", (64, 64), (80 * k,) * 3).save(root / f"val/images/val_{k}.JPEG")
        lines.append(f"val_{k}.JPEG\t{name}\t0\t0\t62\t62")
    (root / "val/val_annotations.txt").write_text("\n".join(lines))
    config = DataConfig("tiny_imagenet", str(tmp_path))
    file = prepare(config, silent)
    assert (file.classes, file.image_shape) == (classes, (64, 64, 3))
    assert (file.labels("train").tolist(), file.labels("test").tolist()) == ([0, 0, 1, 1], [1, 0, 1])
    assert file.images("test", np.arange(3)).mean(axis=(1, 2, 3)).tolist() == [0, 80, 160]
    (root / "val/val_annotations.txt").unlink()
    (root / "val/val_annotations.txt").mkdir()
    with pytest.raises(DataError, match="val_annotations.txt cannot be read: Is a directory"):
        prepare(config, silent)
    (root / "val/val_annotations.txt").rmdir()
    (root / "val/val_annotations.txt").write_text("val_0.JPEG\tn00000000\t0\t0\t62\t62\n")
    with pytest.raises(DataError, match="val_annotations.txt, line 1: expected FILE, tab and a class of train"):
        prepare(config, silent)
