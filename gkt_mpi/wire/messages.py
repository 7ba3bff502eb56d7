"""The messages of the protocol. Each is a fixed-size header of integers and a few raw buffers; nothing is pickled.

    Setup         server -> worker   the shape of the images and the digest of the configuration
    HostClient    server -> worker   "you host this client": its sample ids and its state
    TrainRequest  server -> worker   train this client, with the server's logits keyed by sample id
    FeatureBlock  worker -> server   some of a client's features, logits, labels, keyed by sample id
    ClientReport  worker -> server   the client has uploaded everything: its metrics and its state
    Stop          server -> worker   the run is over

TrainRequest and FeatureBlock are the algorithm: what a deployment would send. The others exist because the
edge is simulated. The ledger counts the bytes of the two kinds apart.

A receiver checks a header against its `Contract` before it allocates or receives a byte of the payload.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from math import prod
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gkt_mpi.errors import WireError

MAGIC = 0x474B54  # "GKT"
VERSION = 1
DIGEST_BYTES = 32
Column = Literal["algorithm", "simulation"]


class Kind(IntEnum):
    """What a message is."""

    SETUP = 1
    HOST = 2
    TRAIN = 3
    BLOCK = 4
    REPORT = 5
    STOP = 6


class Header(NamedTuple):
    """The fixed-size beginning of every message: 13 integers, sent as int64 (104 bytes)."""

    kind: int
    client: int = 0
    round: int = 0
    first: int = 0  # FeatureBlock: where its rows begin in the client's shard
    num_samples: int = 0
    num_classes: int = 0
    height: int = 0
    width: int = 0
    channels: int = 0
    row_bytes: int = 0  # FeatureBlock: bytes of one encoded sample
    codec: int = 0
    state_bytes: int = 0
    payload_bytes: int = 0

    def pack(self) -> np.ndarray:
        """Return the header as it travels: magic, version, then the fields, int64."""
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


def payload_layout(header: Header) -> list[tuple[torch.dtype, tuple[int, ...]]]:
    """Return dtype and shape of each buffer that follows a header, in order."""
    ids = (torch.int64, (header.num_samples,))
    logits = (torch.float32, (header.num_samples, header.num_classes))
    state = (torch.uint8, (header.state_bytes,))
    match header.kind:
        case Kind.SETUP:
            return [(torch.uint8, (DIGEST_BYTES,))]
        case Kind.HOST:
            return [ids, state]
        case Kind.TRAIN:
            return [ids, logits]
        case Kind.BLOCK:
            return [
                ids,
                (torch.int16, (header.num_samples,)),
                logits,
                (torch.uint8, (header.num_samples, header.row_bytes)),
            ]
        case Kind.REPORT:
            return [(torch.float64, (len(fields(ClientMetrics)),)), state]
        case _:
            return []


def payload_size(header: Header) -> int:
    """Return the bytes of all buffers that follow a header."""
    return sum(dtype.itemsize * prod(shape) for dtype, shape in payload_layout(header))


@dataclass(frozen=True)
class Setup:
    """Server to worker, once: what every client's model looks like, and which configuration the server has read."""

    num_classes: int
    image_shape: tuple[int, int, int]  # height, width, channels
    config_digest: Tensor  # uint8 (32,)

    column: ClassVar[Column] = "simulation"

    def header(self) -> Header:
        """Return the header, without `payload_bytes`."""
        height, width, channels = self.image_shape
        return Header(Kind.SETUP, num_classes=self.num_classes, height=height, width=width, channels=channels)

    def buffers(self) -> tuple[Tensor, ...]:
        """Return the payload."""
        return (self.config_digest,)


@dataclass(frozen=True)
class HostClient:
    """Server to worker: host this client from now on."""

    client: int
    sample_id: Tensor  # int64 (N,)
    state: Tensor  # uint8 (state_bytes,)

    column: ClassVar[Column] = "simulation"

    def header(self) -> Header:
        """Return the header, without `payload_bytes`."""
        return Header(Kind.HOST, self.client, num_samples=len(self.sample_id), state_bytes=len(self.state))

    def buffers(self) -> tuple[Tensor, ...]:
        """Return the payload."""
        return self.sample_id, self.state


