"""Where images come from: one function a data set, each returning a `Source` that can be read once.

A source knows whether its files are there (`missing` says what was looked for and how to get it), when they
last changed, and how to decode any range of images.
"""

import contextlib
import gzip
import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gkt_mpi.data.torchvision_import import import_torchvision_datasets
from gkt_mpi.errors import DataError, require
from gkt_mpi.seeding import numpy_generator

if TYPE_CHECKING:
    from gkt_mpi.data.datasets import DataConfig

# Channel statistics of the training images, as the field uses them.
_STATISTICS = {
    "cifar10": ((0.49140, 0.48216, 0.44653), (0.24703, 0.24349, 0.26159)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "cinic10": ((0.47890, 0.47228, 0.43047), (0.24206, 0.23828, 0.25875)),
}


@dataclass(frozen=True)
class SyntheticConfig:
    """Size of the synthetic data set: images made from a seed, with classes a network can learn."""

    train: int = 2000
    """Training images."""
    test: int = 500
    """Test images."""
    size: int = 32
    """Height and width in pixels; a multiple of 4, at least 8."""
    classes: int = 10
    """Number of classes; at least 2."""
    seed: int = 0
    """Seed of the images (the run's own seed does not change them)."""

    def __post_init__(self) -> None:
        require(self.train >= 1, "data.synthetic.train", self.train, "at least 1")
        require(self.test >= 1, "data.synthetic.test", self.test, "at least 1")
        require(self.classes >= 2, "data.synthetic.classes", self.classes, "at least 2")
        require(self.size >= 8 and self.size % 4 == 0, "data.synthetic.size", self.size, "a multiple of 4, at least 8")
        require(self.seed >= 0, "data.synthetic.seed", self.seed, "0 or more")


@dataclass(frozen=True)
class Split:
    """One part of a data set: its labels, and `images(first, last)`, uint8 (last - first, H, W, channels)."""

    labels: np.ndarray
    images: Callable[[int, int], np.ndarray]


@dataclass(frozen=True)
class Source:
    """A data set before it is decoded."""

    classes: list[str]
    origin: str
    read: Callable[[], dict[str, Split]]
    missing: str = ""  # why it cannot be read, and what to do; empty when it can
    fingerprint: str = ""  # changes when the files change; empty when they are gone or cannot change
    checksums: str = "official"  # or "other": the archive is not the published one
    statistics: tuple[Any, Any] | None = None  # mean and std; None: computed from the training images


def _array_split(labels: np.ndarray, images: np.ndarray) -> Split:
    return Split(np.asarray(labels), lambda first, last: images[first:last])


def digits(root: Path, config: "DataConfig") -> Source:
    """Return the 1,797 handwritten digits of 8x8 that scikit-learn ships (UCI, Alpaydin and Kaynak 1998).

    One image in five is for testing, chosen once and for all. Pixels 0..16 become 0..255; one channel.
    """

    def read() -> dict[str, Split]:
        packed = resources.files("gkt_mpi.data").joinpath("digits.csv.gz").read_bytes()
        table = np.loadtxt(io.StringIO(gzip.decompress(packed).decode()), delimiter=",")
        images = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
        labels = table[:, -1].astype(np.int64)
        order = numpy_generator(0, "digits-test-split").permutation(len(labels))
        test, train = np.split(order, [round(0.2 * len(labels))])
        return {
            "train": _array_split(labels[train], images[train]),
            "test": _array_split(labels[test], images[test]),
        }

    return Source([str(digit) for digit in range(10)], "embedded", read)


def synthetic(root: Path, config: "DataConfig") -> Source:
    """Return images that a network can learn but a pixel template cannot quite: made from a seed, any size.

    A class is a smooth random colour pattern; an image is its class's pattern, shifted by up to a quarter of
    the size, under a random contrast and noise.
    """
    made = config.synthetic

    def read() -> dict[str, Split]:
        rng = numpy_generator(made.seed, "synthetic-patterns")
        coarse = rng.normal(size=(made.classes, 4, 4, 3))
        spread = np.kron(coarse, np.ones((1, made.size // 4, made.size // 4, 1)))
        smooth = sum(np.roll(spread, k, axis) for axis in (1, 2) for k in range(-made.size // 8, made.size // 8 + 1))
        patterns = smooth / np.std(smooth, axis=(1, 2, 3), keepdims=True)

        def split(name: str, count: int) -> Split:
            labels = numpy_generator(made.seed, f"synthetic-{name}-labels").permutation(np.arange(count) % made.classes)

            def images(first: int, last: int) -> np.ndarray:
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

        return {"train": split("train", made.train), "test": split("test", made.test)}

    return Source([f"class {k}" for k in range(made.classes)], f"synthetic, seed {made.seed}", read)


def cifar10(root: Path, config: "DataConfig") -> Source:
    """Return CIFAR-10 from `root`/cifar-10-batches-py, through torchvision."""
    return _cifar("cifar10", "CIFAR10", "cifar-10-batches-py", root, config)


def cifar100(root: Path, config: "DataConfig") -> Source:
    """Return CIFAR-100 (fine labels) from `root`/cifar-100-python, through torchvision."""
    return _cifar("cifar100", "CIFAR100", "cifar-100-python", root, config)


def _cifar(name: str, torchvision_class: str, folder_name: str, root: Path, config: "DataConfig") -> Source:
    folder = root / folder_name
    if config.download and not folder.is_dir():
        _download(torchvision_class, root)
    if not folder.is_dir():
        missing = (
            f"{name} was not found: there is no {folder}. Either add --data.download true on a machine with a "
            f"network, or unpack the archive 'python version' from the data set's home page into {root}"
        )
        return Source([], str(folder), dict, missing=missing)
    dataset_class = getattr(import_torchvision_datasets(), torchvision_class)
    entries = [*dataset_class.train_list, *dataset_class.test_list]
    official = all(_md5(folder / file) == md5 for file, md5 in entries)

    class AnyArchive(dataset_class):  # type: ignore[misc, valid-type]
        """The same layout whatever the checksums: re-encoded images or a subset are read like the original."""

        train_list = [[file, None] for file, _ in dataset_class.train_list]
        test_list = [[file, None] for file, _ in dataset_class.test_list]
        meta = {**dataset_class.meta, "md5": None}

    try:
        parts = {split: AnyArchive(root, train=split == "train") for split in ("train", "test")}
    except (OSError, EOFError, KeyError, RuntimeError, ValueError) as error:
        raise DataError(f"{folder} cannot be read ({error}); delete it and get the archive again") from error
    return Source(
        parts["train"].classes,
        str(folder),
        lambda: {split: _array_split(np.asarray(part.targets), part.data) for split, part in parts.items()},
        fingerprint=_fingerprint([folder / file for file, _ in entries]),
        checksums="official" if official else "other",
        statistics=_STATISTICS[name],
    )


def _download(torchvision_class: str, root: Path) -> None:
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            getattr(import_torchvision_datasets(), torchvision_class)(root, download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"the download of {torchvision_class} into {root} failed: {error}") from error


def cinic10(root: Path, config: "DataConfig") -> Source:
    """Return CINIC-10 from its folders of PNG files, `root`/CINIC-10/{train,valid,test}/CLASS/*.png.

    `root` itself may also be the folder that holds train, valid and test, as the archive unpacks.
    """
    splits = ("train", "valid", "test")
    folder = root if (root / "train").is_dir() else root / "CINIC-10"
    absent = [str(folder / split) for split in splits if not (folder / split).is_dir()]
    if absent:
        missing = (
            f"cinic10 was not found: there is no {absent[0]}. Either unpack the archive CINIC-10.tar.gz (Edinburgh "
            f"DataShare, doi 10.7488/ds/2448) into {root / 'CINIC-10'}, or set data.dir to the folder that has it"
        )
        return Source([], str(folder), dict, missing=missing)
    classes = sorted(path.name for path in (folder / "train").iterdir() if path.is_dir())

    def read() -> dict[str, Split]:
        return {split: _png_split(folder / split, classes) for split in splits}

    class_folders = [folder / split / name for split in splits for name in classes]
    fingerprint = _fingerprint([path for path in class_folders if path.is_dir()])
    return Source(classes, str(folder), read, fingerprint=fingerprint, statistics=_STATISTICS["cinic10"])


def _png_split(folder: Path, classes: list[str]) -> Split:
    from PIL import Image

    files = [(path, label) for label, name in enumerate(classes) for path in sorted((folder / name).glob("*.png"))]
    if not files:
        raise DataError(f"{folder} holds no PNG files in folders named {', '.join(classes)}")

    def decode(path: Path) -> np.ndarray:
        try:
            with Image.open(path) as image:
                return np.asarray(image.convert("RGB"))
        except OSError as error:
            raise DataError(f"{path} is no readable image: {error}; delete it or get it again") from error

    def images(first: int, last: int) -> np.ndarray:
        return np.stack([decode(path) for path, _ in files[first:last]])

    return Split(np.array([label for _, label in files]), images)


def _md5(path: Path) -> str:
    if not path.is_file():
        return ""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _fingerprint(paths: list[Path]) -> str:
    """Return a digest of the names, sizes and times of change of files or folders."""
    digest = hashlib.sha256()
    for path in paths:
        if path.exists():
            status = path.stat()
            digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


SOURCES: dict[str, Callable[[Path, "DataConfig"], Source]] = {
    "digits": digits,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "cinic10": cinic10,
    "synthetic": synthetic,
}
