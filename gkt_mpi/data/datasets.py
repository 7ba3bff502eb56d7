"""Data sets, each decoded once into one HDF5 file from which every rank reads its own rows.

    /SPLIT/image  uint8 (N, H, W, channels), contiguous, so that rows are read through a memory map
    /SPLIT/label  int64 (N,)                 SPLIT is train, test, and for CINIC-10 also valid
    /SPLIT/owner  int64 (N,), from 0         only if the data set says whose each image is
    attributes    classes (names), mean and std (per channel, of pixels scaled to 0..1), origin, checksums,
                  digest (of all of the above except the latter two: digest.py)

The file is stored beside the archives, in `data.dir`. Rank 0 creates it before training (`prepare`, which uses
`writing.py`); its sources are in `sources.py`.
"""

import errno
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import h5py
import numpy as np

from gkt_mpi.data import digest
from gkt_mpi.data.checks import check_classes, check_image_shape
from gkt_mpi.data.data_config import DataConfig
from gkt_mpi.data.partition import PARTITIONS, natural_clients
from gkt_mpi.data.source import Source
from gkt_mpi.data.sources import DATA_SOURCES
from gkt_mpi.data.writing import FORMAT, write_image_file
from gkt_mpi.errors import ConfigError, DataError, FullDiskError
from gkt_mpi.lookup import blaming


