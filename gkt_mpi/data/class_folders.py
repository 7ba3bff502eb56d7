"""Folders of pictures, one folder per class."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gkt_mpi.data.pictures import in_threads
from gkt_mpi.data.source import Split
from gkt_mpi.errors import DataError

# File name extensions of pictures: those that are not expected in a folder are reported, not passed over.
_PICTURES = {
    ".png",
    ".jpg",
    ".jpeg",
    ".bmp",
    ".gif",
    ".webp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".jp2",
    ".heic",
    ".avif",
}


@dataclass(frozen=True)
class Formats:
    """The expected formats of pictures."""

    label: str  # in words
    suffixes: tuple[str, ...]  # of file names, in lower case


PNG = Formats("PNG", (".png",))
PNG_OR_JPEG = Formats("PNG or JPEG", (".png", ".jpg", ".jpeg"))


def class_names(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, ascending, without hidden ones."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def class_files(folder: Path, classes: list[str], formats: Formats, may_lack: bool = False) -> list[tuple[Path, int]]:
    """Return the pictures `folder`/CLASS/* with their labels, by class and then by name.

    Raises `DataError` for a class without pictures, which `may_lack` allows, for another class and other formats.
    """
    train = folder.parent / "train"
    unknown = sorted({*class_names(folder)} - {*classes})
    if unknown:
        raise DataError(f"{folder} has a folder {unknown[0]} that {train} lacks; delete or add it")
    return [
        (path, label)
        for label, name in enumerate(classes)
        if (folder / name).is_dir() or not may_lack
        for path in _pictures(folder / name, formats)
    ]


def class_split(folder: Path, classes: list[str], formats: Formats, read: Callable[[Path], np.ndarray]) -> Split:
    """Return the pictures of all classes in a folder; `read` returns one, uint8 (H, W, channels)."""
    return split_of(class_files(folder, classes, formats), read)


def split_of(files: list[tuple[Path, int]], read: Callable[[Path], np.ndarray]) -> Split:
    """Return the split of these pictures and their labels; pictures are decoded on demand."""

    def images(first: int, last: int) -> np.ndarray:
        return np.stack(in_threads(read, [path for path, _ in files[first:last]]))

    return Split(np.array([label for _, label in files], np.int64), images)


def _pictures(folder: Path, formats: Formats) -> list[Path]:
    """Return the pictures of a class, by name. Raises `DataError` if there are none, or files of another kind."""
    if not folder.is_dir():
        raise DataError(f"there is no {folder}, but {folder.parent.parent / 'train' / folder.name}; get it again")
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    other = [path.name for path in files if path.suffix.lower() in _PICTURES - {*formats.suffixes}]
    if other:
        number = "1 image that is" if len(other) == 1 else f"{len(other)} images that are"
        raise DataError(f"{folder} holds {number} not {formats.label}, {other[0]} first; convert or delete them")
    pictures = [path for path in files if path.suffix.lower() in formats.suffixes]
    if not pictures:
        instead = f", only {files[0].name}" + (f" and {len(files) - 1} more" if len(files) > 1 else "") if files else ""
        raise DataError(f"{folder} holds no {formats.label} file{instead}; add some, or delete the class everywhere")
    return pictures
