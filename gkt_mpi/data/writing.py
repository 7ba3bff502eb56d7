"""Writes the image file of a data set (its layout: datasets.py)."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gkt_mpi.data import digest
from gkt_mpi.data.checks import check_decoded, check_images, check_shapes, check_statistics
from gkt_mpi.data.hdf5 import Plan, plan
from gkt_mpi.data.pictures import fitted
from gkt_mpi.data.source import Decoded, Source, Split, Statistics
from gkt_mpi.errors import DataError

FORMAT = 2  # incremented when the layout of the HDF5 file changes; older files are then replaced
_CHUNK = digest.ROWS  # images decoded and written at a time
_SUMMED = 2**22  # values converted to float64 at a time
Arrays = dict[str, tuple[tuple[int, ...], str]]  # shape and type of each array


def write_image_file(
    path: Path, source: Source, statistics: Statistics | None, size: int | None, report: Callable[[int, int], None]
) -> None:
    """Decode a data set into a file; without `statistics` they are computed, with `size` images are resized.

    `report(done, total)` is called as images are written. Raises `DataError` if the data set cannot be decoded,
    `OSError` if it cannot be written.
    """
    decoded = check_decoded(source.origin, source.read())
    if size is not None:
        splits = {name: _resized(f"{source.origin}, {name}", split, size) for name, split in decoded.splits.items()}
        decoded = Decoded(decoded.classes, splits, decoded.checksums)
    image_shape = check_shapes(source.origin, decoded)
    if statistics is not None:
        check_statistics(source.origin, *statistics, image_shape[-1])
    total = sum(len(split.labels) for split in decoded.splits.values())
    report(0, total)
    arrays = _arrays(decoded, image_shape)
    attributes = _attributes(source, decoded, image_shape[-1])
    planned = plan(arrays, attributes)
    pieces: dict[str, list[bytes]] = {path: [] for path in arrays}
    sums, done = np.zeros((2, len(attributes["mean"]))), 0
    with open(path, "wb") as file:
        _reserve(planned, file)
        for name, split in decoded.splits.items():
            for column, values in _columns(split).items():
                file.seek(planned.offsets[f"{name}/{column}"])
                file.write(values.data)
                (pieces[f"{name}/{column}"],) = digest.digest_of_pieces([values])
            file.seek(planned.offsets[f"{name}/image"])
            for chunk in _chunks(source.origin, name, split, arrays[f"{name}/image"][0]):
                file.write(chunk.data)
                pieces[f"{name}/image"].append(digest.digest_of_piece(chunk))
                if name == "train" and statistics is None:
                    sums += _sums(chunk)
                done += len(chunk)
                report(done, total)
        mean, std = statistics or _statistics(sums, arrays["train/image"][0])
        attributes |= {"mean": np.asarray(mean), "std": np.asarray(std)}
        attributes["digest"] = digest.digest_of_all(pieces, decoded.classes, (mean, std))
        plan(arrays, attributes).write_metadata(file)  # last, so that an incomplete file is not a valid HDF5 file
        file.flush()
        os.fsync(file.fileno())


def _resized(where: str, split: Split, size: int) -> Split:
    """Return the images of a split resized as `fitted` does it. Raises `DataError` of other channels than 1 or 3."""
    from PIL import Image

    def images(first: int, last: int) -> np.ndarray:
        """Return images `first` to `last`, uint8 (last - first, size, size, channels)."""
        given = check_images(where, split.images(first, last), last - first)
        channels = given.shape[-1]
        if given.shape[1:3] == (size, size):
            return given
        if channels not in (1, 3):
            raise DataError(f"{where}: data.size is {size}, but images of {channels} channels cannot be resized")
        pictures = [Image.fromarray(its[..., 0] if channels == 1 else its) for its in given]
        return np.stack([np.asarray(fitted(picture, size)) for picture in pictures]).reshape(-1, size, size, channels)

    return Split(split.labels, images, split.owner)


def _columns(split: Split) -> dict[str, np.ndarray]:
    """Return the label of each image and, if known, the number of its owner, both int64 (N,).

    Owners are numbered in ascending order.
    """
    columns = {"label": np.ascontiguousarray(split.labels, "<i8")}
    if split.owner is not None:
        columns["owner"] = np.unique(split.owner, return_inverse=True)[1].astype("<i8")
    return columns


def _arrays(decoded: Decoded, image_shape: tuple[int, int, int]) -> Arrays:
    """Return the shapes and types of the file's arrays."""
    arrays: Arrays = {}
    for name, split in decoded.splits.items():
        for column in _columns(split):
            arrays[f"{name}/{column}"] = (len(split.labels),), "<i8"
        arrays[f"{name}/image"] = (len(split.labels), *image_shape), "|u1"
    return arrays


def _attributes(source: Source, decoded: Decoded, channels: int) -> dict[str, Any]:
    """Return the file's attributes, with zeros for those that are known only at the end."""
    return {
        "format": FORMAT,
        "classes": decoded.classes,
        "mean": np.zeros(channels),
        "std": np.zeros(channels),
        "checksums": decoded.checksums,
        "origin": source.origin,
        "fingerprint": source.fingerprint,
        "digest": "0" * 32,
    }


def _chunks(origin: str, name: str, split: Split, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Yield the images of a split, as many at a time as one digest covers. Raises `DataError` for a wrong shape."""
    for first in range(0, shape[0], _CHUNK):
        last = min(first + _CHUNK, shape[0])
        where = f"{origin}, {name}, images {first} to {last - 1}"
        yield np.ascontiguousarray(check_images(where, split.images(first, last), last - first, shape[1:]))


def _sums(image_NHWC: np.ndarray) -> np.ndarray:
    """Return the sums of the values, scaled to 0..1, and of their squares, float64 (2, channels)."""
    channels = image_NHWC.shape[-1]
    rows = max(1, _SUMMED // image_NHWC[0].size)
    sums = np.zeros((2, channels))
    for first in range(0, len(image_NHWC), rows):
        pixels = image_NHWC[first : first + rows].reshape(-1, channels) / 255.0
        sums += pixels.sum(axis=0), (pixels**2).sum(axis=0)
    return sums


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