class ImageFile:
    """An open HDF5 file: the classes, the channel statistics, labels, and images by row."""

    def __init__(self, path: Path, remedy: str = "delete it to create it again") -> None:
        """Open and check the file. Raises `DataError` naming the file, the problem and the remedy."""
        self.path, self._remedy = path, remedy
        if not path.exists():
            raise DataError(
                f"{path}, created by rank 0, is missing; every node must see the same data.dir and data.file"
            )
        try:
            with h5py.File(path, "r") as file:
                self.classes = [str(name) for name in file.attrs["classes"]]
                self.mean = np.asarray(file.attrs["mean"], np.float32)
                self.std = np.asarray(file.attrs["std"], np.float32)
                self.checksums = str(file.attrs["checksums"])
                self.digest = str(file.attrs.get("digest", ""))  # None in older files until `verify`
                self._labels = {split: file[split]["label"][:] for split in file}
                self._images = {split: _map_images(path, file[split]["image"]) for split in file}
                self._owners = {split: file[split]["owner"][:] for split in file if "owner" in file[split]}
            self._check()
        except DataError:
            raise
        except Exception as error:  # a damaged HDF5 file can raise almost any exception
            raise DataError(f"{path} is not an image file of this package ({error}); {remedy}") from error
        self._labels = {split: labels.astype(np.int64) for split, labels in self._labels.items()}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        height, width, channels = self._images["train"].shape[1:]
        return height, width, channels

    def verify(self) -> None:
        """Read everything, and raise `DataError` if it differs from what the file was created with."""
        arrays = {f"{split}/image": images for split, images in self._images.items()}
        for column, values in (("label", self._labels), ("owner", self._owners)):
            arrays |= {f"{split}/{column}": of_split.astype("<i8") for split, of_split in values.items()}
        pieces = dict(zip(arrays, digest.digest_of_pieces(list(arrays.values())), strict=True))
        found = digest.digest_of_all(pieces, self.classes, (self.mean, self.std))
        if self.digest not in ("", found):
            raise DataError(
                f"{self.path} was changed: its images, labels or statistics are not those it was created with; "
                f"{self._remedy}"
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

    def owners(self, split: str) -> np.ndarray | None:
        """Return the number of each image's owner, int64 (N,), from 0; None if the data set does not say."""
        return self._owners.get(split)

    def images(self, split: str, rows: np.ndarray) -> np.ndarray:
        """Return a copy of the images at `rows` (int64) of a split, uint8 (len(rows), H, W, channels)."""
        return np.ascontiguousarray(self._images[split][rows])

    def _check(self) -> None:
        def expect(condition: bool, text: str) -> None:
            if not condition:
                raise DataError(f"{self.path}: {text}; {self._remedy}")

        check_classes(str(self.path), self.classes)
        expect({"train", "test"} <= set(self._images), "/train or /test is missing")
        for split, images in self._images.items():
            labels = self._labels[split]
            expect(images.dtype == np.uint8 and images.ndim == 4, f"/{split}/image is not uint8 (N, H, W, channels)")
            expect(images.shape[1:] == self._images["train"].shape[1:], f"/{split} has other image shapes than /train")
            expect(labels.ndim == 1 and labels.dtype.kind in "iu", f"/{split}/label is not an integer array (N,)")
            expect(len(images) == len(labels) > 0, f"/{split} has {len(images)} images but {len(labels)} labels")
            in_range = labels.min() >= 0 and labels.max() < len(self.classes)
            expect(in_range, f"/{split}/label has values outside 0..{len(self.classes) - 1}")
        for split, owners in self._owners.items():
            fits = owners.dtype.kind in "iu" and owners.shape == self._labels[split].shape
            expect(fits, f"/{split}/owner is not an integer array (N,)")
            expect(owners.min() == 0 and owners.max() == len(np.unique(owners)) - 1, f"/{split}/owner is not 0, 1, ...")
        check_image_shape(str(self.path), self.image_shape, self._remedy)
        channels = self.image_shape[-1]
        fits = self.mean.shape == self.std.shape == (channels,) and bool(np.isfinite(self.mean).all())
        expect(fits and bool((self.std > 0).all()), f"mean and std do not fit images of {channels} channels")


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
    path, is_ready = file_path(config), _is_ready(config)
    if is_ready:
        return _verified(path, is_ready)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        source = _open(config)
        if path.exists() and not _is_stale(path, source):
            return _verified(path, is_ready)
        if source.missing:
            raise DataError(source.missing)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            statistics = DATA_SOURCES[config.name].statistics if config.size is None else None
            with blaming("data.name", config.name):
                write_image_file(temporary, source, statistics, config.size, report)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if error.filename is not None and Path(error.filename) not in (temporary, *path.parents):
            raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error
        what = FullDiskError if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else DataError
        raise what(
            f"cannot create {path}: {error.strerror or error}; set data.dir to a writable folder with enough space "
            "(links to the originals will do)"
        ) from error
    return ImageFile(path)


def look_for(config: DataConfig) -> ImageFile | str:
    """Return the data set's HDF5 file, or a sentence on how `prepare` will create it. Creates and downloads nothing.

    Raises `DataError` if it could not be created.
    """
    path, is_ready = file_path(config), _is_ready(config)
    if is_ready:
        return _verified(path, is_ready)
    try:
        source = _open(replace(config, download=False))
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error
    if path.exists() and not _is_stale(path, source):
        return _verified(path, is_ready)
    if not source.missing:
        return f"{path} will be created when the run begins"
    if not (config.download and DATA_SOURCES[config.name].can_download):
        raise DataError(source.missing)
    return f"{config.name} will be downloaded into {path.parent} when the run begins"


def known_clients(config: DataConfig) -> int | None:
    """Return the number of clients that the data decide; None if they do not, or if it is not known yet."""
    if PARTITIONS[config.partition].count is None:
        return None
    try:
        found = look_for(config)
        return natural_clients(config, found.owners("train")) if isinstance(found, ImageFile) else None
    except ConfigError:  # reported where the data are needed
        return None


def file_path(config: DataConfig) -> Path:
    """Return the path of the configured data set's HDF5 file, which may not exist yet."""
    data_source = DATA_SOURCES[config.name]
    return data_source.ready_file(config) or config.folder / f"{data_source.file_stem(config)}.h5"


def _is_ready(config: DataConfig) -> bool:
    """Whether the user's own file is used as it is."""
    return DATA_SOURCES[config.name].ready_file(config) is not None


def _open(config: DataConfig) -> Source:
    """Return the source of the configured data set; a user's own one changes with the code of its module."""
    with blaming("data.name", config.name):
        source = DATA_SOURCES[config.name].open(config)
    if config.name in DATA_SOURCES:
        return source
    if not isinstance(source, Source) or not callable(source.read):
        raise DataError(
            f"data.name is {config.name}, whose function open returned an object of class {type(source).__name__}; "
            "expected one of class Source, with a function read"
        )
    code = Path(inspect.getfile(sys.modules[config.name.partition(":")[0]])).read_bytes()
    fingerprint = sha256(source.fingerprint.encode() + code).hexdigest()
    return replace(source, origin=f"{config.name} ({source.origin})", fingerprint=fingerprint)


def _verified(path: Path, is_ready: bool) -> ImageFile:
    file = ImageFile(path, "write it again") if is_ready else ImageFile(path)
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
