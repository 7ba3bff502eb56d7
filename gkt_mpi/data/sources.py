"""Sources of images: a `DataSource` for each data set, whose function `open` returns a `Source`.

A source reports whether its files exist (`missing` states what was not found and how to get it) and when they last
changed; only `read` opens them. Every function takes the data folder, whether downloads are allowed, and the settings
of synthetic images, and uses those that apply to it.
"""

import contextlib
import gzip
import hashlib
import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gkt_mpi.data.augment import Augmentation, DefaultAugmentation, paper_augmentation
from gkt_mpi.data.pickled import read_pickle
from gkt_mpi.data.torchvision_import import import_torchvision_datasets
from gkt_mpi.errors import DataError, require
from gkt_mpi.lookup import Lookup, ModuleAttribute
from gkt_mpi.seeding import numpy_generator

Statistics = tuple[Any, Any]  # mean and standard deviation of each channel, from 0 to 1

# File name extensions of pictures that CINIC-10, which has only PNG files, does not contain.
_OTHER_IMAGES = {".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"}


@dataclass(frozen=True)
class DataSize:
    """Number of training images and classes of a data set, and the shape of an image."""

    train: int
    classes: int
    image_shape: tuple[int, int, int]  # height, width, channels


@dataclass(frozen=True)
class SyntheticConfig:
    """Size of the synthetic data set: images generated from a seed, with learnable classes."""

    train: int = 2000
    """Training images."""
    test: int = 500
    """Test images."""
    size: int = 32
    """Height and width in pixels; a multiple of 4, at least 8."""
    classes: int = 10
    """Number of classes; at least 2."""
    seed: int = 0
    """Seed of the images (the run's own seed does not affect them)."""

    def __post_init__(self) -> None:
        require(self.train >= 1, "data.synthetic.train", self.train, "at least 1")
        require(self.test >= 1, "data.synthetic.test", self.test, "at least 1")
        require(self.classes >= 2, "data.synthetic.classes", self.classes, "at least 2")
        require(self.size >= 8 and self.size % 4 == 0, "data.synthetic.size", self.size, "a multiple of 4, at least 8")
        require(self.seed >= 0, "data.synthetic.seed", self.seed, "0 or more")

    @property
    def data_size(self) -> DataSize:
        """The size of the data set."""
        return DataSize(self.train, self.classes, (self.size, self.size, 3))


@dataclass(frozen=True)
class Split:
    """One part of a data set: its labels, and `images(first, last)`, uint8 (last - first, H, W, channels)."""

    labels: np.ndarray
    images: Callable[[int, int], np.ndarray]


@dataclass(frozen=True)
class Decoded:
    """An opened data set."""

    classes: list[str]
    splits: dict[str, Split]
    checksums: str = "official"  # or "other": the archive differs from the published one


@dataclass(frozen=True)
class Source:
    """A data set that has not been opened."""

    origin: str
    read: Callable[[], Decoded]
    missing: str = ""  # why it cannot be read, and what to do; empty if it can be read
    fingerprint: str = ""  # changes when the files change; empty if they are gone or cannot change


@dataclass(frozen=True)
class DataSource:
    """The specification of a data set, known before it is opened."""

    name: str  # in configurations
    open: Callable[[Path, bool, SyntheticConfig], Source]
    """Returns the source, given the data folder, whether downloads are allowed, and the settings of synthetic
    images."""
    title: str = ""
    """Its name in reports; empty for `name`."""
    size: DataSize | None = None
    """Its published size; None if there is none."""
    statistics: Statistics | None = None
    """Mean and standard deviation; None for those computed from the training images."""
    augmentation: DefaultAugmentation = paper_augmentation
    """The default augmentation of training images, given their height and width in pixels."""
    can_download: bool = False
    """Whether `open` can download it."""
    is_synthetic: bool = False
    """Whether its images are generated from `data.synthetic`."""

    @property
    def label(self) -> str:
        """Its name in reports."""
        return self.title or self.name

    def size_with(self, made: SyntheticConfig) -> DataSize | None:
        """Return its size, also for synthetic images; None if it is not known in advance."""
        return made.data_size if self.is_synthetic else self.size

    def file_stem(self, made: SyntheticConfig) -> str:
        """Return the name of its HDF5 file, without the suffix; synthetic images have one per setting."""
        if not self.is_synthetic:
            return self.name
        return f"{self.name}-{made.train}-{made.test}-{made.size}x{made.size}-{made.classes}-{made.seed}"


def _array_split(labels: np.ndarray, images: np.ndarray) -> Split:
    if len(labels) != len(images):
        raise ValueError(f"{len(images)} images but {len(labels)} labels")
    return Split(np.asarray(labels), lambda first, last: images[first:last])


