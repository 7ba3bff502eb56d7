"""Data sets, each decoded once into one HDF5 file from which every rank reads its own rows.

    /SPLIT/image  uint8 (N, H, W, channels), contiguous, so that rows are read through a memory map
    /SPLIT/label  int64 (N,)                 SPLIT is train, test, and for CINIC-10 also valid
    attributes    classes (names), mean and std (per channel, of pixels scaled to 0..1), origin, checksums,
                  digest (of all of the above except the latter two: digest.py)

The file is stored beside the archives, in `data.dir`. Rank 0 creates it before training (`prepare`); its sources
are in `sources.py`.
"""

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np

from gkt_mpi.data import digest
from gkt_mpi.data.augment import AugmentName
from gkt_mpi.data.hdf5 import Plan, plan
from gkt_mpi.data.partition import PARTITIONS, PartitionName
from gkt_mpi.data.sources import DATA_SOURCES, DataName, Source, Statistics, SyntheticConfig
from gkt_mpi.errors import DataError, FullDiskError, expand, require

FORMAT = 2  # incremented when the layout of the HDF5 file changes; older files are then replaced
_MAX_CLASSES = 32767  # labels are sent as int16
_CHUNK = digest.ROWS  # images decoded and written at a time


@dataclass(frozen=True)
class DataConfig:
    """The data set, and the distribution of its training images over the clients."""

    name: DataName = "cifar10"
    """Data set. digits is included in the package; synthetic is generated from a seed; the others are read from dir."""
    dir: str = "data"
    """Folder of the data sets' archives, and of the HDF5 file made from them; ~ is expanded."""
    partition: PartitionName = "homo"
    """homo: equal, shuffled. hetero: every class distributed by Dirichlet(alpha), as in the paper. shards:
    classes_per_client classes each. quantity: equal class mix, sizes by Dirichlet(alpha)."""
    alpha: float = 0.5
    """Concentration of the Dirichlet distribution of hetero and quantity; above 0, smaller is more skewed."""
    classes_per_client: int = 2
    """Classes that each client holds with partition shards; at least 1."""
    augment: AugmentName = "auto"
    """Augmentation of training images. paper: random crop, horizontal flip and Cutout. crop_flip: without Cutout. none:
    no augmentation. auto: as in the paper, for digits crops only."""
    download: bool = False
    """Download CIFAR-10 or CIFAR-100 if the archive is missing."""
    limit: int | None = None
    """Use this many training images, drawn from the seed; null for all."""
    test_limit: int | None = None
    """Use this many test images, drawn from the seed; null for all."""
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)

    def __post_init__(self) -> None:
        DATA_SOURCES.find(self.name)
        PARTITIONS.find(self.partition)
        require(self.alpha > 0, "data.alpha", self.alpha, "a number above 0")
        require(self.classes_per_client >= 1, "data.classes_per_client", self.classes_per_client, "at least 1")
        for name in ("limit", "test_limit"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"data.{name}", value, "at least 1, or null for all")


