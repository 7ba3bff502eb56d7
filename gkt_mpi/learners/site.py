"""The components of a learner (`Site`), and the steps of its optimizer (`Training`).

fedgkt                 teacher.py        the large model on the feature bank
fedgkt_async           async_teacher.py  the same, on a bank with asynchronous updates
fedavg, centralized    global_model.py   one whole model
split_learning         split_model.py    one whole model, cut after the stem
standalone             edges_alone.py    nothing: the result is the edge models
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from gkt_mpi.cost.work import Prices
from gkt_mpi.data.augment import ImagePipeline
from gkt_mpi.data.datasets import ImageFile
from gkt_mpi.data.shard import Shard
from gkt_mpi.errors import GktError, require
from gkt_mpi.federation.client import ClientConfig
from gkt_mpi.federation.watch import Watch
from gkt_mpi.learners.bank import BatchOrder
from gkt_mpi.learners.event_clock import ClockName
from gkt_mpi.learners.feature_rows import BankConfig
from gkt_mpi.learners.staleness import AsyncConfig
from gkt_mpi.models.family import NormName
from gkt_mpi.models.networks import SERVER_FAMILIES, ServerModel, ServerName, WholeModel, layers_builder
from gkt_mpi.models.pretrained import load_pretrained
from gkt_mpi.models.weights import load_weights
from gkt_mpi.placement import Placement
from gkt_mpi.seeding import torch_generator
from gkt_mpi.training.compute import ComputeConfig
from gkt_mpi.training.evaluate import Accuracy, EvaluateConfig, evaluate_model
from gkt_mpi.training.losses import DistillConfig
from gkt_mpi.training.optimizer import Optimizer, OptimizerConfig
from gkt_mpi.training.schedule import Schedule, ScheduleName
from gkt_mpi.training.trainable import AnyEdge
from gkt_mpi.wire.codec import Codec, WireConfig


@dataclass(frozen=True)
class ServerConfig(OptimizerConfig):
    """The server, and the large network wherever it is trained."""

    model: ServerName = "resnet56"
    """The large network: without its stem on the server in fedgkt and split_learning, whole on every client in fedavg,
    whole on the server in centralized. resnet11 has one bottleneck per stage: quick, for tests and first
    experiments."""
    norm: NormName = "batch"
    """Normalisation in it. group: GroupNorm, independent of the batch, instead of BatchNorm."""
    weights: str | None = None
    """File of safetensors that it starts from, such as server.safetensors of an export; null for random weights. Where
    it is trained with its stem, the file may have the stem, too (model.safetensors). Read on the server."""
    cut: str | None = None
    """Last stage of the large network that is left out, since features take the place of its output; torchvision's
    networks have several (docs/own_model.md). null: as few stages as possible."""
    pretrained: str | None = None
    """File with weights of the original network to start from, .safetensors or a state_dict (.pth), see
    docs/own_model.md; null to start from random ones."""
    epochs: int = 20
    """Passes over the feature bank (centralized: over all images) that the server trains each round; at least 1."""
    schedule: ScheduleName = "plateau"
    """As client.schedule."""
    batch_order: BatchOrder = "mixed"
    """mixed: batches drawn across all clients. by_client: client after client, as in the paper."""

    group: ClassVar[str] = "server"

    def __post_init__(self) -> None:
        super().__post_init__()
        SERVER_FAMILIES.find(self.model)
        layers_builder(self.model, self.cut)
        require(self.epochs >= 1, "server.epochs", self.epochs, "at least 1")


@dataclass(frozen=True)
class SplitConfig:
    """Split learning."""

    mode: Literal["sequential", "parallel"] = "sequential"
    """sequential: one client after another. parallel (SplitFed): all at once, each with a copy of the server's part; at
    the end of a round both parts are averaged."""


@dataclass(frozen=True)
class LearnerConfig:
    """The fields of a run's configuration that learners read (config.py)."""

    seed: int
    rounds: int
    clock: ClockName
    client: ClientConfig
    server: ServerConfig
    split: SplitConfig
    async_: AsyncConfig
    distill: DistillConfig
    wire: WireConfig
    bank: BankConfig
    evaluate: EvaluateConfig
    compute: ComputeConfig


