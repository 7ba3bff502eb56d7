"""Arrays of images and labels under fixed names, as the data sets `npz` and `hdf5` read them from a file.

    train_images, test_images  uint8 (N, H, W) or (N, H, W, channels)
    train_labels, test_labels  integers (N,) or (N, 1), from 0
    train_owner                integers or text (N,); optional: whose each training image is
    classes                    text (classes,); optional: the class names

Other arrays are ignored, such as the validation images of MedMNIST's files, which have these names.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gkt_mpi.data.checks import MAX_CLASSES, check_images, check_labels
from gkt_mpi.data.source import Decoded, Split
from gkt_mpi.errors import DataError

_NEEDED = ("train_images", "train_labels", "test_images", "test_labels")


class Stored(Protocol):
    """An array in a file, of which slices are read."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __getitem__(self, rows: Any) -> np.ndarray:  # noqa: ANN401 - a slice, or ... for all
        """Return some rows."""
        ...


def decode_arrays(path: Path, names: list[str], get: Callable[[str], Any]) -> Decoded:
    """Return the data set of a file's arrays; `get` returns a `Stored` one by its name.

    Raises `DataError` naming the file and the array that is missing or not as described above.
    """
    absent = [name for name in _NEEDED if name not in names]
    if absent:
        there = ", ".join(sorted(names)[:10]) or "nothing"
        raise DataError(f"{path} has no array {absent[0]}, only {there}; expected {', '.join(_NEEDED)}")
    labels = {split: _labels(path, f"{split}_labels", get) for split in ("train", "test")}
    for split, of_split in labels.items():
        if len(of_split) == 0:
            raise DataError(f"{path} has no {split} images")
    classes = _classes(path, get) if "classes" in names else _numbers(path, labels["train"])
    splits = {}
    for split, of_split in labels.items():
        name = f"{split}_labels"
        if "classes" not in names and of_split.max() >= len(classes):
            raise DataError(
                f"{path}: {name} has the label {of_split.max()}, which no training image has; expected 0 to "
                f"{len(classes) - 1}, or an array classes with the names of all"
            )
        of_split = check_labels(f"{path}: {name}", of_split, len(classes))
        owner = _owner(path, get, len(of_split)) if split == "train" and "train_owner" in names else None
        splits[split] = Split(of_split, _images(path, f"{split}_images", len(of_split), get), owner)
    return Decoded(classes, splits)


def _images(path: Path, name: str, count: int, get: Callable[[str], Any]) -> Callable[[int, int], np.ndarray]:
    stored: Stored = get(name)
    if stored.dtype != np.uint8 or len(stored.shape) not in (3, 4):
        todo = "; scale them to 0..255, round, and convert" if stored.dtype.kind == "f" else ""
        raise DataError(
            f"{path}: {name} is {stored.dtype} {stored.shape}; expected uint8 (N, H, W) or (N, H, W, channels){todo}"
        )
    if stored.shape[0] != count:
        raise DataError(f"{path} has {stored.shape[0]} images in {name}, but {count} labels; expected one per image")

    def images(first: int, last: int) -> np.ndarray:
        """Return images `first` to `last`, uint8 (last - first, H, W, channels)."""
        rows = np.asarray(get(name)[first:last])
        rows = rows[..., None] if rows.ndim == 3 else rows
        return check_images(f"{path}: {name}", rows, last - first)

    return images


def _labels(path: Path, name: str, get: Callable[[str], Any]) -> np.ndarray:
    """Return labels as stored, integers (N,)."""
    labels = np.asarray(get(name)[...])
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(f"{path}: {name} is {labels.dtype} {labels.shape}; expected integers (N,), from 0")
    return labels


def _numbers(path: Path, labels: np.ndarray) -> list[str]:
    """Return the numbers of the classes as their names."""
    largest = int(labels.max())
    if labels.min() < 0 or largest >= MAX_CLASSES:
        wrong = labels.min() if labels.min() < 0 else largest
        raise DataError(f"{path}: train_labels has the label {wrong}; expected 0 to {MAX_CLASSES - 1}")
    return [str(label) for label in range(largest + 1)]


def _classes(path: Path, get: Callable[[str], Any]) -> list[str]:
    names = np.asarray(get("classes")[...])
    texts = [name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names.tolist()]
    if names.ndim != 1 or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{path}: classes is {names.dtype} {names.shape}; expected text (classes,)")
    return texts


def _owner(path: Path, get: Callable[[str], Any], count: int) -> np.ndarray:
    owner = np.asarray(get("train_owner")[...])
    owner = owner.astype(str) if owner.dtype == object else owner
    if owner.shape != (count,) or owner.dtype.kind not in "iuUS":
        raise DataError(
            f"{path}: train_owner is {owner.dtype} {owner.shape}; expected integers or text ({count},), one per image"
        )
    return owner