class ImageFile:
    """An open HDF5 file: the classes, the channel statistics, labels, and images by row."""

    def __init__(self, path: Path) -> None:
        """Open and check the file. Raises `DataError` naming the file and the problem."""
        self.path = path
        if not path.exists():
            raise DataError(f"{path}, created by rank 0, is missing; every node must see the same data.dir")
        try:
            with h5py.File(path, "r") as file:
                self.classes = [str(name) for name in file.attrs["classes"]]
                self.mean = np.asarray(file.attrs["mean"], np.float32)
                self.std = np.asarray(file.attrs["std"], np.float32)
                self.checksums = str(file.attrs["checksums"])
                self.digest = str(file.attrs.get("digest", ""))  # None in older files until `verify`
                self._labels = {split: file[split]["label"][:] for split in file}
                self._images = {split: _map_images(path, file[split]["image"]) for split in file}
            self._check()
        except DataError:
            raise
        except Exception as error:  # a damaged HDF5 file can raise almost any exception
            raise DataError(
                f"{path} is not an image file of this package ({error}); delete it to create it again"
            ) from error
        self._labels = {split: labels.astype(np.int64) for split, labels in self._labels.items()}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        height, width, channels = self._images["train"].shape[1:]
        return height, width, channels

    def verify(self) -> None:
        """Read everything, and raise `DataError` if it differs from what the file was created with."""
        arrays = {f"{split}/image": images for split, images in self._images.items()}
        arrays |= {f"{split}/label": labels.astype("<i8") for split, labels in self._labels.items()}
        pieces = dict(zip(arrays, digest.digest_of_pieces(list(arrays.values())), strict=True))
        found = digest.digest_of_all(pieces, self.classes, (self.mean, self.std))
        if self.digest not in ("", found):
            raise DataError(
                f"{self.path} was changed: its images, labels or statistics are not those it was created with; "
                "delete it to create it again"
            )
        self.digest = found

    @property
    def notes(self) -> list[str]:
        """Notes about these images for the user before training, one line each."""
        notes = []
        for split, kind in (("train", "training images and cannot be learned"), ("test", "test images for evaluation")):
            counts = np.bincount(self.labels(split), minlength=len(self.classes))
            empty = [self.classes[k] for k in np.flatnonzero(counts == 0)]
            if empty:
                has = "classes has" if len(empty) == 1 else "classes have"
                names = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
                notes.append(f"{len(empty)} of {len(self.classes)} {has} no {kind}: {names}")
        return notes

    def labels(self, split: str) -> np.ndarray:
        """Return all labels of a split, int64 (N,)."""
        return self._labels[split]

    def images(self, split: str, rows: np.ndarray) -> np.ndarray:
        """Return a copy of the images at `rows` (int64) of a split, uint8 (len(rows), H, W, channels)."""
        return np.ascontiguousarray(self._images[split][rows])

    def _check(self) -> None:
        def expect(condition: bool, text: str) -> None:
            if not condition:
                raise DataError(f"{self.path}: {text}; delete it to create it again")

        _check_classes(str(self.path), self.classes)
        expect({"train", "test"} <= set(self._images), "/train or /test is missing")
        for split, images in self._images.items():
            labels = self._labels[split]
            expect(images.dtype == np.uint8 and images.ndim == 4, f"/{split}/image is not uint8 (N, H, W, channels)")
            expect(images.shape[1:] == self._images["train"].shape[1:], f"/{split} has other image shapes than /train")
            expect(labels.ndim == 1 and labels.dtype.kind in "iu", f"/{split}/label is not an integer array (N,)")
            expect(len(images) == len(labels) > 0, f"/{split} has {len(images)} images but {len(labels)} labels")
            in_range = labels.min() >= 0 and labels.max() < len(self.classes)
            expect(in_range, f"/{split}/label has values outside 0..{len(self.classes) - 1}")
        height, width, channels = self.image_shape
        fits = height >= 8 and width >= 8 and height % 4 == 0 and width % 4 == 0
        expect(fits, f"images of {height}x{width} do not fit the models, which need multiples of 4 from 8 up")
        fits = self.mean.shape == self.std.shape == (channels,) and bool(np.isfinite(self.mean).all())
        expect(fits and bool((self.std > 0).all()), f"mean and std do not fit images of {channels} channels")


def _check_classes(origin: str, classes: list[str]) -> None:
    """Raise `DataError` for too few classes to distinguish, or too many to number."""
    if not 2 <= len(classes) <= _MAX_CLASSES:
        number = f"1 class ({classes[0]})" if len(classes) == 1 else f"{len(classes):,} classes"
        raise DataError(f"{origin} has {number}; expected 2 to {_MAX_CLASSES:,} classes")


def _map_images(path: Path, dataset: h5py.Dataset) -> np.ndarray:
    """Map a contiguous data set into memory: random rows then cost a copy, not h5py's point selection."""
    offset = dataset.id.get_offset()
    if offset is None:
        return dataset[:]
    return np.memmap(path, dataset.dtype, "r", offset, dataset.shape)


def prepare(config: DataConfig, report: Callable[[int, int], None]) -> ImageFile:
    """Return the HDF5 file of the configured data set, created first if it is missing or out of date.

    `report(done, total)` is called while images are decoded, first with 0 done. The file is written under a temporary
    name and renamed when complete. Raises `DataError` if the data set is missing, cannot be read or written, or was
    changed after its creation.
    """
    path = file_path(config)
    try:
        data_source = DATA_SOURCES[config.name]
        source = data_source.open(path.parent, config.download, config.synthetic)
        if path.exists() and not _is_stale(path, source):
            return _verified(path)
        if source.missing:
            raise DataError(source.missing)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            _write(temporary, source, data_source.statistics, report)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        what = FullDiskError if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else DataError
        raise what(
            f"cannot create {path}: {error.strerror or error}; set data.dir to a writable folder with enough space"
        ) from error
    return ImageFile(path)


