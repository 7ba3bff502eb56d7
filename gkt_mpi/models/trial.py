"""Tries out networks before a run: shapes, types, gradients and repeatability, on two random images.

A user's network that cannot be trained is refused in one line, before any client computes. Built-in ones are tried as
well, since the size of the images may not suit them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gkt_mpi.errors import ConfigError
from gkt_mpi.models.family import FeatureShape, ImageShape, NormName
from gkt_mpi.models.networks import (
    EDGE_FAMILIES,
    EdgeName,
    Network,
    ServerName,
    build_edge_model,
    build_server_model,
    build_whole_model,
)
from gkt_mpi.seeding import torch_generator

_CPU = torch.device("cpu")
_BATCH = 2
Built = TypeVar("Built")


@dataclass(frozen=True)
class _Trial:
    """A network on trial, and how errors name it."""

    what: str  # such as "client.model resnet8"
    inputs: str  # such as "images of 32x32x3 (height, width, channels)"
    num_classes: int

    def error(self, text: str) -> ConfigError:
        return ConfigError(f"{self.what} {text}")

    def attempt(self, step: str, run: Callable[[], Built]) -> Built:
        """Return what `run` returns. Raises `ConfigError` in one line for any error in a user's network."""
        try:
            return run()
        except ConfigError:
            raise
        except Exception as error:
            raise self.error(f"fails on {self.inputs} {step}: {_line(error)}") from error

    def check_tensor(self, found: object, shape: tuple[int | None, ...], what: str) -> Tensor:
        """Return a tensor if it is float32, finite and of this shape, where None stands for any size."""
        expected = f"one float32 tensor ({', '.join('any' if size is None else str(size) for size in shape)})"
        if not isinstance(found, Tensor):
            raise self.error(f"returns a {type(found).__name__} as {what} of {self.inputs}; expected {expected}")
        same_rank = found.dim() == len(shape)
        fits = same_rank and all(size in (None, of) for size, of in zip(shape, found.shape, strict=True))
        if not fits or found.dtype != torch.float32:
            kind = str(found.dtype).removeprefix("torch.")
            raise self.error(
                f"returns {what} {kind} {tuple(found.shape)} of {_BATCH} {self.inputs}; expected {expected}"
            )
        if not bool(found.isfinite().all()):
            raise self.error(f"returns {what} that is not finite, of {self.inputs}; check its initial weights")
        return found


def try_edge(name: EdgeName, image_shape: ImageShape, num_classes: int, norm: NormName) -> float:
    """Try an edge model; return the smallest value of its features, in training and in evaluation mode.

    Raises `ConfigError` if it cannot be trained.
    """
    trial = _Trial(f"client.model {name}", f"images of {_sizes(image_shape)}", num_classes)
    built: object = trial.attempt(
        "while it is built", lambda: EDGE_FAMILIES[name].build(image_shape, num_classes, norm)
    )
    if not (isinstance(built, tuple) and len(built) == 2 and all(isinstance(part, nn.Module) for part in built)):
        raise trial.error(f"builds a {type(built).__name__}; expected (stem, head), two torch.nn.Module")
    numbers = torch_generator(0, "trial")
    edge = build_edge_model(name, image_shape, num_classes, torch_generator(0, "edge model"), _CPU, norm)
    for part, module in (("stem", edge.stem), ("head", edge.head)):
        if not list(module.parameters()):
            raise trial.error(f"has a {part} without parameters; expected at least one layer that learns")
    lowest = []

    def stem_and_head(image: Tensor) -> Tensor:
        """Return logits (B, C) of images (B, channels, H, W); check the feature and note its smallest value."""
        feature = trial.check_tensor(edge.stem(image), (len(image), None, None, None), "a feature")
        lowest.append(float(feature.detach().min()))
        logit: Tensor = edge.head(feature)
        return logit

    _try(trial, edge, stem_and_head, _random(image_shape, numbers))
    return min(lowest)