def digits(root: Path, download: bool, made: SyntheticConfig) -> Source:
    """Return the 1,797 handwritten digits of 8x8 that scikit-learn ships (UCI, Alpaydin and Kaynak 1998).

    A fixed fifth of the images is the test set. Pixels 0..16 become 0..255; one channel.
    """

    def read() -> Decoded:
        """Unpack the packaged file."""
        packed = resources.files("gkt_mpi.data").joinpath("digits.csv.gz").read_bytes()
        table = np.loadtxt(io.StringIO(gzip.decompress(packed).decode()), delimiter=",")
        images = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
        labels = table[:, -1].astype(np.int64)
        order = numpy_generator(0, "digits-test-split").permutation(len(labels))
        test, train = np.split(order, [round(0.2 * len(labels))])
        splits = {
            "train": _array_split(labels[train], images[train]),
            "test": _array_split(labels[test], images[test]),
        }
        return Decoded([str(digit) for digit in range(10)], splits)

    return Source("embedded", read)


def _crop(image_size: int) -> Augmentation:
    """Return a crop only: a mirrored digit is another sign, and a square of half its width hides it."""
    return Augmentation(crop_padding=1)


DIGITS = DataSource("digits", digits, size=DataSize(1438, 10, (8, 8, 1)), augmentation=_crop)


