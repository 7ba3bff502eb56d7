"""Learning rates: compared with torch's own schedulers, by hand, and as used by both sides' steps."""

import math

import pytest
import torch

from gkt_mpi.errors import ConfigError
from gkt_mpi.training.optimizer import Optimizer
from gkt_mpi.training.schedule import Schedule
from tests.conftest import figures, run_in_threads, stop_after

LOSSES = {
    "falling": [1 / (k + 1) for k in range(40)],
    "stalled": [1.0] * 40,
    "hardly falling": [1 - 1e-5 * k for k in range(40)],
    "up and down": [1 + math.sin(k) / (k + 1) for k in range(40)],
}


def rates(schedule, losses):
    """The rates at the beginning of each round."""
    found = []
    for round, loss in enumerate(losses):
        found.append(schedule.rate(round))
        schedule.end_round(loss)
    return found


def torch_rates(name, losses):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.01)
    schedulers = torch.optim.lr_scheduler
    schedule = {
        "constant": lambda: schedulers.ConstantLR(optimizer, 1.0),
        "cosine": lambda: schedulers.CosineAnnealingLR(optimizer, T_max=len(losses)),
        "linear": lambda: schedulers.LinearLR(optimizer, 1.0, 0.0, len(losses)),
        "plateau": lambda: schedulers.ReduceLROnPlateau(optimizer, "min", factor=0.1, patience=10),
    }[name]()
    found = []
    for loss in losses:
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step(*([loss] if name == "plateau" else []))
    return found


@pytest.mark.parametrize("losses", LOSSES.values(), ids=LOSSES.keys())
@pytest.mark.parametrize("name", ["constant", "cosine", "linear", "plateau"])
def test_schedules_are_torchs_own(name, losses):
    found = rates(Schedule(name, 0.01, len(losses)), losses)
    assert found == pytest.approx(torch_rates(name, losses), rel=1e-9, abs=1e-12)


def test_one_cycle_is_torchs_own():
    """torch counts the steps between the first and the last, and has the highest rate at one of them."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=101, pct_start=31 / 101)
    ours = Schedule("onecycle", 0.01, 10)
    for step in range(101):
        found = ours.rate(10 * step / 100)
        assert found == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
        optimizer.step()
        if step < 100:
            schedule.step()


def test_a_warm_up_rises_in_proportion_and_the_rest_of_the_run_is_the_schedules():
    schedule = Schedule("linear", 0.8, 10, warmup_rounds=2)
    assert [schedule.rate(at) for at in (0, 0.5, 1, 2)] == pytest.approx([0, 0.2, 0.4, 0.8])
    assert [schedule.rate(at) for at in (4, 6, 10, 11)] == pytest.approx([0.6, 0.4, 0, 0])
    assert Schedule("constant", 0.8, 10, warmup_rounds=0.5).rate(0.25) == 0.4


def test_a_plateau_falls_after_more_than_ten_rounds_without_a_lower_loss():
    found = rates(Schedule("plateau", 0.01, 40), LOSSES["stalled"])
    assert found[:12] == [0.01] * 12 and found[12] == pytest.approx(0.001)


def test_a_schedule_resumes_from_its_state():
    losses = LOSSES["up and down"]
    whole, first = Schedule("plateau", 0.01, 40), Schedule("plateau", 0.01, 40)
    expected = rates(whole, losses)
    rates(first, losses[:17])
    second = Schedule("plateau", 0.01, 40, seen=first.seen.clone())
    assert rates(second, losses[17:]) == expected[17:]


@pytest.fixture
def used(monkeypatch):
    """The learning rates of all steps of a run of 2 rounds, by the number of parameters that they update."""
    rates_of = {}
    step = Optimizer.step

    def watched(optimizer, loss):
        rates_of.setdefault(len(optimizer.state), []).append(optimizer.lr)
        step(optimizer, loss)

    monkeypatch.setattr(Optimizer, "step", watched)
    return rates_of


def test_every_step_of_both_sides_has_the_rate_of_its_midpoint(tiny, used):
    """One client of 12 images in batches of 8, two epochs per round; the server passes them once in batches of 6."""
    sizes = {"clients": 1, "data__synthetic__train": 12, "client__epochs": 2, "server__batch_size": 6}
    schedules = {"client__schedule": "linear", "client__lr": 0.4, "server__schedule": "cosine", "server__lr": 0.2}
    run_in_threads(tiny(**sizes, **schedules), 2)
    client, server = used.values()
    done = [8 / 2, 8 + 4 / 2, 12 + 8 / 2, 20 + 4 / 2]
    at = [round + each / 24 for round in range(2) for each in done]
    assert client == pytest.approx([0.4 * (1 - each / 2) for each in at], rel=1e-12)
    at = [round + each / 12 for round in range(2) for each in (3, 9)]
    assert server == pytest.approx([0.1 * (1 + math.cos(math.pi * each / 2)) for each in at], rel=1e-12)


ALGORITHMS = [
    {"algorithm": "fedgkt", "client__share": "stem"},
    {"algorithm": "fedgkt_async", "devices__edge": "[phone, phone_new, phone_old]", "async__buffer": 2},
    {"algorithm": "fedavg"},
    {"algorithm": "split_learning", "split__mode": "parallel"},
    {"algorithm": "standalone"},
]


@pytest.mark.parametrize("changes", ALGORITHMS, ids=lambda changes: changes["algorithm"])
@pytest.mark.parametrize("name", ["plateau", pytest.param("onecycle", marks=pytest.mark.grid)])
def test_a_run_with_schedules_resumes_as_if_uninterrupted(tiny, changes, name, monkeypatch):
    """With a plateau that drops after one round without a lower loss: its state is part of a client's state."""
    from gkt_mpi.training import schedule

    monkeypatch.setattr(schedule, "PLATEAU_PATIENCE", 0)
    monkeypatch.setattr(schedule, "PLATEAU_THRESHOLD", 0.2)
    changes = changes | {"client__schedule": name, "server__schedule": name, "rounds": 3}
    whole = figures(run_in_threads(tiny(name="whole", **changes), 3))
    plain = figures(run_in_threads(tiny(name="plain", **(changes | {"client__schedule": "constant"})), 3))
    assert whole != plain
    stop_after(tiny(name="cut", **changes), 2, monkeypatch)
    assert figures(run_in_threads(tiny(name="cut", **changes), 2)) == whole


def test_a_warm_up_before_a_cycle_is_refused(tiny):
    with pytest.raises(ConfigError, match=r"client.warmup_rounds is 2.0; expected 0: onecycle"):
        tiny(client__schedule="onecycle", client__warmup_rounds=2)
