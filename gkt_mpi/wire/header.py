"""The fixed-size beginning of every message: what kind it is, and the integers from which the rest follows."""

from enum import IntEnum
from typing import NamedTuple

import numpy as np

from gkt_mpi.errors import WireError

MAGIC = 0x474B54  # "GKT"
VERSION = 6


class Kind(IntEnum):
    """What a message is."""

    SETUP = 1
    HOST = 2
    TRAIN = 3
    BLOCK = 4
    REPORT = 5
    STOP = 6
    CHECK = 7
    MODEL = 8
    GRADIENT = 9
    LOCAL = 10


class Header(NamedTuple):
    """The fixed-size beginning of every message: magic, version and these 15 integers, sent as int64 (136 bytes)."""

    kind: int
    client: int = 0
    round: int = 0
    first: int = 0  # FeatureBlock: where its rows begin in the client's shard. TrainRequest: millionths of a round
    num_samples: int = 0
    num_classes: int = 0  # 0 in a FeatureBlock without logits
    height: int = 0
    width: int = 0
    channels: int = 0
    row_bytes: int = 0  # FeatureBlock and Gradient: bytes of one encoded sample
    codec: int = 0
    state_bytes: int = 0
    precision: int = 0  # Setup: place in `Precision`
    num_spans: int = 0  # ClientReport: spans of the worker's timeline
    payload_bytes: int = 0

    def pack(self) -> np.ndarray:
        """Return the header as it is sent: magic, version, then the fields, int64 (17,)."""
        return np.array([MAGIC, VERSION, *self], np.int64)

    @classmethod
    def unpack(cls, words: np.ndarray, source: int) -> "Header":
        """Return the header in `words` (int64). Raises `WireError` unless magic and version are ours."""
        magic, version, *values = (int(word) for word in words)
        if magic != MAGIC:
            raise WireError(f"rank {source} sent something that is no message of gkt_mpi (magic {magic:#x})")
        if version != VERSION:
            raise WireError(
                f"rank {source} speaks protocol version {version}, this rank {VERSION}; install one version"
            )
        return cls(*values)


HEADER_BYTES = Header(kind=0).pack().nbytes
