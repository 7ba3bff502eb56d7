import math

import pytest
import torch

from gkt_mpi.engine.client import ClientConfig
from gkt_mpi.engine.optimizer import Optimizer, Schedule

LOSSES = {
    "falling": [1 / (k + 1) for k in range(40)],
    "stalled": [1.0] * 40,
    "hardly falling": [1 - 1e-5 * k for k in range(40)],
    "up and down": [1 + math.sin(k) / (k + 1) for k in range(40)],
}


def make(name="adam", weight_decay=0.1, lr=0.01):
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    return parameter, Optimizer(ClientConfig(optimizer=name, lr=lr, weight_decay=weight_decay), [parameter])


@pytest.mark.parametrize(("name", "count"), [("adam", 4), ("sgd", 2)])
def test_a_new_optimizer_has_its_whole_state_at_zero(name, count):
    parameter, optimizer = make(name)
    state = optimizer.state
    assert len(state) == count
    assert all(not tensor.any() for tensor in state)
    optimizer.step(parameter.square().sum())
    assert parameter.grad is None
    assert all(before is after for before, after in zip(state, optimizer.state, strict=True))


def test_adam_is_amsgrad_as_released():
    """Three steps by the formulas of Reddi et al. 2018, in Python floats, with L2 in the gradient."""
    parameter, optimizer = make(weight_decay=1e-4)
    x, m, v, largest = 1.0, 0.0, 0.0, 0.0
    for step, slope in enumerate((0.5, -0.1, 0.02), start=1):
        optimizer.step((slope * parameter).sum())
        g = slope + 1e-4 * x
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        largest = max(largest, v)
        x -= 0.01 * (m / (1 - 0.9**step)) / ((largest / (1 - 0.999**step)) ** 0.5 + 1e-8)
        assert float(parameter[0].detach()) == pytest.approx(x, rel=1e-6)


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_steps_are_those_of_torchs_own_optimizer(name):
    """Also for a parameter in channels-last layout, whose rate changes on the way."""
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    weight = weight.contiguous(memory_format=torch.channels_last)
    ours, theirs = torch.nn.Parameter(weight.clone()), torch.nn.Parameter(weight.clone())
    optimizer = Optimizer(ClientConfig(optimizer=name, lr=0.01, weight_decay=0.1), [ours])
    if name == "adam":
        reference = torch.optim.Adam([theirs], 0.01, weight_decay=0.1, amsgrad=True)
    else:
        reference = torch.optim.SGD([theirs], 0.01, 0.9, weight_decay=0.1, nesterov=True)
    scale = torch.arange(108.0).reshape(4, 3, 3, 3)
    for step in range(5):
        if step == 3:
            optimizer.lr = reference.param_groups[0]["lr"] = 0.002
        optimizer.step((scale * ours.sin()).sum())
        reference.zero_grad()
        (scale * theirs.sin()).sum().backward()
        reference.step()
        torch.testing.assert_close(ours, theirs)


def rates(schedule, losses):
    found = []
    for loss in losses:
        found.append(schedule.rate())
        schedule.end_round(loss)
    return found


def torch_rates(name, losses):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.01)
    schedulers = torch.optim.lr_scheduler
    schedule = {
        "constant": lambda: schedulers.ConstantLR(optimizer, 1.0),
        "cosine": lambda: schedulers.CosineAnnealingLR(optimizer, T_max=len(losses)),
        "plateau": lambda: schedulers.ReduceLROnPlateau(optimizer, "min", factor=0.1, patience=10),
    }[name]()
    found = []
    for loss in losses:
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step(*([loss] if name == "plateau" else []))
    return found


@pytest.mark.parametrize("losses", LOSSES.values(), ids=LOSSES.keys())
@pytest.mark.parametrize("name", ["constant", "cosine", "plateau"])
def test_schedules_are_torchs_own(name, losses):
    found = rates(Schedule(name, 0.01, len(losses)), losses)
    assert found == pytest.approx(torch_rates(name, losses), rel=1e-9, abs=1e-12)


def test_a_plateau_falls_after_more_than_ten_rounds_without_a_lower_loss():
    found = rates(Schedule("plateau", 0.01, 40), LOSSES["stalled"])
    assert found[:12] == [0.01] * 12 and found[12] == pytest.approx(0.001)


def test_a_schedule_goes_on_from_its_state():
    losses = LOSSES["up and down"]
    whole, first, second = (Schedule("plateau", 0.01, 40) for _ in range(3))
    expected = rates(whole, losses)
    rates(first, losses[:17])
    second.load(first.state())
    assert rates(second, losses[17:]) == expected[17:]
