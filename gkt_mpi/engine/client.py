"""An edge client: its shard, its small model, and its state between rounds.

A worker owns one `Edge` (a model and an optimizer in memory) however many clients it hosts. A client between
rounds is its shard and `state`, about 170 kB of bytes; to train, the state is loaded into the worker's edge.
The server uses an `Edge` too, to evaluate each client's stem.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gkt_mpi.data.shard import Shard
from gkt_mpi.engine.optimizer import Optimizer, OptimizerConfig
from gkt_mpi.errors import WireError, require
from gkt_mpi.models.resnet import EdgeName, NormName, build_edge_model
from gkt_mpi.seeding import torch_generator


@dataclass(frozen=True)
class ClientConfig(OptimizerConfig):
    """The edge clients."""

    model: EdgeName = "resnet8"
    """Edge model: the stem and a small head. The paper's main results use resnet8."""
    norm: NormName = "batch"
    """Normalisation in the edge model. group: of each image by itself, instead of BatchNorm over a batch."""
    epochs: int = 1
    """Passes over its own images that a client trains each round; 0 leaves it untrained."""

    group: ClassVar[str] = "client"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.epochs >= 0, "client.epochs", self.epochs, "0 or more")


class Edge:
    """An edge model and its optimizer, into which the state of any client is loaded."""

    def __init__(
        self, config: ClientConfig, image_channels: int, num_classes: int, seed: int, device: torch.device
    ) -> None:
        # Every client begins with the same weights, as in the released code. DIFFERS: random ones; the released
        # edge models once began from weights trained centrally on the same data set.
        generator = torch_generator(seed, "edge model")
        self.model = build_edge_model(config.model, image_channels, num_classes, generator, device, config.norm)
        self.num_classes = num_classes
        self.optimizer = Optimizer(config, self.model.parameters())
        self._memory = _share_memory([*self.model.parameters(), *self.model.buffers(), *self.optimizer.state])

    @property
    def state_bytes(self) -> int:
        """Bytes of a client's state."""
        return len(self._memory)

    def state(self) -> Tensor:
        """Return a copy of model and optimizer as one uint8 tensor (state_bytes,) in host memory."""
        return self._memory.to("cpu", copy=True)

    def load(self, state: Tensor) -> None:
        """Fill model and optimizer from what `state()` returned."""
        self._memory.copy_(state)


def _share_memory(tensors: list[Tensor]) -> Tensor:
    """Move tensors into one piece of memory, uint8 (bytes,), and return it; they stay the same objects."""
    tensors = sorted(tensors, key=lambda tensor: -tensor.itemsize)  # keeps int64 on 8-byte boundaries
    memory = torch.empty(sum(tensor.nbytes for tensor in tensors), dtype=torch.uint8, device=tensors[0].device)
    for tensor, part in zip(tensors, memory.split([tensor.nbytes for tensor in tensors]), strict=True):
        place = part.view(tensor.dtype).as_strided(tensor.shape, tensor.stride())
        tensor.data = place.copy_(tensor.detach())
    return memory


class Client:
    """One client, its state loaded into the worker's edge: what an algorithm's client side works with."""

    def __init__(
        self,
        client_id: int,
        shard: Shard,
        edge: Edge,
        config: ClientConfig,
        seed: int,
        on_batch: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_batch` is called before each batch of training; what it raises ends the training."""
        self.id = client_id
        self.shard = shard
        self.config = config
        self.seed = seed
        self.model = edge.model
        self.class_count = shard.label.bincount(minlength=edge.num_classes)  # int64 (C,)
        self._optimizer = edge.optimizer
        self._device = shard.image.device
        self._on_batch = on_batch
        self.samples = 0
        self.loss_sum = torch.zeros((), device=self._device)
        self.correct = torch.zeros((), dtype=torch.int64, device=self._device)

    def align(self, sample_id: Tensor, logit: Tensor) -> Tensor | None:
        """Return the server's logits (N, C) in the order of the shard, or None when there are none yet.

        Rows are matched by sample id, whatever their order. Raises `WireError` unless the ids are exactly
        those of the shard.
        """
        if len(sample_id) == 0:
            return None
        sorted_id, order = sample_id.to(self._device).sort()
        own_id, own_order = self.shard.sample_id.sort()
        if not torch.equal(sorted_id, own_id):
            raise WireError(f"the server sent logits of other samples than those of client {self.id}")
        aligned = torch.empty_like(logit, device=self._device)
        aligned[own_order] = logit.to(self._device)[order]
        return aligned

    def batches(self, round: int, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield (rows of the shard, augmented images, labels) of one training epoch, shuffled."""
        generator = torch_generator(self.seed, "client epoch", self.id, round, epoch, device=self._device)
        for row_B, image in self.shard.train_batches(self.config.batch_size, generator):
            self._on_batch()
            yield row_B, image, self.shard.label[row_B]

    def step(self, loss: Tensor) -> None:
        """Take one optimizer step down the gradient of `loss`."""
        self._optimizer.step(loss)

    def count(self, loss: Tensor, correct: Tensor, samples: int) -> None:
        """Add a batch to the client's metrics of this round, without waiting for the device."""
        self.loss_sum += loss.detach() * samples
        self.correct += correct
        self.samples += samples

    def upload_views(self, round: int, block_rows: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield (rows of the shard, images) of the whole shard in stored order, in blocks, freshly augmented.

        As released, the server learns from augmented views, new ones each round.
        """
        generator = torch_generator(self.seed, "client upload", self.id, round, device=self._device)
        return self.shard.blocks(block_rows, generator)