def try_server(
    name: ServerName,
    feature_shape: FeatureShape,
    num_classes: int,
    norm: NormName,
    cut: str | None,
    edges: str,
) -> None:
    """Try a large network without its stem on features of this shape, those of `edges`.

    Raises `ConfigError` if it cannot be trained on them.
    """
    inputs = f"features of {_sizes(feature_shape)}, which {edges} gives"
    trial = _Trial(f"server.model {name}", inputs, num_classes)
    generator = torch_generator(0, "server model")
    server = trial.attempt(
        "while it is built",
        lambda: build_server_model(name, feature_shape, num_classes, generator, _CPU, norm, cut),
    )
    _try(trial, server, server.layers, _random(feature_shape, torch_generator(0, "trial")))


def try_whole(name: ServerName, image_shape: ImageShape, num_classes: int, norm: NormName, cut: str | None) -> None:
    """Try a large network with its stem. Raises `ConfigError` if it cannot be trained."""
    trial = _Trial(f"server.model {name}, with its stem,", f"images of {_sizes(image_shape)}", num_classes)
    generator = torch_generator(0, "whole model")
    whole = trial.attempt(
        "while it is built",
        lambda: build_whole_model(name, image_shape, num_classes, generator, _CPU, norm, cut),
    )

    def network(image: Tensor) -> Tensor:
        """Return logits (B, C) of images (B, channels, H, W); check the feature between."""
        feature = trial.check_tensor(whole.stem(image), (len(image), None, None, None), "a feature")
        logit: Tensor = whole.layers(feature)
        return logit

    _try(trial, whole, network, _random(image_shape, torch_generator(0, "trial")))


def _try(trial: _Trial, model: Network, network: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Train and evaluate once. Raises `ConfigError` for what would fail later, or learn nothing."""
    _check_types(trial, model)
    shape = (_BATCH, trial.num_classes)
    model.train()
    logit = trial.check_tensor(trial.attempt("in training", lambda: network(x)), shape, "logits")
    _check_gradients(trial, model, logit)
    with torch.no_grad():
        try:
            network(x[:1])
        except ValueError as error:
            raise trial.error(
                f"cannot train on a batch with a single one of {trial.inputs}, as the last of a pass may be "
                f"({_line(error)}); use a normalisation other than BatchNorm, larger images, or fewer strides"
            ) from error
        model.eval()
        first, second = (trial.attempt("in evaluation", lambda: network(x)) for _ in range(2))
    trial.check_tensor(first, shape, "logits")
    if bool((first != second).any()):
        raise trial.error("gives other logits at a second call in evaluation mode; expected the same, bit for bit")


def _check_types(trial: _Trial, model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        is_parameter = isinstance(tensor, nn.Parameter)
        is_count = not is_parameter and not tensor.is_floating_point() and not tensor.is_complex()
        if tensor.dtype != torch.float32 and not is_count:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise trial.error(f"holds {name} in {kind}; expected float32, or integers in a buffer")
        if is_parameter and not tensor.requires_grad:
            raise trial.error(f"has a frozen parameter, {name}; expected a buffer, or requires_grad")


def _check_gradients(trial: _Trial, model: nn.Module, logit: Tensor) -> None:
    """Raise `ConfigError` unless the loss has a finite gradient with respect to every parameter."""
    loss = F.cross_entropy(logit, torch.arange(_BATCH) % trial.num_classes)
    names, parameters = zip(*model.named_parameters(), strict=True)
    if not logit.requires_grad:
        raise trial.error("computes logits without gradients; expected a network that can be trained")
    gradients = trial.attempt("in the backward pass", lambda: torch.autograd.grad(loss, parameters, allow_unused=True))
    for name, gradient in zip(names, gradients, strict=True):
        if gradient is None:
            raise trial.error(f"does not use its parameter {name}: the loss has no gradient there; remove it")
        if not bool(gradient.isfinite().all()):
            raise trial.error(f"has a gradient that is not finite, of {name}; check its initial weights")


def _random(shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Return normally distributed inputs (batch, channels, height, width), as normalised images are, channels-last."""
    return torch.randn(_BATCH, *shape, generator=generator).permute(0, 3, 1, 2)


def _sizes(shape: tuple[int, int, int]) -> str:
    return f"{'x'.join(map(str, shape))} (height, width, channels)"


def _line(error: Exception) -> str:
    """Return an error's kind and first line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
