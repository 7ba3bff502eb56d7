"""Tiny ImageNet, read from the published folder layout, tiny-imagenet-200."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gkt_mpi.data.archive import beside, fingerprint_of, nothing_to_read
from gkt_mpi.data.class_folders import class_names, split_of
from gkt_mpi.data.pictures import read_picture
from gkt_mpi.data.source import DataSize, DataSource, Decoded, Source
from gkt_mpi.errors import DataError

if TYPE_CHECKING:
    from gkt_mpi.data.data_config import DataConfig

_NAME = "tiny-imagenet-200"


def tiny_imagenet(config: "DataConfig") -> Source:
    """Return Tiny ImageNet from `data.dir`/tiny-imagenet-200; its validation images, which have labels, are the test.

    `data.dir` itself may also be that folder. A class is a WordNet number, such as n01443537; words.txt has its name.
    """
    root = config.folder
    folder = root if (root / "wnids.txt").is_file() else root / _NAME
    annotations = folder / "val/val_annotations.txt"
    absent = [path for path in (folder / "train", annotations) if not path.exists()]
    if absent:
        missing = (
            f"tiny_imagenet was not found: there is no {absent[0]}{beside(folder, _NAME + '*')}. Either unpack the "
            f"archive {_NAME}.zip (Stanford CS231n) into {root}, or set data.dir to the folder that has it"
        )
        return Source(str(folder), nothing_to_read, missing=missing)

    def read() -> Decoded:
        """List the pictures; they are decoded on demand."""
        classes = class_names(folder / "train")
        train = [
            (path, label)
            for label, name in enumerate(classes)
            for path in sorted((folder / "train" / name / "images").glob("*.JPEG"))
        ]
        return Decoded(classes, {"train": split_of(train, _picture), "test": split_of(_test(), _picture)})

    def _test() -> list[tuple[Path, int]]:
        """Return the validation images with their labels, by name. Raises `DataError` for a damaged list."""
        number = {name: label for label, name in enumerate(class_names(folder / "train"))}
        listed = []
        for line, text in enumerate(annotations.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            name, _, rest = text.partition("\t")
            label = number.get(rest.partition("\t")[0])
            if label is None:
                raise DataError(f"{annotations}, line {line}: expected FILE, tab and a class of train; get it again")
            listed.append((annotations.parent / "images" / name, label))
        return sorted(listed)

    class_folders = [folder / "train" / name / "images" for name in class_names(folder / "train")]
    return Source(str(folder), read, fingerprint=fingerprint_of([annotations, *class_folders]))


def _picture(path: Path) -> np.ndarray:
    """Return a picture, uint8 (64, 64, 3); some are grey in the archive. Raises `DataError` if it is not one."""
    pixels = read_picture(path, 3)
    if pixels.shape != (64, 64, 3):
        raise DataError(f"{path} has {pixels.shape[1]}x{pixels.shape[0]} pixels; every image here has 64x64")
    return pixels


TINY_IMAGENET = DataSource(
    "tiny_imagenet", tiny_imagenet, title="Tiny ImageNet", size=DataSize(100_000, 200, (64, 64, 3))
)
