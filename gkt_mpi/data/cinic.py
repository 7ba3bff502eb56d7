"""CINIC-10, read from its folders of PNG files."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gkt_mpi.data.archive import beside, fingerprint_of, nothing_to_read
from gkt_mpi.data.class_folders import PNG, class_names, class_split
from gkt_mpi.data.pictures import read_picture
from gkt_mpi.data.source import DataSize, DataSource, Decoded, Source
from gkt_mpi.errors import DataError

if TYPE_CHECKING:
    from gkt_mpi.data.data_config import DataConfig


def cinic10(config: "DataConfig") -> Source:
    """Return CINIC-10 from its folders of PNG files, `data.dir`/CINIC-10/{train,valid,test}/CLASS/*.png.

    `data.dir` itself may also be the folder that holds train, valid and test, as the archive unpacks.
    """
    root, splits = config.folder, ("train", "valid", "test")
    folder = root if (root / "train").is_dir() else root / "CINIC-10"
    absent = [str(folder / split) for split in splits if not (folder / split).is_dir()]
    if absent:
        hint = beside(folder, "CINIC-10*.tar*", "CINIC-10")
        missing = (
            f"cinic10 was not found: there is no {absent[0]}{hint}. Either unpack the archive CINIC-10.tar.gz "
            f"(Edinburgh DataShare, doi 10.7488/ds/2448) into {root / 'CINIC-10'}, or set data.dir to the folder that "
            f"has it"
        )
        return Source(str(folder), nothing_to_read, missing=missing)
    classes = class_names(folder / "train")

    def read() -> Decoded:
        """Read the folders; images are decoded on demand."""
        return Decoded(classes, {split: class_split(folder / split, classes, PNG, _picture) for split in splits})

    class_folders = [folder / split / name for split in splits for name in classes]
    fingerprint = fingerprint_of([path for path in class_folders if path.is_dir()])
    return Source(str(folder), read, fingerprint=fingerprint)


def _picture(path: Path) -> np.ndarray:
    """Return a picture, uint8 (32, 32, 3). Raises `DataError` naming the file if it is not one."""
    pixels = read_picture(path, 3)
    if pixels.shape != (32, 32, 3):
        raise DataError(f"{path} has {pixels.shape[1]}x{pixels.shape[0]} pixels; every image of CINIC-10 has 32x32")
    return pixels


CINIC10 = DataSource(
    "cinic10",
    cinic10,
    title="CINIC-10",
    size=DataSize(90_000, 10, (32, 32, 3)),
    statistics=((0.47890, 0.47228, 0.43047), (0.24206, 0.23828, 0.25875)),
)