def look_for(config: DataConfig) -> ImageFile | str:
    """Return the data set's HDF5 file, or a sentence on how `prepare` will create it. Creates and downloads nothing.

    Raises `DataError` if it could not be created.
    """
    path = file_path(config)
    data_source = DATA_SOURCES[config.name]
    source = data_source.open(path.parent, False, config.synthetic)
    if path.exists() and not _is_stale(path, source):
        return _verified(path)
    if not source.missing:
        return f"{path} will be created when the run begins"
    if not (config.download and data_source.can_download):
        raise DataError(source.missing)
    return f"{config.name} will be downloaded into {path.parent} when the run begins"


def file_path(config: DataConfig) -> Path:
    """Return the path of the configured data set's HDF5 file, which may not exist yet."""
    stem = DATA_SOURCES[config.name].file_stem(config.synthetic)
    return expand(config.dir, "data.dir") / f"{stem}.h5"


def _verified(path: Path) -> ImageFile:
    file = ImageFile(path)
    file.verify()
    return file


def _is_stale(path: Path, source: Source) -> bool:
    """Whether the archives have changed since the file was created. Deleted archives do not make it stale."""
    try:
        with h5py.File(path, "r") as file:
            made_from = str(file.attrs["format"]), str(file.attrs["fingerprint"])
    except Exception:
        return not source.missing
    return made_from != (str(FORMAT), source.fingerprint) and not source.missing


def _write(path: Path, source: Source, statistics: Statistics | None, report: Callable[[int, int], None]) -> None:
    """Decode a data set into a file; without `statistics` they are computed.

    Raises `DataError` if it cannot be decoded, `OSError` if it cannot be written.
    """
    decoded = source.read()
    _check_classes(source.origin, decoded.classes)
    for name, split in decoded.splits.items():
        if len(split.labels) == 0:
            raise DataError(f"{source.origin} has no {name} images")
    total = sum(len(split.labels) for split in decoded.splits.values())
    done = 0
    report(done, total)
    arrays: dict[str, tuple[tuple[int, ...], str]] = {}
    for name, split in decoded.splits.items():
        arrays[f"{name}/label"] = (len(split.labels),), "<i8"
        arrays[f"{name}/image"] = (len(split.labels), *split.images(0, 1).shape[1:]), "|u1"
    channels = arrays["train/image"][0][-1]
    sums = np.zeros((2, channels))
    attributes = {
        "format": FORMAT,
        "classes": decoded.classes,
        "mean": np.zeros(channels),
        "std": np.zeros(channels),
        "checksums": decoded.checksums,
        "origin": source.origin,
        "fingerprint": source.fingerprint,
        "digest": "0" * 32,
    }
    pieces: dict[str, list[bytes]] = {path: [] for path in arrays}
    planned = plan(arrays, attributes)
    with open(path, "wb") as file:
        _reserve(planned, file)
        for name, split in decoded.splits.items():
            file.seek(planned.offsets[f"{name}/label"])
            labels = np.ascontiguousarray(split.labels, "<i8")
            file.write(labels.data)
            (pieces[f"{name}/label"],) = digest.digest_of_pieces([labels])
            file.seek(planned.offsets[f"{name}/image"])
            for first in range(0, len(split.labels), _CHUNK):
                chunk = np.ascontiguousarray(split.images(first, min(first + _CHUNK, len(split.labels))), np.uint8)
                file.write(chunk.data)
                pieces[f"{name}/image"].append(digest.digest_of_piece(chunk))
                if name == "train" and statistics is None:
                    pixels = chunk.reshape(-1, channels) / 255.0
                    sums += pixels.sum(axis=0), (pixels**2).sum(axis=0)
                done += len(chunk)
                report(done, total)
        mean, std = statistics or _statistics(sums, arrays["train/image"][0])
        attributes |= {"mean": np.asarray(mean), "std": np.asarray(std)}
        attributes["digest"] = digest.digest_of_all(pieces, decoded.classes, (mean, std))
        plan(arrays, attributes).write_metadata(file)  # last, so that an incomplete file is not a valid HDF5 file
        file.flush()
        os.fsync(file.fileno())


def _reserve(planned: Plan, file: BinaryIO) -> None:
    """Reserve the disk space of a file. Raises `OSError` stating the space needed."""
    try:
        planned.reserve(file)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; it needs {planned.size:,} bytes") from error


def _statistics(sums: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each channel.

    `sums`: of the values and their squares, float64 (2, channels), of images (N, H, W, channels) scaled to 0..1.
    """
    mean, square = sums / np.prod(shape[:-1])
    return mean, np.maximum(np.sqrt(np.maximum(square - mean**2, 0)), 1e-3)
