"""The cost of a round in bytes and operations, from counts alone, without running an algorithm and without MPI.

    a client's samples, the networks' counts (cost/flops.py), the messages' layouts (wire/messages.py)  ->  RoundWork

There is one function per kind of training; an algorithm's specification names its own (gkt_mpi/algorithms/).

The bytes equal those that a run counts. Operations include training and the additional passes that the algorithm needs;
evaluation, averaging and augmentation are not counted. For virtual seconds see cost/virtual_clock.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gkt_mpi.cost import virtual_clock
from gkt_mpi.cost.devices import Devices
from gkt_mpi.cost.flops import NetworkCost, edge_cost, edge_stem_cost, server_cost, whole_cost, whole_stem_cost
from gkt_mpi.cost.virtual_clock import ClientCost, Order, Participant, Participants, RoundCost, RoundWork
from gkt_mpi.errors import require
from gkt_mpi.models.family import ImageShape, NormName
from gkt_mpi.models.networks import EdgeName, ServerName
from gkt_mpi.training.trainable import Extract, Share
from gkt_mpi.wire.codec import Codec
from gkt_mpi.wire.header import HEADER_BYTES, Header, Kind
from gkt_mpi.wire.messages import payload_size


@dataclass(frozen=True)
class Prices:
    """The cost of the steps of asynchronous training, and the devices that perform them."""

    devices: Devices
    client: Callable[[int, Participant], ClientCost]
    """Cost of one upload of a client."""
    training_flops: int
    """Operations of the server per training sample."""
    prediction_flops: int


@dataclass(frozen=True)
class Setting:
    """The facts that determine the cost of every round of a run."""

    image_shape: ImageShape  # height, width, channels
    num_classes: int
    codec: Codec  # of the features of these images
    block_rows: int  # samples in the largest FeatureBlock of FedGKT
    server_model: ServerName = "resnet56"
    server_norm: NormName = "batch"
    server_cut: str | None = None
    client_norm: NormName = "batch"
    client_epochs: int = 1
    client_batch_size: int = 256
    client_share: Share = "none"
    client_extract: Extract = "own"
    server_epochs: int = 20
    split_mode: Literal["sequential", "parallel"] = "sequential"

    def edge(self, model: EdgeName) -> NetworkCost:
        """Return the counts of an edge model."""
        return edge_cost(model, self.image_shape, self.num_classes, self.client_norm)

    def shared(self, model: EdgeName) -> NetworkCost:
        """Return the counts of the part of an edge model that clients share."""
        if self.client_share == "edge":
            return self.edge(model)
        return edge_stem_cost(model, self.image_shape, self.num_classes, self.client_norm)

    def server(self, *, with_input_gradient: bool = False) -> NetworkCost:
        """Return the counts of the large network without its stem, on features."""
        return server_cost(
            self.server_model,
            self.codec.shape,
            self.num_classes,
            self.server_norm,
            self.server_cut,
            with_input_gradient=with_input_gradient,
        )

    @property
    def whole(self) -> NetworkCost:
        """The counts of the large network with its stem."""
        return whole_cost(self.server_model, self.image_shape, self.num_classes, self.server_norm, self.server_cut)


WorkOf = Callable[[Setting, Participants, int], RoundWork]
"""Returns the work of a round, given the number of samples that the server trains on."""


@dataclass(frozen=True)
class RoundCase:
    """A round of an algorithm in the table of costs (programs/cost.py)."""

    label: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the `Setting`, with their values in this round."""
    gets_logits: bool = True
    """Whether clients receive the server's logits in this round."""


def round_cost(
    work: WorkOf,
    setting: Setting,
    devices: Devices,
    participants: Participants,
    server_samples: int | None = None,
    start_s: float = 0.0,
) -> RoundCost:
    """Return the cost of a round as in metrics.jsonl; see `round_work`, and `round_s` for `start_s`."""
    return virtual_clock.round_cost(round_work(work, setting, participants, server_samples), devices, start_s)


def round_work(
    work: WorkOf, setting: Setting, participants: Participants, server_samples: int | None = None
) -> RoundWork:
    """Return the cost of a round, by client; `work` is the algorithm's cost function.

    `server_samples` is the number of samples the server trains on: those in the bank, including absent clients', or all
    images if there are no clients; None for those of the participants.
    """
    if server_samples is None:
        server_samples = sum(its.num_samples for its in participants.values())
    return work(setting, participants, server_samples)


