"""Optimizers of both sides, with the paper's settings, and the server's learning-rate schedules."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

OptimizerName = Literal["adam", "sgd"]
ScheduleName = Literal["constant", "cosine", "plateau"]
PLATEAU_PATIENCE = 10  # rounds, as released


def build_optimizer(
    name: OptimizerName, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Return Adam with amsgrad, or SGD with Nesterov momentum 0.9 (the released code's), its state already there.

    The state of a fresh optimizer appears only at its first step. Here it exists from the start, filled with
    zeros, which is what the first step would begin with: so a client's state has one fixed size.
    """
    parameters = list(parameters)
    optimizer: torch.optim.Optimizer
    if name == "adam":
        optimizer = torch.optim.Adam(parameters, 0.0, weight_decay=weight_decay, amsgrad=True, fused=True)
    else:
        optimizer = torch.optim.SGD(parameters, 0.0, 0.9, weight_decay=weight_decay, nesterov=True, fused=True)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # at a rate of 0: makes the state, leaves the parameters
    optimizer.zero_grad()
    for tensor in optimizer_tensors(optimizer):
        tensor.zero_()
    for group in optimizer.param_groups:
        group["lr"] = lr
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
