"""Optimizers of both sides, with the paper's settings, and the server's learning-rate schedules."""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from gkt_mpi.errors import require

OptimizerName = Literal["adam", "sgd"]
ScheduleName = Literal["constant", "cosine", "plateau"]
PLATEAU_PATIENCE = 10  # rounds, as released
PLATEAU_THRESHOLD = 1e-4  # a loss lower by less than this part is no better; torch's default


@dataclass(frozen=True)
class OptimizerConfig:
    """What both sides' training has in common; `ClientConfig` and `ServerConfig` add the rest."""

    optimizer: OptimizerName = "adam"
    """adam (with amsgrad) or sgd (Nesterov momentum 0.9)."""
    lr: float = 0.001
    """Learning rate at the start; above 0. The clients' stays constant."""
    weight_decay: float = 1e-4
    """L2 penalty; 0 or more. The paper's code uses 1e-4 with adam and 5e-4 with sgd."""
    batch_size: int = 256
    """Samples in a training batch; at least 1. A smaller last batch is used too."""

    group: ClassVar[str]  # the name of the fields' group, for error messages

    def __post_init__(self) -> None:
        require(self.lr > 0, f"{self.group}.lr", self.lr, "a number above 0")
        require(self.weight_decay >= 0, f"{self.group}.weight_decay", self.weight_decay, "0 or more")
        require(self.batch_size >= 1, f"{self.group}.batch_size", self.batch_size, "at least 1")


class Optimizer:
    """Adam with amsgrad, or SGD with Nesterov momentum 0.9 (the released code's), over torch's fused kernels.

    torch's own optimizer objects are not used, for two reasons. Their first use imports torch's compiler, which
    costs every rank one or two seconds of its start. And their state appears only at the first step; here it
    exists from the start, filled with the zeros that the first step begins with, so that a client's state has
    one fixed size.
    """

    def __init__(self, config: OptimizerConfig, parameters: Iterable[nn.Parameter]) -> None:
        self.lr = config.lr
        self._weight_decay = config.weight_decay
        self._parameters: list[Tensor] = list(parameters)
        self._step = self._adam if config.optimizer == "adam" else self._sgd
        num_buffers = 3 if config.optimizer == "adam" else 1
        self._buffers = [[torch.zeros_like(p) for p in self._parameters] for _ in range(num_buffers)]
        self._steps_done = [torch.zeros((), device=p.device) for p in self._parameters]

    @property
    def state(self) -> list[Tensor]:
        """Every tensor of the state, in an order that is always the same; they stay the same objects."""
        return [*itertools.chain.from_iterable(self._buffers), *self._steps_done]

    def step(self, loss: Tensor) -> None:
        """Move the parameters down the gradient of `loss` by one step at the rate `lr`; no gradient is kept."""
        loss.backward()  # leaves gradients in the layout of the parameters, as the fused kernels need them
        with torch.no_grad():
            self._step([gradient for p in self._parameters if (gradient := p.grad) is not None])
        for parameter in self._parameters:
            parameter.grad = None

    def _adam(self, gradients: list[Tensor]) -> None:
        first_moments, second_moments, largest_second_moments = self._buffers
        adam(
            self._parameters,
            gradients,
            first_moments,
            second_moments,
            largest_second_moments,
            self._steps_done,
            fused=True,
            amsgrad=True,
            beta1=0.9,
            beta2=0.999,
            lr=self.lr,
            weight_decay=self._weight_decay,
            eps=1e-8,
            maximize=False,
        )

    def _sgd(self, gradients: list[Tensor]) -> None:
        momenta: list[Tensor | None] = [*self._buffers[0]]
        sgd(
            self._parameters,
            gradients,
            momenta,
            fused=True,
            weight_decay=self._weight_decay,
            momentum=0.9,
            lr=self.lr,
            dampening=0,
            nesterov=True,
            maximize=False,
        )


class Schedule:
    """The server's learning rate by round.

    DIFFERS: the released plateau watches the best accuracy on the test set. Ours watches the server's training
    loss, so that no test image has a say in the training; factor 0.1 and patience as released.
    """

    def __init__(self, name: ScheduleName, lr: float, num_rounds: int) -> None:
        self._name, self._lr, self._num_rounds = name, lr, num_rounds
        self._rounds_done = 0
        self._best, self._rounds_since_best, self._falls = math.inf, 0, 0

    def rate(self) -> float:
        """Return the learning rate of the next round."""
        match self._name:
            case "constant":
                return self._lr
            case "cosine":
                return self._lr * (1 + math.cos(math.pi * self._rounds_done / self._num_rounds)) / 2
            case "plateau":
                return self._lr * 0.1**self._falls

    def end_round(self, train_loss: float) -> None:
        """Take note of a finished round, whose mean training loss was `train_loss`."""
        self._rounds_done += 1
        if train_loss < self._best * (1 - PLATEAU_THRESHOLD):
            self._best, self._rounds_since_best = train_loss, 0
            return
        self._rounds_since_best += 1
        if self._rounds_since_best > PLATEAU_PATIENCE:
            self._rounds_since_best = 0
            self._falls += 1

    def state(self) -> dict[str, float]:
        """Return what has been seen so far, for a checkpoint."""
        seen = ("_rounds_done", "_best", "_rounds_since_best", "_falls")
        return {name.lstrip("_"): getattr(self, name) for name in seen}

    def load(self, state: dict[str, float]) -> None:
        """Go on from what `state()` returned."""
        for name, value in state.items():
            setattr(self, f"_{name}", value)
