"""A network with its optimizer, in one piece of memory: what is trained, on either side, is copied as bytes."""

from collections.abc import Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from gkt_mpi.engine.optimizer import Optimizer, OptimizerConfig

Model = TypeVar("Model", bound=nn.Module)


class Trainable(Generic[Model]):
    """A model and its optimizer, whose values are the float32 numbers in `memory`, uint8 (bytes,).

    `weights` is the part of it that the model is: parameters, then the means and variances of BatchNorm; `moments` what
    training has gathered besides.
    """

    def __init__(self, model: Model, config: OptimizerConfig) -> None:
        self.model = model
        self.optimizer = Optimizer(config, model.parameters())
        self.plateau = torch.zeros(3, device=next(model.parameters()).device)  # for its schedule, where that needs it
        weights = [*model.parameters(), *model.buffers()]
        moments = [*self.optimizer.state, *([self.plateau] if config.schedule == "plateau" else [])]
        self.memory = _share_memory([*weights, *moments])
        self.weights, self.moments = self.memory.split(
            [sum(part.nbytes for part in both) for both in (weights, moments)]
        )

    def load(self, memory: Tensor) -> None:
        """Become what `memory`, uint8 (bytes,), holds."""
        self.memory.copy_(memory)


class Edge(Trainable[Model]):
    """A client's model and optimizer in a worker's memory, into which the state of any client is loaded.

    The state is what a client keeps from round to round: everything, or where `weights_travel`, since they come
    with every request, the optimizer's alone. `shared` are the parts of the model whose weights the clients average.
    """

    def __init__(
        self, model: Model, config: OptimizerConfig, weights_travel: bool = False, shared: Sequence[nn.Module] = ()
    ) -> None:
        super().__init__(model, config)
        self._kept = self.moments if weights_travel else self.memory
        self._shared = [tensor for part in shared for tensor in (*part.parameters(), *part.buffers())]
        self.travelling_bytes = len(self.weights) if weights_travel else sum(tensor.nbytes for tensor in self._shared)

    @property
    def state_bytes(self) -> int:
        """Bytes of a client's state."""
        return len(self._kept)

    def state(self) -> Tensor:
        """Return a copy of a client's state as one uint8 tensor (state_bytes,) in host memory."""
        return self._kept.to("cpu", copy=True)

    def load(self, state: Tensor) -> None:
        """Take over what `state()` returned."""
        self._kept.copy_(state)

    @property
    def shared_weights(self) -> Tensor:
        """A copy of the weights that clients average, float32 numbers as uint8 (travelling_bytes,).

        Part by part, of each the parameters, then means and variances.
        """
        return torch.cat([tensor.detach().flatten().view(torch.uint8) for tensor in self._shared])

    def adopt(self, weights: Tensor) -> None:
        """Take over what `shared_weights` returned, of this edge or as a mean."""
        parts = weights.split([tensor.nbytes for tensor in self._shared])
        with torch.no_grad():
            for tensor, part in zip(self._shared, parts, strict=True):
                tensor.copy_(part.view(torch.float32).view(tensor.shape))


def weighted_mean(memories: list[Tensor], weights: list[int]) -> Tensor:
    """Return the mean of float32 numbers held as uint8 (bytes,), weighted, as uint8 (bytes,); summed in float64."""
    total = torch.zeros(len(memories[0]) // 4, dtype=torch.float64, device=memories[0].device)
    for memory, weight in zip(memories, weights, strict=True):
        total += memory.view(torch.float32).double() * weight
    return (total / sum(weights)).float().view(torch.uint8)


def _share_memory(tensors: list[Tensor]) -> Tensor:
    """Move float32 tensors into one piece of memory, uint8 (bytes,), and return it; they stay the same objects."""
    assert all(tensor.dtype == torch.float32 for tensor in tensors)
    memory = torch.empty(sum(tensor.nbytes for tensor in tensors), dtype=torch.uint8, device=tensors[0].device)
    for tensor, part in zip(tensors, memory.split([tensor.nbytes for tensor in tensors]), strict=True):
        place = part.view(tensor.dtype).as_strided(tensor.shape, tensor.stride())
        tensor.data = place.copy_(tensor.detach())
    return memory