@dataclass(frozen=True)
class Images:
    """The data set, its partition, and the transformation of images into a network's input."""

    file: ImageFile
    pipeline: ImagePipeline
    shards: list[np.ndarray]  # each client's sample ids, int64
    test: Shard

    @property
    def num_samples(self) -> int:
        """Number of training images of all clients together."""
        return sum(map(len, self.shards))

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.file.classes)


@dataclass(frozen=True)
class Machine:
    """Where the learner computes and stores files, and whom its long operations report to."""

    placement: Placement
    watch: Watch
    folder: Path  # the run folder


@dataclass(frozen=True)
class Site:
    """The components of a learner."""

    config: LearnerConfig
    images: Images
    machine: Machine
    edges: list[AnyEdge]  # edges[k] is the edge for client k's state
    codec: Codec
    prices: Prices
    rounds_left: int

    @property
    def device(self) -> torch.device:
        """The device of the server's computation."""
        return self.machine.placement.device

    @property
    def block_rows(self) -> int:
        """The largest number of rows in a FeatureBlock."""
        return self.codec.block_rows(self.config.wire.block_mib)

    @property
    def num_uploads(self) -> int:
        """Number of rounds in which features are uploaded."""
        return math.ceil(self.config.rounds / self.config.client.upload_every)

    def example(self, shape: tuple[int, int, int], batch_size: int) -> Tensor:
        """Return a random batch of images or features (height, width, channels) in the memory layout of training."""
        size, generator = min(batch_size, self.images.num_samples), torch_generator(0, "example batch")
        return torch.rand(size, *shape, generator=generator).permute(0, 3, 1, 2).to(self.device)

    def start_large(self, network: ServerModel | WholeModel) -> None:
        """Load `server.pretrained` and `server.weights`, if set, into the large network.

        Raises `ConfigError` if they do not fit.
        """
        if self.config.server.pretrained is not None:
            load_pretrained(network.layers, self.config.server.model, self.config.server.pretrained)
        if self.config.server.weights is not None:
            load_weights(network, self.config.server.weights, "server.weights")

    def accuracy_of(self, model: Callable[[Tensor], Tensor]) -> Accuracy:
        """Return the accuracy of a network on the test images; `model` maps images to logits."""
        return evaluate_model(model, self.images.test, self.config.evaluate.batch_size, self.machine.watch.advance)

    def steps_left(self, side: ClientConfig | ServerConfig) -> int:
        """Return the number of that side's optimizer steps left in the run, if it passes over all images."""
        rounds = self.rounds_left
        if side is self.config.server:
            rounds = math.ceil(rounds / self.config.client.upload_every)
        return math.ceil(self.images.num_samples / side.batch_size) * side.epochs * rounds


class Training:
    """The steps of the server's optimizer in a round: their learning rate, and their mean loss."""

    def __init__(self, optimizer: Optimizer, config: ServerConfig, num_rounds: int, device: torch.device) -> None:
        self._optimizer = optimizer
        self.schedule = Schedule(config.schedule, config.lr, num_rounds, config.warmup_rounds)
        self._device = device
        self.begin_round(0, 1)

    def begin_round(self, round: int, due: int) -> None:
        """Begin a round that trains on `due` samples, and reset its losses."""
        self._round, self._due = round, due
        self._loss_sum, self.num_samples = torch.zeros((), device=self._device), 0

    def step(self, loss: Tensor, samples: int) -> None:
        """Take one optimizer step along the gradient of `loss`, the mean over `samples` samples."""
        self.set_rate((self.num_samples + samples / 2) / self._due)
        self._optimizer.step(loss)
        self.count(loss.detach() * samples, samples)

    def set_rate(self, part: float) -> None:
        """Set the learning rate for a step whose midpoint is at this fraction of the round."""
        self._optimizer.lr = self.schedule.rate(self._round + min(1.0, part))

    def count(self, loss_sum: Tensor, samples: int) -> None:
        """Add samples, and the sum of their losses, to the round's figures, without synchronising with the device."""
        self._loss_sum += loss_sum
        self.num_samples += samples

    def end_round(self) -> dict[str, float]:
        """Step the schedule; return the round's figures. Raises `GktError` when the training has diverged."""
        loss = float(self._loss_sum) / self.num_samples
        if not math.isfinite(loss):
            raise GktError(f"the server's training has diverged (its loss is {loss}); lower server.lr")
        self.schedule.end_round(loss)
        return {"server_train_loss": loss, "server_lr": self._optimizer.lr}
