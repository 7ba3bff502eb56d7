"""Optimizers of both sides, with the paper's settings. Their learning rates: schedule.py."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from gkt_mpi.errors import require
from gkt_mpi.training.schedule import ScheduleName

OptimizerName = Literal["adam", "sgd"]


@dataclass(frozen=True)
class OptimizerConfig:
    """Training settings common to both sides; `ClientConfig` and `ServerConfig` add the rest."""

    optimizer: OptimizerName = "adam"
    """adam (with amsgrad) or sgd (Nesterov momentum 0.9)."""
    lr: float = 0.001
    """Learning rate before the schedule, for onecycle the maximum; above 0."""
    schedule: ScheduleName = "constant"
    """Learning-rate schedule, step by step over the whole run. cosine, linear: decay to 0. onecycle: increase for three
    tenths of the run, then decay (Smith and Topin 2017). plateau: by round, a tenth after 10 rounds without a lower
    training loss."""
    warmup_rounds: float = 0.0
    """Rounds of linear warm-up from 0 before the schedule begins; 0 or more."""
    weight_decay: float = 1e-4
    """L2 penalty; 0 or more. The paper's code uses 1e-4 with adam and 5e-4 with sgd."""
    batch_size: int = 256
    """Samples in a training batch; at least 1. A smaller last batch is used as well."""

    group: ClassVar[str]  # the field group's name, for error messages

    def __post_init__(self) -> None:
        require(self.lr > 0, f"{self.group}.lr", self.lr, "a number above 0")
        require(self.warmup_rounds >= 0, f"{self.group}.warmup_rounds", self.warmup_rounds, "0 or more")
        if self.schedule == "onecycle":
            require(
                not self.warmup_rounds, f"{self.group}.warmup_rounds", self.warmup_rounds, "0: onecycle has its own"
            )
        require(self.weight_decay >= 0, f"{self.group}.weight_decay", self.weight_decay, "0 or more")
        require(self.batch_size >= 1, f"{self.group}.batch_size", self.batch_size, "at least 1")


class Optimizer:
    """Adam with amsgrad, or SGD with Nesterov momentum 0.9 (the released code's), with torch's fused kernels.

    torch's own optimizer classes are not used, for two reasons. Their first use imports torch's compiler, which adds
    one or two seconds to every rank's start. And they create their state at the first step; here it exists from the
    start, filled with the zeros of the first step, so that a client's state has a fixed size.
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
        """All tensors of the state, in a fixed order; their identity does not change."""
        return [*itertools.chain.from_iterable(self._buffers), *self._steps_done]

    def step(self, loss: Tensor) -> None:
        """Take one step along the gradient of `loss` at the rate `lr`; gradients are not kept."""
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