@dataclass(frozen=True)
class TrainRequest:
    """Server to worker: train this client; here is what the server says of its samples (nothing in round 0)."""

    client: int
    round: int
    sample_id: Tensor  # int64 (N,)
    logit: Tensor  # float32 (N, C)

    column: ClassVar[Column] = "algorithm"

    def header(self) -> Header:
        """Return the header, without `payload_bytes`."""
        return Header(
            Kind.TRAIN, self.client, self.round, num_samples=len(self.sample_id), num_classes=self.logit.shape[1]
        )

    def buffers(self) -> tuple[Tensor, ...]:
        """Return the payload."""
        return self.sample_id, self.logit


@dataclass(frozen=True)
class FeatureBlock:
    """Worker to server: rows `first` to `first + n` of a client's upload."""

    client: int
    round: int
    first: int
    sample_id: Tensor  # int64 (n,)
    label: Tensor  # int16 (n,)
    logit: Tensor  # float32 (n, C)
    feature: Tensor  # uint8 (n, row_bytes), encoded
    shape: tuple[int, int, int]  # of one feature: height, width, channels
    codec: int

    column: ClassVar[Column] = "algorithm"

    def header(self) -> Header:
        """Return the header, without `payload_bytes`."""
        count, classes = self.logit.shape
        return Header(
            Kind.BLOCK,
            self.client,
            self.round,
            self.first,
            count,
            classes,
            *self.shape,
            self.feature.shape[1],
            self.codec,
        )

    def buffers(self) -> tuple[Tensor, ...]:
        """Return the payload."""
        return self.sample_id, self.label, self.logit, self.feature


@dataclass(frozen=True)
class ClientMetrics:
    """What a client measured in a round."""

    samples: float  # trained on, over all epochs
    loss_sum: float  # of the client's loss over these samples
    correct: float  # of these samples, while training
    train_s: float
    upload_s: float


@dataclass(frozen=True)
class ClientReport:
    """Worker to server: the client's upload is complete; its metrics, and its state for evaluation and checkpoint."""

    client: int
    round: int
    metrics: ClientMetrics
    state: Tensor  # uint8 (state_bytes,)

    column: ClassVar[Column] = "simulation"

    def header(self) -> Header:
        """Return the header, without `payload_bytes`."""
        return Header(Kind.REPORT, self.client, self.round, state_bytes=len(self.state))

    def buffers(self) -> tuple[Tensor, ...]:
        """Return the payload."""
        values = [getattr(self.metrics, field.name) for field in fields(self.metrics)]
        return torch.tensor(values, dtype=torch.float64), self.state


@dataclass(frozen=True)
class Stop:
    """Server to worker: end."""

    column: ClassVar[Column] = "simulation"

    def header(self) -> Header:
        """Return the header, without `payload_bytes`."""
        return Header(Kind.STOP)

    def buffers(self) -> tuple[Tensor, ...]:
        """Return the payload: nothing."""
        return ()


Message = Setup | HostClient | TrainRequest | FeatureBlock | ClientReport | Stop


def to_wire(message: Message) -> tuple[Header, tuple[Tensor, ...]]:
    """Return a message's complete header and its payload, as they travel."""
    header = message.header()
    return header._replace(payload_bytes=payload_size(header)), message.buffers()


def from_wire(header: Header, buffers: Sequence[Tensor]) -> Message:
    """Return the message of a checked header and its received payload."""
    match header.kind:
        case Kind.SETUP:
            return Setup(header.num_classes, (header.height, header.width, header.channels), *buffers)
        case Kind.HOST:
            return HostClient(header.client, *buffers)
        case Kind.TRAIN:
            return TrainRequest(header.client, header.round, *buffers)
        case Kind.BLOCK:
            shape = (header.height, header.width, header.channels)
            sample_id, label, logit, feature = buffers
            return FeatureBlock(
                header.client, header.round, header.first, sample_id, label, logit, feature, shape, header.codec
            )
        case Kind.REPORT:
            metrics, state = buffers
            return ClientReport(header.client, header.round, ClientMetrics(*metrics.tolist()), state)
        case _:
            return Stop()


