"""The data set `folder`: a user's own PNG or JPEG files, `data.dir`/train/CLASS/* and `data.dir`/test/CLASS/*."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gkt_mpi.data.archive import fingerprint_of, nothing_to_read
from gkt_mpi.data.class_folders import PNG_OR_JPEG, class_files, class_names, split_of
from gkt_mpi.data.pictures import channels_of, in_threads, read_picture
from gkt_mpi.data.source import DataSource, Decoded, Source
from gkt_mpi.errors import DataError

if TYPE_CHECKING:
    from gkt_mpi.data.data_config import DataConfig


def folder(config: "DataConfig") -> Source:
    """Return the pictures in class folders; the classes are the folders of train.

    Pictures may have any size with `data.size`, otherwise one size. They are grey if all of them are, else RGB.
    """
    root, size = config.folder, config.size
    missing = _missing(root)
    if missing:
        return Source(str(root), nothing_to_read, missing=missing)

    def read() -> Decoded:
        """List the pictures, and read their headers for the number of channels."""
        classes = class_names(root / "train")
        files = {
            "train": class_files(root / "train", classes, PNG_OR_JPEG),
            "test": class_files(root / "test", classes, PNG_OR_JPEG, may_lack=True),
        }
        paths = [path for of_split in files.values() for path, _ in of_split]
        channels = max(in_threads(channels_of, paths), default=3)
        shape: list[tuple[int, ...]] = []  # of the first picture that was read

        def picture(path: Path) -> np.ndarray:
            """Return a picture, uint8 (H, W, channels). Raises `DataError` if it has another size than the first."""
            pixels = read_picture(path, channels, size)
            shape.append(pixels.shape) if not shape else None
            if pixels.shape != shape[0]:
                sizes = [f"{width}x{height}" for height, width, _ in (pixels.shape, shape[0])]
                raise DataError(
                    f"{path} has {sizes[0]} pixels, but others have {sizes[1]}; set data.size to resize all of them"
                )
            return pixels

        names = [os.fsencode(name).decode(errors="replace") for name in classes]
        return Decoded(names, {name: split_of(of_split, picture) for name, of_split in files.items()})

    return Source(str(root), read, fingerprint=fingerprint_of(_all_files(root), root))


def _missing(root: Path) -> str:
    """Return what is missing in a folder, and what to do; empty if it has train and test."""
    for split in ("train", "test"):
        if not (root / split).is_dir():
            others = [name for name in ("val", "valid", "validation") if (root / name).is_dir()]
            hint = f"; there is {root / others[0]}: rename it to test" if split == "test" and others else ""
            return (
                f"there is no folder {root / split}{hint}; expected pictures {root}/train/CLASS/*.png (or .jpg) and "
                f"{root}/test/CLASS/*.png: set data.dir to the folder that has train and test"
            )
    return ""


def _all_files(root: Path) -> list[Path]:
    """Return all files in the class folders, in a fixed order."""
    return sorted(path for split in ("train", "test") for path in (root / split).glob("*/*"))


FOLDER = DataSource("folder", folder)
