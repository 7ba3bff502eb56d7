"""Parameters, operations and activations of a network, counted on the real modules.

An operation is a multiplication or an addition of a convolution or a matrix product; other layers (norms, ReLU, sums)
are not counted. A count takes about a tenth of a second and is cached.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gkt_mpi.models.family import FeatureShape, ImageShape, NormName
from gkt_mpi.models.networks import (
    EdgeModel,
    EdgeName,
    ServerName,
    WholeModel,
    build_edge_model,
    build_server_model,
    build_whole_model,
)

_BATCH = 8  # images counted together: a norm keeps a few numbers per batch
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class NetworkCost:
    """The cost of a network; operations and activations are per image."""

    parameters: int
    state_bytes: int  # parameters and the norms' statistics, as sent
    forward_flops: int
    training_flops: int  # forward and backward
    activation_bytes: int  # float32, kept from the forward to the backward pass


@cache
def edge_cost(name: EdgeName, image_shape: ImageShape, num_classes: int, norm: NormName = "batch") -> NetworkCost:
    """Return the cost of an edge model, stem and head, on images, whose gradient is not computed."""
    edge = _edge(name, image_shape, num_classes, norm)
    return count(nn.Sequential(edge.stem, edge.head), image_shape)


@cache
def edge_stem_cost(name: EdgeName, image_shape: ImageShape, num_classes: int, norm: NormName = "batch") -> NetworkCost:
    """Return the cost of an edge model's stem alone."""
    return count(_edge(name, image_shape, num_classes, norm).stem, image_shape)


@cache
def whole_cost(
    name: ServerName, image_shape: ImageShape, num_classes: int, norm: NormName = "batch", cut: str | None = None
) -> NetworkCost:
    """Return the cost of a large network with its stem, trained as a whole."""
    whole = _whole(name, image_shape, num_classes, norm, cut)
    return count(nn.Sequential(whole.stem, whole.layers), image_shape)


@cache
def whole_stem_cost(name: ServerName, image_shape: ImageShape, norm: NormName = "batch") -> NetworkCost:
    """Return the cost of a large network's stem alone, trained from its output's gradient: its weights' only."""
    return count(_whole(name, image_shape, 2, norm, None).stem, image_shape)


@cache
def server_cost(
    name: ServerName,
    feature_shape: FeatureShape,
    num_classes: int,
    norm: NormName = "batch",
    cut: str | None = None,
    *,
    with_input_gradient: bool = False,
) -> NetworkCost:
    """Return the cost of a large network without its stem; split learning also needs the gradient of its input."""
    server = build_server_model(name, feature_shape, num_classes, torch.Generator(), _CPU, norm, cut)
    return count(server.layers, feature_shape, with_input_gradient=with_input_gradient)


def _edge(name: EdgeName, image_shape: ImageShape, num_classes: int, norm: NormName) -> EdgeModel:
    return build_edge_model(name, image_shape, num_classes, torch.Generator(), _CPU, norm)


def _whole(name: ServerName, image_shape: ImageShape, num_classes: int, norm: NormName, cut: str | None) -> WholeModel:
    return build_whole_model(name, image_shape, num_classes, torch.Generator(), _CPU, norm, cut)


def count(layers: nn.Module, shape: tuple[int, ...], *, with_input_gradient: bool = False) -> NetworkCost:
    """Return the cost of layers in training mode on inputs of `shape` (height, width, channels), or (width,)."""
    x = torch.zeros(_BATCH, *shape[-1:], *shape[:-1]).requires_grad_(with_input_gradient)
    tensors = [*layers.parameters(), *layers.buffers()]
    known = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    layers.train()
    with _FlopCounter() as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = layers(x)
        forward_flops = counter.flops
        output.sum().backward()
    activations = sum(tensor.untyped_storage().nbytes() for pointer, tensor in kept.items() if pointer not in known)
    return NetworkCost(
        parameters=sum(p.numel() for p in layers.parameters()),
        state_bytes=sum(4 * math.prod(tensor.shape) for tensor in tensors if tensor.is_floating_point()),
        forward_flops=forward_flops // _BATCH,
        training_flops=counter.flops // _BATCH,
        activation_bytes=activations // _BATCH,
    )


class _FlopCounter(TorchDispatchMode):
    """Counts operations by the formulas of torch's FlopCounterMode, with the same results.

    torch's class imports torch's compiler at its first use, which takes the server two to four seconds.
    """

    def __init__(self) -> None:
        from torch.utils.flop_counter import flop_registry

        super().__init__()  # type: ignore[no-untyped-call]
        self._formulas: Mapping[Any, Callable[..., int]] = flop_registry
        self.flops = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Leave `__torch_dispatch__` unwrapped: torch's wrapper would import the compiler."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        formula = self._formulas.get(func.overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=output)
        return output
