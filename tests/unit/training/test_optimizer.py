import pytest
import torch

from gkt_mpi.federation.client import ClientConfig
from gkt_mpi.training.optimizer import Optimizer


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
    """Also for a parameter in channels-last layout, with a changing learning rate."""
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