@dataclass(frozen=True)
class Contract:
    """What one rank accepts at one moment. Everything else is refused before its payload is received.

    `sender` tells which rank speaks for a client (server side: the worker that hosts it); `num_samples` how
    many samples a client has; a client missing from `num_samples` is unknown. `memory` gives the bank's own rows
    for a block's features, so that they are received in place.
    """

    kinds: frozenset[Kind]
    round: int | None = None
    num_classes: int = 0
    num_samples: Mapping[int, int] | None = None
    sender: Mapping[int, int] | None = None
    feature_shape: tuple[int, int, int] = (0, 0, 0)
    row_bytes: int = 0
    codec: int = 0
    block_rows: int = 0
    state_bytes: int = 0
    max_samples: int = 0
    memory: Callable[[Header], Tensor] | None = None

    def check(self, source: int, header: Header) -> None:
        """Raise `WireError` naming rank and field unless `header`, sent by rank `source`, is acceptable here."""

        def expect(condition: bool, name: str, expected: object) -> None:
            if not condition:
                found = getattr(header, name)
                raise WireError(f"rank {source} sent a message whose {name} is {found}; expected {expected}")

        expect(header.kind in self.kinds, "kind", " or ".join(f"{kind} ({kind.name})" for kind in sorted(self.kinds)))
        expect(header.client >= 0, "client", "0 or more")
        if header.kind in (Kind.TRAIN, Kind.BLOCK, Kind.REPORT):
            self._check_client(source, header, expect)
        if self.round is not None:
            expect(header.round == self.round, "round", self.round)
        expect(header.round >= 0, "round", "0 or more")
        match header.kind:
            case Kind.SETUP:
                expect(2 <= header.num_classes <= 32767, "num_classes", "2 to 32767")
                for name in ("height", "width", "channels"):
                    expect(1 <= getattr(header, name) <= 65536, name, "1 to 65536")
            case Kind.HOST:
                expect(1 <= header.num_samples <= self.max_samples, "num_samples", f"1 to {self.max_samples}")
            case Kind.TRAIN:
                assert self.num_samples is not None
                expect(
                    header.num_samples in (0, self.num_samples[header.client]),
                    "num_samples",
                    "none or all of the shard",
                )
                expect(header.num_classes == self.num_classes, "num_classes", self.num_classes)
            case Kind.BLOCK:
                self._check_block(header, expect)
        if header.kind in (Kind.HOST, Kind.REPORT):
            expect(header.state_bytes == self.state_bytes, "state_bytes", self.state_bytes)
        expect(header.payload_bytes == payload_size(header), "payload_bytes", payload_size(header))

    def _check_client(self, source: int, header: Header, expect: Callable[[bool, str, object], None]) -> None:
        assert self.num_samples is not None
        expect(header.client in self.num_samples, "client", f"one of the {len(self.num_samples)} known here")
        if self.sender is not None:
            expect(self.sender[header.client] == source, "client", "one that this rank hosts")

    def _check_block(self, header: Header, expect: Callable[[bool, str, object], None]) -> None:
        assert self.num_samples is not None
        height, width, channels = self.feature_shape
        expect(header.num_classes == self.num_classes, "num_classes", self.num_classes)
        expect(header.height == height, "height", height)
        expect(header.width == width, "width", width)
        expect(header.channels == channels, "channels", channels)
        expect(header.codec == self.codec, "codec", self.codec)
        expect(header.row_bytes == self.row_bytes, "row_bytes", self.row_bytes)
        expect(1 <= header.num_samples <= self.block_rows, "num_samples", f"1 to {self.block_rows}")
        last = self.num_samples[header.client] - header.num_samples
        expect(0 <= header.first <= last, "first", f"0 to {last}")

    def allocate(self, header: Header) -> list[Tensor]:
        """Return memory for the payload of a checked header; a block's features go straight to the bank."""
        layout = payload_layout(header)
        if header.kind == Kind.BLOCK and self.memory is not None:
            return [*(torch.empty(shape, dtype=dtype) for dtype, shape in layout[:-1]), self.memory(header)]
        return [torch.empty(shape, dtype=dtype) for dtype, shape in layout]
