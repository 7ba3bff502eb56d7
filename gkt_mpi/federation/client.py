"""An edge client: its shard, its small model, and its state between rounds.

A worker owns one `Edge` per kind of model (trainable.py: a model and an optimizer in memory) however many clients it
hosts. Between rounds a client is its shard and `state`, about 170 kB in FedGKT; to train, the state is loaded into the
worker's edge. The server also uses an `Edge`, to evaluate each client's stem.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gkt_mpi.data.shard import Shard
from gkt_mpi.errors import WireError, require
from gkt_mpi.facts import ClientPart
from gkt_mpi.models.family import ImageShape, NormName
from gkt_mpi.models.networks import (
    EDGE_FAMILIES,
    EdgeModel,
    EdgeName,
    ServerName,
    WholeModel,
    build_edge_model,
    build_whole_model,
)
from gkt_mpi.seeding import torch_generator
from gkt_mpi.training.losses import count_correct, proximal_term
from gkt_mpi.training.optimizer import OptimizerConfig
from gkt_mpi.training.schedule import Schedule
from gkt_mpi.training.trainable import AnyEdge, Edge, Extract, Share

EdgeChoice = EdgeName | list[EdgeName] | dict[EdgeName, float]
_SHARES_ADD_UP = 1e-6  # tolerance of the shares' sum around 1


@dataclass(frozen=True)
class ClientConfig(OptimizerConfig):
    """The edge clients."""

    model: EdgeChoice = "resnet8"
    """Edge model of fedgkt and standalone: the stem and a small head. The paper's main results use resnet8. A list is
    assigned to the clients in turn; a mapping such as {resnet4: 0.5, resnet8: 0.5} gives each model that share."""
    norm: NormName = "batch"
    """Normalisation in the edge model. group: GroupNorm, independent of the batch, instead of BatchNorm."""
    weights: str | None = None
    """File of safetensors that every client's edge model starts from, such as edge.safetensors of an export; null for
    random weights. It may have the stem only. Read on the server."""
    epochs: int = 1
    """Passes over its own images that a client trains each round; 0 leaves it untrained."""
    share: Share = "none"
    """Client weights that the server averages in each round; all clients start the next one from the mean. none:
    nothing, as in the paper. stem: the layers that compute the features. edge: the whole edge models."""
    extract: Extract = "own"
    """Stem that computes the uploaded features. own: the client's, as trained. shared: the average, for which clients
    and server exchange weights in the middle of the round; needs client.share stem or edge."""
    upload_every: int = 1
    """Features are uploaded every this many rounds, and in the last; in the other rounds of fedgkt clients train (and
    average what they share), and the server does not. Equal to rounds: a single upload; at least 1."""
    proximal_mu: float = 0.0
    """FedProx: weight of the proximal term towards the weights sent by the server, in fedavg; 0 or more, 0 is
    FedAvg."""

    group: ClassVar[str] = "client"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.epochs >= 0, "client.epochs", self.epochs, "0 or more")
        require(self.upload_every >= 1, "client.upload_every", self.upload_every, "at least 1")
        require(self.proximal_mu >= 0, "client.proximal_mu", self.proximal_mu, "0 or more")
        if self.extract == "shared":
            require(self.share != "none", "client.share", self.share, "stem or edge, with client.extract shared")
        if isinstance(self.model, list):
            require(bool(self.model), "client.model", self.model, "at least one model")
        for name in [self.model] if isinstance(self.model, str) else self.model:
            EDGE_FAMILIES.find(name)
        if isinstance(self.model, dict):
            shares = self.model.values()
            is_whole = all(share > 0 for share in shares) and abs(sum(shares) - 1) < _SHARES_ADD_UP
            require(is_whole, "client.model", self.model, "shares above 0 that add up to 1")

    def uploads_in(self, round: int, num_rounds: int) -> bool:
        """Return whether features are uploaded in a round."""
        return (round + 1) % self.upload_every == 0 or round + 1 == num_rounds

    def uploads_before(self, round: int) -> int:
        """Return the number of earlier rounds in which features are uploaded."""
        return round // self.upload_every


class LargeNetwork(Protocol):
    """The part of a ServerConfig that describes the large network."""

    @property
    def model(self) -> ServerName:
        """Model name."""

    @property
    def norm(self) -> NormName:
        """Normalisation."""

    @property
    def cut(self) -> str | None:
        """Stage at which the server's part begins; None for the network's own."""


def edge_names(choice: EdgeChoice, num_clients: int) -> list[EdgeName]:
    """Return each client's edge model: one for all, a list in turn, or by shares, one model after the other."""
    if isinstance(choice, str):
        return [choice] * num_clients
    if isinstance(choice, list):
        return [choice[client % len(choice)] for client in range(num_clients)]
    ends = np.floor(np.cumsum(list(choice.values())) * num_clients + _SHARES_ADD_UP).astype(int)
    return [list(choice)[int(np.searchsorted(ends, client, side="right"))] for client in range(num_clients)]


