"""A network and its optimizer in one contiguous memory block, so that the trained state is copied as bytes."""

from collections.abc import Sequence
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from gkt_mpi.errors import ConfigError
from gkt_mpi.training.optimizer import Optimizer, OptimizerConfig

Model = TypeVar("Model", bound=nn.Module)

Share = Literal["none", "stem", "edge"]  # which part of an edge model clients average
Extract = Literal["own", "shared"]  # whose stem computes the features


class Trainable(Generic[Model]):
    """A model and its optimizer, whose values are the float32 numbers in `memory`, uint8 (bytes,).

    `weights` is the model's part of it: parameters, then the means and variances of BatchNorm; `moments` is the
    optimizer's part. Integer buffers, such as BatchNorm's batch counters, are in neither: they are saved with a state,
    but do not belong to the weights that are sent and averaged.
    """

    def __init__(self, model: Model, config: OptimizerConfig) -> None:
        """Raise `ConfigError` naming a parameter that is not float32, or a buffer that is not float32 or integer."""
        _check_types(model)
        self.model = model
        self.optimizer = Optimizer(config, model.parameters())
        self.plateau = torch.zeros(3, device=next(model.parameters()).device)  # for its schedule, if that has a state
        weights = weights_of(model)
        moments = [*self.optimizer.state, *([self.plateau] if config.schedule == "plateau" else [])]
        self.memory = _share_memory([*weights, *moments])
        self.weights, self.moments = self.memory.split(
            [sum(part.nbytes for part in both) for both in (weights, moments)]
        )
        self._kept = self.memory

    @property
    def _counts(self) -> list[Tensor]:
        return [buffer for buffer in self.model.buffers() if not buffer.is_floating_point()]

    @property
    def state_bytes(self) -> int:
        """Size of a state in bytes."""
        return len(self._kept) + 4 * sum(count.nbytes for count in self._counts)

    def state(self) -> Tensor:
        """Return a copy of the complete state, float32 numbers as uint8 (state_bytes,), on the model's device.

        Integers come last, each of their bytes as a number from 0 to 255: exact, and never NaN.
        """
        if not self._counts:
            return self._kept.clone()
        counts = torch.cat([count.flatten().view(torch.uint8) for count in self._counts])
        return torch.cat([self._kept, counts.float().view(torch.uint8)])

    def load(self, state: Tensor) -> None:
        """Restore what `state()` returned."""
        kept, counts = state.split([len(self._kept), len(state) - len(self._kept)])
        self._kept.copy_(kept)
        sizes = [count.nbytes for count in self._counts]
        parts = counts.contiguous().view(torch.float32).to(torch.uint8).split(sizes) if sizes else ()
        for count, part in zip(self._counts, parts, strict=True):
            count.copy_(part.clone().view(count.dtype).view(count.shape))

    def mean(self, states: list[Tensor], weights: list[int]) -> Tensor:
        """Return the weighted mean of states as a state; its integers are those of the first."""
        mean = weighted_mean([state[: len(self._kept)] for state in states], weights)
        return torch.cat([mean, states[0][len(self._kept) :]])


class Edge(Trainable[Model]):
    """A client's model and optimizer in a worker's memory, into which the state of any client is loaded.

    The state is what a client keeps between rounds: everything or, with `weights_travel`, everything except the
    weights, since these come with every request. `shared` are the parts of the model whose weights the clients average.
    """

    def __init__(
        self, model: Model, config: OptimizerConfig, weights_travel: bool = False, shared: Sequence[nn.Module] = ()
    ) -> None:
        super().__init__(model, config)
        self._kept = self.moments if weights_travel else self.memory
        self._shared = [tensor for part in shared for tensor in weights_of(part)]
        self.travelling_bytes = len(self.weights) if weights_travel else sum(tensor.nbytes for tensor in self._shared)

    def state(self) -> Tensor:
        """Return a copy of a client's state as one uint8 tensor (state_bytes,) in host memory."""
        return super().state().cpu()

    @property
    def shared_weights(self) -> Tensor:
        """A copy of the weights that clients average, float32 numbers as uint8 (travelling_bytes,).

        Part by part: the parameters of each, then means and variances.
        """
        return torch.cat([tensor.detach().flatten().view(torch.uint8) for tensor in self._shared])

    def adopt(self, weights: Tensor) -> None:
        """Load what `shared_weights` returned, of this edge or as a mean."""
        parts = weights.split([tensor.nbytes for tensor in self._shared])
        with torch.no_grad():
            for tensor, part in zip(self._shared, parts, strict=True):
                tensor.copy_(part.view(torch.float32).view(tensor.shape))


AnyEdge = Edge[Any]  # of whichever network the algorithm's clients train


def weights_of(model: nn.Module) -> list[Tensor]:
    """Return the tensors of a model that are sent and averaged: parameters, then buffers except integers."""
    return [*model.parameters(), *(buffer for buffer in model.buffers() if buffer.is_floating_point())]


def weighted_mean(memories: list[Tensor], weights: list[int]) -> Tensor:
    """Return the weighted mean of float32 numbers held as uint8 (bytes,), in the same form; summed in float64."""
    total = torch.zeros(len(memories[0]) // 4, dtype=torch.float64, device=memories[0].device)
    for memory, weight in zip(memories, weights, strict=True):
        total += memory.view(torch.float32).double() * weight
    return (total / sum(weights)).float().view(torch.uint8)


def _check_types(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        is_whole = not (tensor.is_floating_point() or tensor.is_complex() or isinstance(tensor, nn.Parameter))
        if tensor.dtype != torch.float32 and not is_whole:
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise ConfigError(f"{name} of a model is of {dtype}; expected float32, or integers in a buffer")


def _share_memory(tensors: list[Tensor]) -> Tensor:
    """Move float32 tensors into one memory block, uint8 (bytes,), and return it; the tensors keep their identity."""
    assert all(tensor.dtype == torch.float32 for tensor in tensors)
    memory = torch.empty(sum(tensor.nbytes for tensor in tensors), dtype=torch.uint8, device=tensors[0].device)
    for tensor, part in zip(tensors, memory.split([tensor.nbytes for tensor in tensors]), strict=True):
        place = part.view(tensor.dtype).as_strided(tensor.shape, tensor.stride())
        tensor.data = place.copy_(tensor.detach())
    return memory
