"""The messages of the protocol. Each is a fixed-size header of integers and a few raw buffers; nothing is pickled.

    Setup         server -> worker   the shape of the images and the digest of the configuration
    HostClient    server -> worker   "you host this client": its sample ids and its state
    TrainRequest  server -> worker   train this client, with the server's logits keyed by sample id
    ModelState    both ways          let this client go on from these weights; and what it has made of them
    LocalRequest  server -> worker   let this client work with what it has
    FeatureBlock  worker -> server   some of a client's features, logits, labels, keyed by sample id
    Gradient      server -> worker   the loss's gradient with respect to the features of a block
    ClientReport  worker -> server   the client has uploaded everything: its metrics and its state
    Stop          server -> worker   the run is over
    Check         both ways          some bytes, before a run (programs/check.py)

TrainRequest, ModelState, FeatureBlock and Gradient are the algorithm: what a deployment would send. The others exist
because the edge is simulated. The ledger counts the bytes of the two kinds apart.

A receiver checks a header against its `Contract` (contract.py) before it allocates or receives any payload.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, field, fields
from enum import IntEnum
from math import prod
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gkt_mpi.errors import WireError

MAGIC = 0x474B54  # "GKT"
VERSION = 6
DIGEST_BYTES = 32
_MILLION = 1_000_000
Column = Literal["algorithm", "simulation"]


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
    spans = (torch.float64, (header.num_spans, 3))
    match header.kind:
        case Kind.SETUP:
            return [(torch.uint8, (DIGEST_BYTES,))]
        case Kind.HOST:
            return [ids, state]
        case Kind.TRAIN:
            return [ids, logits, state]
        case Kind.BLOCK:
            about = header.num_samples * (8 + 4 * header.num_classes + 2)
            return [(torch.uint8, (about,)), (torch.uint8, (header.num_samples, header.row_bytes))]
        case Kind.REPORT:
            return [(torch.float64, (len(fields(ClientMetrics)),)), state, spans]
        case Kind.GRADIENT:
            return [(torch.uint8, (header.num_samples, header.row_bytes))]
        case Kind.CHECK | Kind.MODEL:
            return [state]
        case _:
            return []


def payload_size(header: Header) -> int:
    """Return the bytes of all buffers that follow a header."""
    return sum(dtype.itemsize * prod(shape) for dtype, shape in payload_layout(header))


@dataclass(frozen=True)
class Setup:
    """Server to worker, once: what every client's model is like, and which configuration the server has read."""

    num_classes: int
    image_shape: tuple[int, int, int]  # height, width, channels
    precision: int
    config_digest: Tensor  # uint8 (32,)

    column: ClassVar[Column] = "simulation"

    def header(self) -> Header:
        """Return the header, without `payload_bytes`."""
        height, width, channels = self.image_shape
        return Header(
            Kind.SETUP,
            num_classes=self.num_classes,
            height=height,
            width=width,
            channels=channels,
            precision=self.precision,
        )

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
    """Server to worker: train this client; here is what the server says of its samples (nothing in round 0).

    Where clients share weights, it begins from these, unless it has them already.
    """

    client: int
    round: int
    sample_id: Tensor  # int64 (N,)
    logit: Tensor  # float32 (N, C)
    weights: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))  # uint8 (bytes,), or none
    at: float = 0.0  # how far the run is, in rounds, to a millionth: the client's learning rate may depend on it

    column: ClassVar[Column] = "algorithm"

    def header(self) -> Header:
        """Return the header, without `payload_bytes`."""
        return Header(
            Kind.TRAIN,
            self.client,
            self.round,
            num_samples=len(self.sample_id),
            first=int(0.5 + self.at * _MILLION),
            num_classes=self.logit.shape[1],
            state_bytes=len(self.weights),
        )

    def buffers(self) -> tuple[Tensor, ...]:
        """Return the payload."""
        return self.sample_id, self.logit, self.weights


@dataclass(frozen=True)
class ModelState:
    """Server to worker: let this client go on from these weights. Worker to server: what training has made of them."""

    client: int
    round: int
    weights: Tensor  # uint8 (bytes,), float32 numbers: parameters, means and variances

    column: ClassVar[Column] = "algorithm"

    def header(self) -> Header:
        """Return the header, without `payload_bytes`."""
        return Header(Kind.MODEL, self.client, self.round, state_bytes=len(self.weights))

    def buffers(self) -> tuple[Tensor, ...]:
        """Return the payload."""
        return (self.weights,)


@dataclass(frozen=True)
class LocalRequest:
    """Server to worker: let this client work with what it has, as a device would that is told nothing."""

    client: int
    round: int

    column: ClassVar[Column] = "simulation"

    def header(self) -> Header:
        """Return the header, without `payload_bytes`."""
        return Header(Kind.LOCAL, self.client, self.round)

    def buffers(self) -> tuple[Tensor, ...]:
        """Return the payload: nothing."""
        return ()