def knowledge_transfer(setting: Setting, participants: Participants, server_samples: int) -> RoundWork:
    """Return the work of group knowledge transfer: logits down, features up.

    With no samples on the server it is a round between two uploads (`client.upload_every`): clients only train. The
    client trains its edge model, then passes every image through it once more to compute the upload. With
    `client.share` weights go up and their mean comes down; with `client.extract shared` before the features.
    """
    clients, then = {}, {}
    for client, its in participants.items():
        edge, n = setting.edge(its.model), its.num_samples
        shared = setting.shared(its.model).state_bytes
        features = sum(_block_bytes(setting, rows, setting.num_classes) for rows in _parts(n, setting.block_rows))
        weights = 0 if setting.client_share == "none" else _model_state_bytes(shared)
        logits = _train_bytes(setting, n if its.gets_logits else 0, shared if its.gets_weights else 0)
        training, extracting = n * setting.client_epochs * edge.training_flops, n * edge.forward_flops
        if not server_samples:
            clients[client] = ClientCost(weights, logits, training)
        elif setting.client_extract == "own":
            clients[client] = ClientCost(weights + features, logits, training + extracting)
        else:
            clients[client] = ClientCost(weights, logits, training)
            then[client] = ClientCost(features, weights, extracting)
    server = setting.server()
    passes = setting.server_epochs * server.training_flops + server.forward_flops  # the last term predicts
    return RoundWork(clients, server_samples * passes, then=then)


def async_prices(setting: Setting, devices: Devices) -> Prices:
    """Return the costs for the clock of asynchronous training: `knowledge_transfer`, by upload and by sample."""
    server = setting.server()

    def price_of_upload(client: int, participant: Participant) -> ClientCost:
        """Return the work of one upload."""
        return knowledge_transfer(setting, {client: participant}, participant.num_samples).clients[client]

    return Prices(devices, price_of_upload, server.training_flops, server.forward_flops)


def model_averaging(setting: Setting, participants: Participants, server_samples: int) -> RoundWork:
    """Return the work of FedAvg: the whole large network down and up; the client trains it."""
    model_bytes = _model_state_bytes(setting.whole.state_bytes)
    clients = {
        client: ClientCost(
            up_bytes=model_bytes,
            down_bytes=model_bytes,
            edge_flops=its.num_samples * setting.client_epochs * setting.whole.training_flops,
        )
        for client, its in participants.items()
    }
    return RoundWork(clients, server_flops=0)


def split_training(setting: Setting, participants: Participants, server_samples: int) -> RoundWork:
    """Return the work of split learning: the stem down and up, every batch's features up and their gradients down.

    Raises `ConfigError` for an integer codec, which cannot encode gradients.
    """
    require(setting.codec.is_signed, "wire.codec", setting.codec.name, "a float codec")
    stem = whole_stem_cost(setting.server_model, setting.image_shape, setting.server_norm)
    server = setting.server(with_input_gradient=True)
    clients = {}
    for client, its in participants.items():
        passes = its.num_samples * setting.client_epochs
        batches = _parts(its.num_samples, setting.client_batch_size) * setting.client_epochs
        clients[client] = ClientCost(
            up_bytes=_model_state_bytes(stem.state_bytes) + sum(_block_bytes(setting, rows, 0) for rows in batches),
            down_bytes=_model_state_bytes(stem.state_bytes) + sum(_gradient_bytes(setting, rows) for rows in batches),
            edge_flops=passes * stem.training_flops,
            served_flops=passes * server.training_flops,
        )
    order: Order = "in_turn" if setting.split_mode == "sequential" else "side_by_side"
    return RoundWork(clients, sum(cost.served_flops for cost in clients.values()), order)


def central_training(setting: Setting, participants: Participants, server_samples: int) -> RoundWork:
    """Return the work of training the whole large network on the server, on all images."""
    return RoundWork({}, server_samples * setting.server_epochs * setting.whole.training_flops)


def local_training(setting: Setting, participants: Participants, server_samples: int) -> RoundWork:
    """Return the work of training every edge model on its own images; nothing is sent."""
    clients = {
        client: ClientCost(0, 0, its.num_samples * setting.client_epochs * setting.edge(its.model).training_flops)
        for client, its in participants.items()
    }
    return RoundWork(clients, server_flops=0)


def _parts(num_samples: int, rows: int) -> list[int]:
    """Return the sizes of the blocks or batches of `rows` samples, the last of which may be smaller."""
    return [min(rows, num_samples - first) for first in range(0, num_samples, rows)]


def _block_bytes(setting: Setting, rows: int, num_classes: int) -> int:
    """Return the bytes of a FeatureBlock."""
    row_bytes = setting.codec.row_bytes
    header = Header(Kind.BLOCK, num_samples=rows, num_classes=num_classes, row_bytes=row_bytes)
    return HEADER_BYTES + payload_size(header)


def _train_bytes(setting: Setting, rows: int, weights: int) -> int:
    """Return the bytes of a TrainRequest with logits for `rows` samples and this many bytes of weights."""
    header = Header(Kind.TRAIN, num_samples=rows, num_classes=setting.num_classes, state_bytes=weights)
    return HEADER_BYTES + payload_size(header)


def _model_state_bytes(weights: int) -> int:
    """Return the bytes of a ModelState with this many bytes of weights."""
    return HEADER_BYTES + payload_size(Header(Kind.MODEL, state_bytes=weights))


def _gradient_bytes(setting: Setting, rows: int) -> int:
    """Return the bytes of a Gradient for this many samples."""
    return HEADER_BYTES + payload_size(Header(Kind.GRADIENT, num_samples=rows, row_bytes=setting.codec.row_bytes))