def build_edges(
    part: ClientPart,
    config: ClientConfig,
    large: LargeNetwork,
    image_shape: ImageShape,
    num_classes: int,
    num_clients: int,
    seed: int,
    device: torch.device,
) -> list[AnyEdge]:
    """Return the edge that each client's state is loaded into, by client: one edge for all that train the same network.

    `part` is what a client trains: an edge model of its own, or of the network `large` the whole or the stem, whose
    weights then come from the server.
    """
    if part == "edge":
        names = edge_names(config.model, num_clients)
        made = {name: build_edge(config, image_shape, num_classes, seed, device, name) for name in set(names)}
        return [made[name] for name in names]
    whole = whole_model(large, image_shape, num_classes, seed, device)
    return [Edge(whole if part == "whole" else whole.cut()[0], config, weights_travel=True)] * num_clients


def whole_model(
    large: LargeNetwork, image_shape: ImageShape, num_classes: int, seed: int, device: torch.device
) -> WholeModel:
    """Return the uncut large network with the initial weights of this seed, the same wherever it is trained."""
    generator = torch_generator(seed, "whole model")
    return build_whole_model(large.model, image_shape, num_classes, generator, device, large.norm, large.cut)


def build_edge(
    config: ClientConfig, image_shape: ImageShape, num_classes: int, seed: int, device: torch.device, name: EdgeName
) -> Edge[EdgeModel]:
    """Return an edge with the model `name` and its initial weights, the same for every client with this model."""
    # Every client begins with the same weights, as in the released code. DIFFERS: they are random; the released edge
    # models once began from weights trained centrally on the same data set.
    model = build_edge_model(name, image_shape, num_classes, torch_generator(seed, "edge model"), device, config.norm)
    shared = {"none": (), "stem": (model.stem,), "edge": (model.stem, model.head)}[config.share]
    return Edge(model, config, shared=shared)


