"""Checks of what a data source returns, ours or a user's, before any of it is written or trained on."""

import numpy as np

from gkt_mpi.data.source import Decoded, Split
from gkt_mpi.errors import DataError

MAX_CLASSES = 32767  # labels are sent as int16
_READ_TWICE = 4  # images at each end of a split


def check_decoded(origin: str, decoded: object) -> Decoded:
    """Return a decoded data set whose classes, labels and images fit together. Raises `DataError` in one line.

    A few images are read twice, which must give the same pixels; `check_shapes` checks the sizes of images.
    """
    if not isinstance(decoded, Decoded):
        raise DataError(f"{origin}: read() returned {_kind(decoded)}; expected an object of class Decoded")
    classes = decoded.classes
    if not isinstance(classes, list) or not all(_is_text(name) for name in classes):
        raise DataError(f"{origin}: the classes are {classes!r:.60}; expected a list of names")
    check_classes(origin, decoded.classes)
    if not isinstance(decoded.splits, dict):
        raise DataError(f"{origin}: the splits are {_kind(decoded.splits)}; expected a dictionary of train and test")
    for name in ("train", "test"):
        if name not in decoded.splits:
            raise DataError(f"{origin} has no {name} images; expected the splits train and test")
    for name, split in decoded.splits.items():
        _check_split(f"{origin}, {name}", split, len(decoded.classes))
        if len(split.labels) == 0:
            raise DataError(f"{origin} has no {name} images")
        _check_some_images(f"{origin}, {name}", split)
    return decoded


def check_shapes(origin: str, decoded: Decoded) -> tuple[int, int, int]:
    """Return the shape of every image. Raises `DataError` if splits differ, or if it does not fit the models."""
    shapes = {name: split.images(0, 1).shape[1:] for name, split in decoded.splits.items()}
    for name, shape in shapes.items():
        if shape != shapes["train"]:
            raise DataError(
                f"{origin}: images of {name} have the shape {shape}, but those of train {shapes['train']}; "
                "set data.size to resize all of them"
            )
    height, width, channels = shapes["train"]
    check_image_shape(origin, (height, width, channels))
    return height, width, channels


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


def check_statistics(origin: str, mean: object, std: object, channels: int) -> None:
    """Raise `DataError` unless these are finite numbers for each channel, `std` above 0."""
    values = [np.asarray(value) for value in (mean, std)]
    fits = all(value.shape == (channels,) and value.dtype.kind in "iuf" for value in values)
    if not fits or not np.isfinite(values).all() or not (values[1] > 0).all():
        raise DataError(
            f"{origin}: mean {mean} and std {std}; expected {channels} numbers each, one per channel, std > 0"
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


def _check_split(where: str, split: object, num_classes: int) -> None:
    if not isinstance(split, Split):
        raise DataError(f"{where} is {_kind(split)}; expected an object of class Split")
    check_labels(where, split.labels, num_classes)
    if not callable(split.images):
        raise DataError(
            f"{where}: images are {_kind(split.images)}; expected a function of the first and last row: "
            "use Split.of(labels, images) for arrays"
        )
    owner = split.owner
    if owner is None:
        return
    if not isinstance(owner, np.ndarray) or owner.ndim != 1 or owner.dtype.kind not in "iuUS":
        found = f"{owner.dtype} {owner.shape}" if isinstance(owner, np.ndarray) else _kind(owner)
        raise DataError(f"{where}: owners are {found}; expected integers or text (N,)")
    if len(owner) != len(split.labels):
        raise DataError(f"{where}: {len(owner)} owners of {len(split.labels)} images; expected one of each image")


def _check_some_images(where: str, split: Split) -> None:
    """Read the first and last images of a split twice, and check them."""
    count, shape = len(split.labels), None
    some = min(_READ_TWICE, count)
    for first, last in ((0, some), (count - some, count)):
        images = check_images(where, split.images(first, last), last - first, shape).copy()
        if not np.array_equal(images, split.images(first, last)):
            raise DataError(f"{where}: images {first} to {last - 1} differ when they are read again; draw from a seed")
        shape = images.shape[1:]


def _is_text(name: object) -> bool:
    """Whether a value is text that HDF5 can hold."""
    return isinstance(name, str) and "\0" not in name and name.encode(errors="ignore").decode() == name


def _kind(value: object) -> str:
    return f"of class {type(value).__name__}"
