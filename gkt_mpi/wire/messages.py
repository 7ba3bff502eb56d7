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

Each class below declares its kind, its column of the ledger, and for each field whether it is sent in the header or in
a buffer, with dtype and shape; header, payload and parsing follow from that (declaration.py). A receiver checks a
header against its `Contract` (contract.py) before it allocates or receives any payload.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, cast, get_args

import torch
from torch import Tensor

from gkt_mpi.wire.declaration import Buffer, Declaration, Floats, Integers, Layout, Millionths, Packed
from gkt_mpi.wire.header import Header, Kind

DIGEST_BYTES = 32
Column = Literal["algorithm", "simulation"]
_State = Annotated[Tensor, Buffer(torch.uint8, "state_bytes")]
_Rows = Annotated[Tensor, Buffer(torch.uint8, "num_samples", "row_bytes")]
_Sizes = Annotated[tuple[int, int, int], Integers("height", "width", "channels")]


@dataclass(frozen=True)
class Setup:
    """Server to worker, once: what every client's model is like, and which configuration the server has read."""

    kind: ClassVar[Kind] = Kind.SETUP
    column: ClassVar[Column] = "simulation"

    num_classes: int
    image_shape: _Sizes
    precision: int  # place in `Precision`
    config_digest: Annotated[Tensor, Buffer(torch.uint8, DIGEST_BYTES)]


@dataclass(frozen=True)
class HostClient:
    """Server to worker: host this client from now on."""

    kind: ClassVar[Kind] = Kind.HOST
    column: ClassVar[Column] = "simulation"

    client: int
    sample_id: Annotated[Tensor, Buffer(torch.int64, "num_samples")]
    state: _State


@dataclass(frozen=True)
class TrainRequest:
    """Server to worker: train this client; here is what the server says of its samples (nothing in the first round).

    Where clients share weights, it begins from these, unless it has them already.
    """

    kind: ClassVar[Kind] = Kind.TRAIN
    column: ClassVar[Column] = "algorithm"

    client: int
    round: int
    sample_id: Annotated[Tensor, Buffer(torch.int64, "num_samples")]
    logit: Annotated[Tensor, Buffer(torch.float32, "num_samples", "num_classes")]
    weights: _State = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))
    """Float32 numbers, or none."""
    at: Annotated[float, Millionths("first")] = 0.0
    """How far the run is, in rounds, to a millionth: the client's learning rate may depend on it."""


@dataclass(frozen=True)
class ModelState:
    """Server to worker: let this client go on from these weights. Worker to server: what training has made of them."""

    kind: ClassVar[Kind] = Kind.MODEL
    column: ClassVar[Column] = "algorithm"

    client: int
    round: int
    weights: _State  # float32 numbers: parameters, means and variances


@dataclass(frozen=True)
class LocalRequest:
    """Server to worker: let this client work with what it has, as a device would that is told nothing."""

    kind: ClassVar[Kind] = Kind.LOCAL
    column: ClassVar[Column] = "simulation"

    client: int
    round: int


@dataclass(frozen=True)
class FeatureBlock:
    """Worker to server: rows `first` to `first` + n of a client's upload, or of a pass over its shard."""

    kind: ClassVar[Kind] = Kind.BLOCK
    column: ClassVar[Column] = "algorithm"

    client: int
    round: int
    first: int
    sample_id: Annotated[Tensor, Packed(torch.int64, "num_samples")]
    label: Annotated[Tensor, Packed(torch.int16, "num_samples")]
    logit: Annotated[Tensor, Packed(torch.float32, "num_samples", "num_classes")]  # of no classes where none are sent
    feature: _Rows  # encoded
    shape: _Sizes  # of one feature
    codec: int


@dataclass(frozen=True)
class Gradient:
    """Server to worker: the loss's gradient with respect to the features of the block whose first row is `first`."""

    kind: ClassVar[Kind] = Kind.GRADIENT
    column: ClassVar[Column] = "algorithm"

    client: int
    round: int
    first: int
    gradient: _Rows  # encoded


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

    kind: ClassVar[Kind] = Kind.REPORT
    column: ClassVar[Column] = "simulation"

    client: int
    round: int
    metrics: Annotated[ClientMetrics, Floats(ClientMetrics)]
    state: _State
    spans: Annotated[Tensor, Buffer(torch.float64, "num_spans", 3)] = field(
        default_factory=lambda: torch.empty(0, 3, dtype=torch.float64)
    )
    """Those of the worker's timeline since its last report."""


@dataclass(frozen=True)
class Stop:
    """Server to worker: end."""

    kind: ClassVar[Kind] = Kind.STOP
    column: ClassVar[Column] = "simulation"


@dataclass(frozen=True)
class Check:
    """Any rank to any other, where no run goes on: some bytes."""

    kind: ClassVar[Kind] = Kind.CHECK
    column: ClassVar[Column] = "simulation"

    content: _State


Request = TrainRequest | ModelState | LocalRequest
Message = Setup | HostClient | Request | FeatureBlock | Gradient | ClientReport | Stop | Check
_DECLARED: dict[int, Declaration] = {message.kind: Declaration(message) for message in get_args(Message)}


def to_wire(message: Message) -> tuple[Header, tuple[Tensor, ...]]:
    """Return a message's header and its payload, as they are sent."""
    declared = _DECLARED[message.kind]
    return declared.header(message), declared.buffers(message)


def from_wire(header: Header, buffers: Sequence[Tensor]) -> Message:
    """Return the message of a checked header and its received payload."""
    return cast(Message, _DECLARED[header.kind].message(header, buffers))


def payload_layout(header: Header) -> list[Layout]:
    """Return dtype and shape of each buffer that follows a header, in order."""
    return _DECLARED[header.kind].layout(header)


def payload_size(header: Header) -> int:
    """Return the bytes of all buffers that follow a header."""
    return _DECLARED[header.kind].payload_bytes(header)


def header_names(kind: Kind) -> frozenset[str]:
    """Return the header fields that messages of a kind use, besides `kind` and `payload_bytes`."""
    return _DECLARED[kind].header_names


def parts_of_block(header: Header, packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sample ids, labels and logits of a block, as views into its first buffer, uint8 (n,)."""
    parts = _DECLARED[Kind.BLOCK].unpack(header, packed)
    return parts["sample_id"], parts["label"], parts["logit"]
