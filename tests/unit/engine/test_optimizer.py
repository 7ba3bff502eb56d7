import pytest
import torch

from gkt_mpi.engine.client import ClientConfig
from gkt_mpi.engine.optimizer import build_optimizer, build_schedule, optimizer_tensors, step_schedule


def make(name="adam", weight_decay=0.1):
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    return parameter, build_optimizer(ClientConfig(optimizer=name, lr=0.01, weight_decay=weight_decay), [parameter])


@pytest.mark.parametrize(("name", "count"), [("adam", 4), ("sgd", 1)])
def test_a_new_optimizer_has_its_state_at_zero_and_has_moved_nothing(name, count):
    parameter, optimizer = make(name)
    assert parameter.tolist() == [1.0, -2.0, 3.0]
    tensors = optimizer_tensors(optimizer)
    assert len(tensors) == count
    assert all(not tensor.any() for tensor in tensors)


def test_adam_is_amsgrad_as_released():
    """Three steps by the formulas of Reddi et al. 2018, in Python floats, with L2 in the gradient."""
    parameter, optimizer = make(weight_decay=1e-4)
    x, m, v, largest = 1.0, 0.0, 0.0, 0.0
    for step, slope in enumerate((0.5, -0.1, 0.02), start=1):
        parameter.grad = torch.full((3,), slope)
        optimizer.step()
        g = slope + 1e-4 * x
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        largest = max(largest, v)
        x -= 0.01 * (m / (1 - 0.9**step)) / ((largest / (1 - 0.999**step)) ** 0.5 + 1e-8)
        assert float(parameter[0].detach()) == pytest.approx(x, rel=1e-6)


def rates(name, losses, rounds=20):
    _, optimizer = make()
    schedule = build_schedule(name, optimizer, rounds)
    found = []
    for loss in losses:
        optimizer.step()
        found.append(optimizer.param_groups[0]["lr"])
        step_schedule(schedule, loss)
    return found


def test_schedules():
    assert rates("constant", range(20)) == [0.01] * 20
    cosine = rates("cosine", range(20))
    assert cosine[0] == 0.01 and cosine[10] == pytest.approx(0.005) and cosine[19] < 1e-4
    falling = rates("plateau", [1 / (k + 1) for k in range(20)])
    assert falling == [0.01] * 20
    stalled = rates("plateau", [1.0] * 20)
    assert stalled[:12] == [0.01] * 12 and stalled[12] == pytest.approx(0.001)
