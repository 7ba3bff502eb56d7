"""Checks of what a data source returns, ours or a user's, before any of it is written or trained on."""

import numpy as np

from gkt_mpi.data.source import Decoded, Split
from gkt_mpi.errors import DataError

MAX_CLASSES = 32767  # labels are sent as int16
_READ_TWICE = 4  # images at each end of a split


def check_decoded(origin: str, decoded: object) -> Decoded:
    """Return a decoded data set whose classes, labels and shapes fit together. Raises `DataError` in one line.

    A few images are read twice, which must give the same pixels.
    """
    if not isinstance(decoded, Decoded):
        raise DataError(f"{origin}: read() returned {_kind(decoded)}; expected an object of class Decoded")
    named = isinstance(decoded.classes, list) and all(isinstance(name, str) for name in decoded.classes)
    if not named:
        raise DataError(f"{origin}: the classes are {decoded.classes!r:.60}; expected a list of names")
    check_classes(origin, decoded.classes)
    shape = None
    for name in ("train", "test"):
        if name not in decoded.splits:
            raise DataError(f"{origin} has no {name} images; expected the splits train and test")
    for name, split in decoded.splits.items():
        _check_labels(f"{origin}, {name}", name, origin, split, decoded.classes)
        ours = _check_images(f"{origin}, {name}", split)
        if shape not in (None, ours):
            raise DataError(f"{origin}: images of {name} have the shape {ours}, but those of train {shape}")
        shape = shape or ours
    assert shape is not None
    check_image_shape(origin, shape)
    return decoded


def check_classes(origin: str, classes: list[str]) -> None:
    """Raise `DataError` for too few classes to distinguish, or too many to number."""
    if not 2 <= len(classes) <= MAX_CLASSES:
        number = f"1 class ({classes[0]})" if len(classes) == 1 else f"{len(classes):,} classes"
        raise DataError(f"{origin} has {number}; expected 2 to {MAX_CLASSES:,} classes")


def check_image_shape(origin: str, shape: tuple[int, ...], todo: str = "set data.size to resize them") -> None:
    """Raise `DataError` if images of this height, width and channels do not fit the models."""
    height, width, channels = shape
    if height >= 8 and width >= 8 and height % 4 == 0 and width % 4 == 0 and channels >= 1:
        return
    if height <= 4 < channels:
        todo = "the channels come last: use images.transpose(0, 2, 3, 1)"
    raise DataError(
        f"{origin}: images of {height}x{width} do not fit the models, which need multiples of 4 from 8 up; {todo}"
    )


def check_images(origin: str, images: object, count: int, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Return an array of images, uint8 (count, *shape), of any shape if None. Raises `DataError` if it is another."""
    expected = f"({count}, {', '.join(map(str, shape))})" if shape else f"({count}, H, W, channels)"
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        kind = images.dtype if isinstance(images, np.ndarray) else _kind(images)
        raise DataError(f"{origin}: images are {kind}; expected an array uint8 {expected}, of values 0 to 255")
    if images.ndim != 4 or len(images) != count or shape not in (None, images.shape[1:]):
        raise DataError(f"{origin}: images have the shape {images.shape}; expected uint8 {expected}")
    return images


def check_labels(origin: str, labels: object, num_classes: int) -> np.ndarray:
    """Return labels as int64 (N,). Raises `DataError` unless they are integers from 0 to `num_classes` - 1."""
    if not isinstance(labels, np.ndarray) or labels.ndim != 1 or labels.dtype.kind not in "iu":
        found = f"{labels.dtype} {labels.shape}" if isinstance(labels, np.ndarray) else _kind(labels)
        raise DataError(f"{origin}: labels are {found}; expected integers (N,)")
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        wrong = int(np.flatnonzero((labels < 0) | (labels >= num_classes))[0])
        raise DataError(
            f"{origin}: image {wrong} has the label {labels[wrong]}; expected 0 to {num_classes - 1}, "
            f"since there are {num_classes} classes"
        )
    return labels.astype(np.int64)


def _check_labels(where: str, name: str, origin: str, split: object, classes: list[str]) -> None:
    if not isinstance(split, Split):
        raise DataError(f"{where} is {_kind(split)}; expected an object of class Split")
    if len(check_labels(where, split.labels, len(classes))) == 0:
        raise DataError(f"{origin} has no {name} images")
    if split.owner is not None and np.shape(split.owner) != split.labels.shape:
        raise DataError(f"{where}: {len(split.owner)} owners of {len(split.labels)} images; expected one of each image")


def _check_images(where: str, split: Split) -> tuple[int, ...]:
    """Return the shape of an image of a split, after reading the first and last ones twice."""
    count, shape = len(split.labels), None
    some = min(_READ_TWICE, count)
    for first, last in ((0, some), (count - some, count)):
        images = check_images(where, split.images(first, last), last - first, shape).copy()
        if not np.array_equal(images, split.images(first, last)):
            raise DataError(f"{where}: images {first} to {last - 1} differ when they are read again; draw from a seed")
        shape = images.shape[1:]
    assert shape is not None
    return shape


def _kind(value: object) -> str:
    return f"of class {type(value).__name__}"