class Client:
    """One client with its state loaded into the worker's edge, as an algorithm's client side uses it."""

    def __init__(
        self,
        client_id: int,
        shard: Shard,
        edge: AnyEdge,
        config: ClientConfig,
        seed: int,
        on_batch: Callable[[], None] = lambda: None,
        num_rounds: int = 1,
        at: float = 0.0,
    ) -> None:
        """Initialise from a shard and an edge; `on_batch` is called before each training batch and may raise to end it.

        `at` is the progress of the run in rounds, out of `num_rounds`, at which the client begins: its schedule depends
        on it.
        """
        self.id = client_id
        self.shard = shard
        self._num_rounds = num_rounds
        self.config = config
        self.seed = seed
        self.model = edge.model
        self._edge = edge
        self._optimizer = edge.optimizer
        self._device = shard.image.device
        self.on_batch = on_batch
        self._at = at
        self._schedule = Schedule(config.schedule, config.lr, num_rounds, config.warmup_rounds, edge.plateau)
        self.samples = 0
        self.loss_sum = torch.zeros((), device=self._device)
        self.cross_entropy_sum = torch.zeros((), device=self._device)
        self.correct = torch.zeros((), dtype=torch.int64, device=self._device)

    def align(self, sample_id: Tensor, logit: Tensor) -> Tensor | None:
        """Return the server's logits (N, C) in the order of the shard, or None when there are none yet.

        Rows are matched by sample id, in any order. Raises `WireError` unless the ids are exactly those of the shard.
        """
        if len(sample_id) == 0:
            return None
        sorted_id, order = sample_id.to(self._device).sort()
        own_id, own_order = self.shard.sample_id.sort()
        if not torch.equal(sorted_id, own_id):
            raise WireError(f"the server sent logits whose sample ids are not those of client {self.id}")
        aligned = torch.empty_like(logit, device=self._device)
        aligned[own_order] = logit.to(self._device)[order]
        return aligned

    def batches(self, round: int, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Put the model in training mode; yield (rows of the shard, augmented images, labels) of an epoch, shuffled."""
        self.model.train()
        generator = torch_generator(self.seed, "client epoch", self.id, round, epoch, device=self._device)
        self.model.draw_from(self.seed, "client network", self.id, round, epoch)
        done, due = epoch * len(self.shard), self.config.epochs * len(self.shard)
        for row_B, image in self.shard.train_batches(self.config.batch_size, generator):
            self.on_batch()
            self._optimizer.lr = self._schedule.rate(self._at + (done + len(row_B) / 2) / due)
            done += len(row_B)
            yield row_B, image, self.shard.label[row_B]

    def end_round(self) -> None:
        """Update the schedule with the training loss, if there was any training."""
        if self.samples:
            self._schedule.end_round(float(self.loss_sum) / self.samples)

    def class_count(self, num_classes: int) -> Tensor:
        """Return the number of samples of each class in the shard, int64 (C,)."""
        return self.shard.label.bincount(minlength=num_classes)

    def uploads_in(self, round: int) -> bool:
        """Return whether features are uploaded in a round."""
        return self.config.uploads_in(round, self._num_rounds)

    def begin_from(self, weights: Tensor) -> None:
        """Load the weights sent by the server, uint8 (bytes,)."""
        self._edge.weights.copy_(weights)
        self._sent = [parameter.detach().clone() for parameter in self.model.parameters()]

    def adopt(self, weights: Tensor) -> None:
        """Load the mean of the shared weights, uint8 (bytes,); an empty tensor leaves the model unchanged."""
        # The optimizer's moments stay the client's own, as in fedavg; averaging or dropping them has not been measured.
        if len(weights):
            self._edge.adopt(weights)

    @property
    def shared_weights(self) -> Tensor:
        """A copy of the weights that clients share, uint8 (bytes,), to be sent."""
        return self._edge.shared_weights

    @property
    def weights(self) -> Tensor:
        """A copy of the model's weights, uint8 (bytes,), to be sent."""
        return self._edge.weights.clone()

    def proximal_term(self) -> Tensor:
        """Return the proximal term towards the weights sent by the server, a scalar; 0 without `client.proximal_mu`."""
        if not self.config.proximal_mu:
            return torch.zeros((), device=self._device)
        return proximal_term(self.model.parameters(), self._sent, self.config.proximal_mu)

    def step(self, loss: Tensor) -> None:
        """Take one optimizer step along the gradient of `loss`."""
        self._optimizer.step(loss)

    def count(self, loss: Tensor, logit_BC: Tensor, label_B: Tensor) -> None:
        """Add a batch to the client's metrics of this round, without synchronising with the device."""
        samples = len(label_B)
        self.loss_sum += loss.detach() * samples
        self.cross_entropy_sum += F.cross_entropy(logit_BC.detach(), label_B, reduction="sum")
        self.correct += count_correct(logit_BC, label_B)
        self.samples += samples

    def upload_views(self, round: int, block_rows: int) -> Iterator[tuple[slice, Tensor]]:
        """Put the model in evaluation mode; yield (rows of the shard, images) of the whole shard in order, in blocks.

        They are newly augmented: as released, the server learns from augmented views, drawn anew each round.
        """
        self.model.eval()
        generator = torch_generator(self.seed, "client upload", self.id, round, device=self._device)
        return self.shard.blocks(block_rows, generator)