def synthetic(root: Path, download: bool, made: SyntheticConfig) -> Source:
    """Return images generated from a seed, in any size, learnable but not by matching pixel templates.

    A class is a smooth random colour pattern; an image is its class's pattern, shifted by up to a quarter of the size,
    with random contrast and noise.
    """

    def read() -> Decoded:
        """Generate all images from the seed."""
        rng = numpy_generator(made.seed, "synthetic-patterns")
        coarse = rng.normal(size=(made.classes, 4, 4, 3))
        spread = np.kron(coarse, np.ones((1, made.size // 4, made.size // 4, 1)))
        smooth = sum(np.roll(spread, k, axis) for axis in (1, 2) for k in range(-made.size // 8, made.size // 8 + 1))
        patterns = smooth / np.std(smooth, axis=(1, 2, 3), keepdims=True)

        def split(name: str, count: int) -> Split:
            """Return `count` images, equally many of each class, generated block by block."""
            labels = numpy_generator(made.seed, f"synthetic-{name}-labels").permutation(np.arange(count) % made.classes)

            def images(first: int, last: int) -> np.ndarray:
                """Return images `first` to `last`, uint8 (n, size, size, 3)."""
                noise_rng = numpy_generator(made.seed, f"synthetic-{name}-images", first)
                shift = noise_rng.integers(-made.size // 4, made.size // 4 + 1, (last - first, 2))
                where = np.arange(made.size)
                rows = (where[None, :] + shift[:, :1]) % made.size
                columns = (where[None, :] + shift[:, 1:]) % made.size
                clean = patterns[labels[first:last, None, None], rows[:, :, None], columns[:, None, :]]
                contrast = noise_rng.uniform(25, 60, (last - first, 1, 1, 1))
                pixels = 128 + contrast * clean + noise_rng.normal(0, 25, clean.shape)
                return pixels.clip(0, 255).astype(np.uint8)

            return Split(labels, images)

        splits = {"train": split("train", made.train), "test": split("test", made.test)}
        return Decoded([str(k) for k in range(made.classes)], splits)

    return Source(f"synthetic, seed {made.seed}", read)


SYNTHETIC = DataSource("synthetic", synthetic, is_synthetic=True)


def cifar10(root: Path, download: bool, made: SyntheticConfig) -> Source:
    """Return CIFAR-10 from `root`/cifar-10-batches-py, the archive's own layout."""
    files = {"train": [f"data_batch_{k}" for k in range(1, 6)], "test": ["test_batch"], "meta": ["batches.meta"]}
    return _cifar("cifar10", "CIFAR10", root, "cifar-10-batches-py", files, "labels", "label_names", download)


CIFAR10 = DataSource(
    "cifar10",
    cifar10,
    title="CIFAR-10",
    size=DataSize(50_000, 10, (32, 32, 3)),
    statistics=((0.49140, 0.48216, 0.44653), (0.24703, 0.24349, 0.26159)),
    can_download=True,
)


def cifar100(root: Path, download: bool, made: SyntheticConfig) -> Source:
    """Return CIFAR-100 with its fine labels from `root`/cifar-100-python, the archive's own layout."""
    files = {"train": ["train"], "test": ["test"], "meta": ["meta"]}
    return _cifar("cifar100", "CIFAR100", root, "cifar-100-python", files, "fine_labels", "fine_label_names", download)


CIFAR100 = DataSource(
    "cifar100",
    cifar100,
    title="CIFAR-100",
    size=DataSize(50_000, 100, (32, 32, 3)),
    statistics=((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    can_download=True,
)


def _cifar(
    name: str,
    torchvision_class: str,
    root: Path,
    folder_name: str,
    files: dict[str, list[str]],
    label_key: str,
    names_key: str,
    download: bool,
) -> Source:
    folder = root if (root / files["meta"][0]).is_file() else root / folder_name
    if download and not folder.is_dir():
        _download(torchvision_class, folder)
    paths = [folder / file for part in files.values() for file in part]
    absent = [path for path in paths if not path.is_file()]
    if absent:
        missing = (
            f"{name} was not found: there is no {absent[0]}{_beside(folder)}. Either add --data.download true on a "
            f"machine with a network, or unpack the archive 'python version' from the data set's home page into {root}"
        )
        return Source(str(folder), _nothing, missing=missing)

    def split(part: str, num_classes: int) -> Split:
        """Return the images and labels in a part's pickled batches."""
        batches = [_batch(folder / file, label_key, num_classes) for file in files[part]]
        planar = np.concatenate([rows for rows, _ in batches]).reshape(-1, 3, 32, 32)
        return _array_split(np.concatenate([labels for _, labels in batches]), planar.transpose(0, 2, 3, 1))

    def read() -> Decoded:
        """Read the archive; torchvision's checksums tell whether it is the published one."""
        dataset_class = getattr(import_torchvision_datasets(), torchvision_class)
        published = [*dataset_class.train_list, *dataset_class.test_list]
        official = all(_md5(folder / file) == md5 for file, md5 in published)
        classes = _class_names(folder / files["meta"][0], names_key)
        splits = {part: split(part, len(classes)) for part in ("train", "test")}
        return Decoded(classes, splits, "official" if official else "other")

    return Source(str(folder), read, fingerprint=_fingerprint(paths))


def _batch(path: Path, label_key: str, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the images uint8 (N, 3072) and labels int64 (N,) of one file. Raises `DataError` with the problem."""
    entries = read_pickle(path)
    rows, labels = _entry(path, entries, "data"), _entry(path, entries, label_key)
    if not (isinstance(rows, np.ndarray) and rows.dtype == np.uint8 and rows.shape[1:] == (3 * 32 * 32,)):
        found = f"{rows.dtype} {rows.shape}" if isinstance(rows, np.ndarray) else type(rows).__name__
        raise _broken(path, f"has data of {found}; expected uint8 (N, 3072)")
    numbers = labels.tolist() if isinstance(labels, np.ndarray) else labels
    if not (isinstance(numbers, list) and all(type(number) is int for number in numbers)):
        raise _broken(path, f"has {label_key} that are not integers")
    if len(rows) != len(numbers):
        raise _broken(path, f"has {len(rows)} images but {len(numbers)} labels")
    if numbers and not 0 <= min(numbers) <= max(numbers) < num_classes:
        raise _broken(path, f"has labels outside 0..{num_classes - 1}, which are the classes of the archive")
    return rows, np.array(numbers, np.int64)


def _class_names(path: Path, names_key: str) -> list[str]:
    """Return the class names in an archive's own list. Raises `DataError` with the problem."""
    names = _entry(path, read_pickle(path), names_key)
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise _broken(path, f"has {names_key} that are not a list of text")
    return names


def _entry(path: Path, entries: dict[str, Any], key: str) -> object:
    """Return a file's entry for a key. Raises `DataError` if it is missing."""
    if key not in entries:
        there = f", only {', '.join(map(repr, entries))}"[:200] if entries else "; it is empty"
        raise _broken(path, f"has no {key!r}{there}")
    return entries[key]


def _broken(path: Path, what: str) -> DataError:
    return DataError(f"{path} {what}; get the archive again")


def _nothing() -> Decoded:
    raise AssertionError("a missing data set was read")


def _download(torchvision_class: str, folder: Path) -> None:
    """Download and unpack an archive, which creates `folder`. Raises `DataError`, also naming what was not found."""
    looked_for = f"there is no {folder}{_beside(folder)}"
    if folder.parent.is_file():
        raise DataError(looked_for)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            getattr(import_torchvision_datasets(), torchvision_class)(folder.parent, download=True)
    except (OSError, RuntimeError, tarfile.TarError) as error:
        what = f"the download of {torchvision_class} into {folder.parent}"
        raise DataError(f"{looked_for}, and {what} failed: {error}") from error


def _beside(folder: Path) -> str:
    """Return a hint for a missing data folder: a tar file of it, or the folder one level up."""
    root = folder.parent
    archives = [root] if root.is_file() else sorted(root.glob(folder.name.replace("batches-py", "python") + "*.tar*"))
    if archives and ".tar" not in archives[0].name:
        return f", since {root} is a file; expected the folder of the data"
    if archives:
        home = archives[0].parent
        into = home / folder.name if folder.name == "CINIC-10" else home
        then = f", then set data.dir (DATA_DIR) to {home}" if archives[0] == root else ""
        return f", but {archives[0]}; unpack it: mkdir -p {into} && tar -xf {archives[0]} -C {into}{then}"
    if (root.parent / folder.name).is_dir() and root.name != folder.name:
        return f", but {root.parent / folder.name} is there: set data.dir (DATA_DIR) to {root.parent}"
    return ""


def cinic10(root: Path, download: bool, made: SyntheticConfig) -> Source:
    """Return CINIC-10 from its folders of PNG files, `root`/CINIC-10/{train,valid,test}/CLASS/*.png.

    `root` itself may also be the folder that holds train, valid and test, as the archive unpacks.
    """
    splits = ("train", "valid", "test")
    folder = root if (root / "train").is_dir() else root / "CINIC-10"
    absent = [str(folder / split) for split in splits if not (folder / split).is_dir()]
    if absent:
        missing = (
            f"cinic10 was not found: there is no {absent[0]}{_beside(folder)}. Either unpack the archive "
            f"CINIC-10.tar.gz (Edinburgh DataShare, doi 10.7488/ds/2448) into {root / 'CINIC-10'}, or set data.dir to "
            f"the folder that has it"
        )
        return Source(str(folder), _nothing, missing=missing)
    classes = _class_folders(folder / "train")

    def read() -> Decoded:
        """Read the folders; images are decoded on demand."""
        return Decoded(classes, {split: _png_split(folder / split, classes) for split in splits})

    class_folders = [folder / split / name for split in splits for name in classes]
    fingerprint = _fingerprint([path for path in class_folders if path.is_dir()])
    return Source(str(folder), read, fingerprint=fingerprint)


CINIC10 = DataSource(
    "cinic10",
    cinic10,
    title="CINIC-10",
    size=DataSize(90_000, 10, (32, 32, 3)),
    statistics=((0.47890, 0.47228, 0.43047), (0.24206, 0.23828, 0.25875)),
)


def _class_folders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, ascending, without hidden ones."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _png_files(folder: Path) -> list[Path]:
    """Return the pictures of a class, by name. Raises `DataError` if there are none, or files of another kind."""
    if not folder.is_dir():
        raise DataError(f"there is no {folder}, but {folder.parent.parent / 'train' / folder.name}; get it again")
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    other = [path.name for path in files if path.suffix.lower() in _OTHER_IMAGES]
    if other:
        number = "1 image that is" if len(other) == 1 else f"{len(other)} images that are"
        raise DataError(
            f"{folder} holds {number} not PNG, {other[0]} first; every image of CINIC-10 is PNG: convert or delete them"
        )
    pictures = [path for path in files if path.suffix.lower() == ".png"]
    if not pictures:
        raise DataError(f"{folder} holds no PNG file; get it again, or delete the class everywhere")
    return pictures


def _png_split(folder: Path, classes: list[str]) -> Split:
    from PIL import Image

    unknown = sorted({*_class_folders(folder)} - {*classes})
    if unknown:
        raise DataError(f"{folder} has a folder {unknown[0]} that {folder.parent / 'train'} lacks; delete or add it")
    files = [(path, label) for label, name in enumerate(classes) for path in _png_files(folder / name)]

    def decode(path: Path) -> np.ndarray:
        """Return a picture, uint8 (height, width, 3). Raises `DataError` naming the file if it is not one."""
        try:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"{path} is not a readable image: {error}; delete it or get it again") from error
        if pixels.shape != (32, 32, 3):
            raise DataError(f"{path} has {pixels.shape[1]}x{pixels.shape[0]} pixels; every image of CINIC-10 has 32x32")
        return pixels

    def images(first: int, last: int) -> np.ndarray:
        return np.stack([decode(path) for path, _ in files[first:last]])

    return Split(np.array([label for _, label in files]), images)


def _md5(path: Path) -> str:
    if not path.is_file():
        return ""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _fingerprint(paths: list[Path]) -> str:
    """Return a digest of the names, sizes and modification times of files or folders."""
    digest = hashlib.sha256()
    for path in paths:
        if path.exists():
            status = path.stat()
            digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


DATA_SOURCES = Lookup("data.name", DataSource, DIGITS, CIFAR10, CIFAR100, CINIC10, SYNTHETIC)

if TYPE_CHECKING:
    DataName = str
else:
    DataName = Literal[tuple(DATA_SOURCES)] | ModuleAttribute
