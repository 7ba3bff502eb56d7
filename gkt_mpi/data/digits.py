"""The data set `digits`: small handwritten digits, included in this package."""

import gzip
import io
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np

from gkt_mpi.data.augment import crop_only
from gkt_mpi.data.source import DataSize, DataSource, Decoded, Source, Split
from gkt_mpi.seeding import numpy_generator

if TYPE_CHECKING:
    from gkt_mpi.data.data_config import DataConfig


def digits(config: "DataConfig") -> Source:
    """Return the 1,797 handwritten digits of 8x8 that scikit-learn ships (UCI, Alpaydin and Kaynak 1998).

    A fixed fifth of the images is the test set. Pixels 0..16 become 0..255; one channel.
    """

    def read() -> Decoded:
        """Unpack the packaged file."""
        packed = resources.files("gkt_mpi.data").joinpath("digits.csv.gz").read_bytes()
        table = np.loadtxt(io.StringIO(gzip.decompress(packed).decode()), delimiter=",")
        images = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
        labels = table[:, -1].astype(np.int64)
        order = numpy_generator(0, "digits-test-split").permutation(len(labels))
        test, train = np.split(order, [round(0.2 * len(labels))])
        splits = {
            "train": Split.of(labels[train], images[train]),
            "test": Split.of(labels[test], images[test]),
        }
        return Decoded([str(digit) for digit in range(10)], splits)

    return Source("embedded", read)


DIGITS = DataSource("digits", digits, size=DataSize(1438, 10, (8, 8, 1)), augmentation=crop_only)