@dataclass(frozen=True)
class FeatureBlock:
    """Worker to server: rows `first` to `first + n` of a client's upload, or of a pass over its shard."""

    client: int
    round: int
    first: int
    sample_id: Tensor  # int64 (n,)
    label: Tensor  # int16 (n,)
    logit: Tensor  # float32 (n, C); C is 0 where none are sent
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
        """Return the payload: ids, logits and labels, whose alignments descend, as one buffer, and the features."""
        about = (self.sample_id, self.logit, self.label)
        # With numpy: on a few values, torch's calls cost more than all else that sends a block.
        bytes_of = [np.ascontiguousarray(part.numpy(force=True)).reshape(-1).view(np.uint8) for part in about]
        return torch.from_numpy(np.concatenate(bytes_of)), self.feature


@dataclass(frozen=True)
class Gradient:
    """Server to worker: the loss's gradient with respect to the features of the block whose first row is `first`."""

    client: int
    round: int
    first: int
    gradient: Tensor  # uint8 (n, row_bytes), encoded

    column: ClassVar[Column] = "algorithm"

    def header(self) -> Header:
        """Return the header, without `payload_bytes`."""
        count, row_bytes = self.gradient.shape
        return Header(Kind.GRADIENT, self.client, self.round, first=self.first, num_samples=count, row_bytes=row_bytes)

    def buffers(self) -> tuple[Tensor, ...]:
        """Return the payload."""
        return (self.gradient,)


@dataclass(frozen=True)
class ClientMetrics:
    """What a client measured in a round."""

    samples: float  # trained on, over all epochs
    loss_sum: float  # of the client's loss over these samples
    cross_entropy_sum: float  # of the part of it that is cross-entropy with the labels
    correct: float  # of these samples, while training
    train_s: float
    upload_s: float
    peak_mib: float = 0.0  # the worker's largest memory so far


@dataclass(frozen=True)
class ClientReport:
    """Worker to server: the client's upload is complete; its metrics, and its state for evaluation and checkpoint."""

    client: int
    round: int
    metrics: ClientMetrics
    state: Tensor  # uint8 (state_bytes,)
    spans: Tensor = field(
        default_factory=lambda: torch.empty(0, 3, dtype=torch.float64)
    )  # (n, 3), of the worker's timeline since its last report

    column: ClassVar[Column] = "simulation"

    def header(self) -> Header:
        """Return the header, without `payload_bytes`."""
        return Header(Kind.REPORT, self.client, self.round, state_bytes=len(self.state), num_spans=len(self.spans))

    def buffers(self) -> tuple[Tensor, ...]:
        """Return the payload."""
        values = list(astuple(self.metrics))
        return torch.tensor(values, dtype=torch.float64), self.state, self.spans


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


@dataclass(frozen=True)
class Check:
    """Any rank to any other, where no run goes on: some bytes."""

    content: Tensor  # uint8 (n,)

    column: ClassVar[Column] = "simulation"

    def header(self) -> Header:
        """Return the header, without `payload_bytes`."""
        return Header(Kind.CHECK, state_bytes=len(self.content))

    def buffers(self) -> tuple[Tensor, ...]:
        """Return the payload."""
        return (self.content,)


Request = TrainRequest | ModelState | LocalRequest
Message = Setup | HostClient | Request | FeatureBlock | Gradient | ClientReport | Stop | Check


def parts_of_block(header: Header, about: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what a block says of its samples, from its first buffer, uint8: sample ids, labels and logits."""
    count, classes = header.num_samples, header.num_classes
    sample_id, logit, label = about.split([8 * count, 4 * count * classes, 2 * count])
    return sample_id.view(torch.int64), label.view(torch.int16), logit.view(torch.float32).reshape(count, classes)


def to_wire(message: Message) -> tuple[Header, tuple[Tensor, ...]]:
    """Return a message's complete header and its payload, as they travel."""
    header = message.header()
    return header._replace(payload_bytes=payload_size(header)), message.buffers()


def from_wire(header: Header, buffers: Sequence[Tensor]) -> Message:
    """Return the message of a checked header and its received payload."""
    match header.kind:
        case Kind.SETUP:
            shape = (header.height, header.width, header.channels)
            return Setup(header.num_classes, shape, header.precision, *buffers)
        case Kind.HOST:
            return HostClient(header.client, *buffers)
        case Kind.TRAIN:
            sample_id, logit, weights = buffers
            return TrainRequest(header.client, header.round, sample_id, logit, weights, header.first / _MILLION)
        case Kind.BLOCK:
            shape = (header.height, header.width, header.channels)
            about, feature = buffers
            parts = parts_of_block(header, about)
            return FeatureBlock(header.client, header.round, header.first, *parts, feature, shape, header.codec)
        case Kind.REPORT:
            metrics, state, spans = buffers
            return ClientReport(header.client, header.round, ClientMetrics(*metrics.tolist()), state, spans)
        case Kind.MODEL:
            return ModelState(header.client, header.round, *buffers)
        case Kind.LOCAL:
            return LocalRequest(header.client, header.round)
        case Kind.GRADIENT:
            return Gradient(header.client, header.round, header.first, *buffers)
        case Kind.CHECK:
            return Check(*buffers)
        case _:
            return Stop()
