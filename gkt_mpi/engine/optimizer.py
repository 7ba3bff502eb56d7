"""Optimizers of both sides, with the paper's settings, and the server's learning-rate schedules."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from gkt_mpi.errors import require

OptimizerName = Literal["adam", "sgd"]
ScheduleName = Literal["constant", "cosine", "plateau"]
PLATEAU_PATIENCE = 10  # rounds, as released


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


def build_optimizer(config: OptimizerConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Return Adam with amsgrad, or SGD with Nesterov momentum 0.9 (the released code's), its state already there.

    The state of a fresh optimizer appears only at its first step. Here it exists from the start, filled with
    zeros, which is what the first step would begin with: so a client's state has one fixed size.
    """
    parameters = list(parameters)
    optimizer: torch.optim.Optimizer
    if config.optimizer == "adam":
        optimizer = torch.optim.Adam(parameters, 0.0, weight_decay=config.weight_decay, amsgrad=True, fused=True)
    else:
        optimizer = torch.optim.SGD(parameters, 0.0, 0.9, weight_decay=config.weight_decay, nesterov=True, fused=True)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # at a rate of 0: makes the state, leaves the parameters
    optimizer.zero_grad()
    for tensor in optimizer_tensors(optimizer):
        tensor.zero_()
    for group in optimizer.param_groups:
        group["lr"] = config.lr
    return optimizer


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return every tensor of an optimizer's state, in an order that is always the same."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return [state for p in parameters for _, state in sorted(optimizer.state[p].items()) if isinstance(state, Tensor)]


Schedule = torch.optim.lr_scheduler.LRScheduler


def build_schedule(name: ScheduleName, optimizer: torch.optim.Optimizer, num_rounds: int) -> Schedule:
    """Return the schedule, stepped once a round.

    DIFFERS: the released plateau watches the best accuracy on the test set. Ours watches the server's training
    loss, so that no test image has a say in the training; factor 0.1 and patience as released.
    """
    schedulers = torch.optim.lr_scheduler
    match name:
        case "constant":
            return schedulers.ConstantLR(optimizer, factor=1.0)
        case "cosine":
            return schedulers.CosineAnnealingLR(optimizer, T_max=num_rounds)
        case "plateau":
            return schedulers.ReduceLROnPlateau(optimizer, "min", factor=0.1, patience=PLATEAU_PATIENCE)


def step_schedule(schedule: Schedule, train_loss: float) -> None:
    """Step a schedule at the end of a round whose mean training loss was `train_loss`."""
    if isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
        schedule.step(train_loss)
    else:
        schedule.step()
