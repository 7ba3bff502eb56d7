"""The digest of a data set: a text that changes when any image, label, class name or statistic changes.

It is a BLAKE2 digest over the digests of pieces, which are computed while the images are written, and at the start of a
run by several threads: CIFAR-10 takes a third of a second with one.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b

import numpy as np

from gkt_mpi.cores import usable_cores

ROWS = 1000  # images or labels per piece


def digest_of_piece(rows: np.ndarray) -> bytes:
    """Return the digest of up to `ROWS` images or labels as stored in the file, uint8 or int64."""
    return blake2b(np.ascontiguousarray(rows).data, digest_size=32).digest()


def digest_of_pieces(arrays: Sequence[np.ndarray]) -> list[list[bytes]]:
    """Return the digests of all pieces of each array, computed by as many threads as this process has cores."""
    with ThreadPoolExecutor(len(usable_cores())) as threads:
        pending = [
            threads.map(digest_of_piece, [array[first : first + ROWS] for first in range(0, len(array), ROWS)])
            for array in arrays
        ]
        return [list(digests) for digests in pending]


def digest_of_all(pieces: Mapping[str, Sequence[bytes]], classes: list[str], statistics: Sequence[np.ndarray]) -> str:
    """Return the digest of a data set, 32 hexadecimal digits.

    `pieces`: by path in the file; `statistics`: mean and standard deviation by channel, used as float32.
    """
    whole = blake2b(digest_size=16)
    for text in (repr(classes), *(repr(np.asarray(values, np.float32).tolist()) for values in statistics)):
        whole.update(text.encode())
    for path in sorted(pieces):
        whole.update(f"{path} {len(pieces[path])} ".encode() + b"".join(pieces[path]))
    return whole.hexdigest()
