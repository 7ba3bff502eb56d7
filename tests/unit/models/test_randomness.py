"""Dropout draws the run's numbers: whatever ran before, in whichever thread, and the global generator is unchanged."""

import threading

import pytest
import torch
from torch import nn

from gkt_mpi.models.networks import ServerModel

FEATURE = torch.ones(4, 8, 2, 2)


def with_dropout():
    torch.manual_seed(0)
    return ServerModel(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(32, 3))).train()


def two_passes(model, *key):
    model.draw_from(*key)
    return torch.stack([model(FEATURE), model(FEATURE)])


def test_dropout_depends_on_the_key_alone():
    model = with_dropout()
    first = two_passes(model, 5, "a network", 1)
    assert not torch.equal(first[0], first[1])
    torch.rand(100)
    before = torch.get_rng_state()
    assert torch.equal(two_passes(model, 5, "a network", 1), first)
    assert torch.equal(torch.get_rng_state(), before)
    for other in ((6, "a network", 1), (5, "a network", 2), (5, "another", 1)):
        assert not torch.equal(two_passes(model, *other), first)


def test_a_mask_keeps_each_value_with_the_probability_of_dropout():
    model = ServerModel(nn.Sequential(nn.Dropout(0.25), nn.Flatten())).train()
    model.register_parameter("unused", nn.Parameter(torch.zeros(1)))
    model.draw_from(0, "a network")
    found = model(torch.ones(1000, 10, 3, 3))
    assert found.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert float((found > 0).float().mean()) == pytest.approx(0.75, abs=0.01)


def test_threads_do_not_draw_each_others_numbers():
    """As in a run whose ranks are threads: two networks trained at once get what each gets alone."""
    keys = [(0, "a network", number) for number in range(4)]
    alone = [two_passes(with_dropout(), *key) for key in keys]
    models, found = [with_dropout() for _ in keys], [[] for _ in keys]
    start = threading.Barrier(len(keys), timeout=30)

    def work(number):
        start.wait()
        found[number] += [two_passes(models[number], *keys[number]) for _ in range(50)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(keys))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(torch.equal(each, expected) for many, expected in zip(found, alone, strict=True) for each in many)
    assert all(len(many) == 50 for many in found)


def test_numbers_are_drawn_again_after_passes_that_drew_none():
    """A network that begins to draw later, as one with a schedule, is noticed at the next restart."""
    model = with_dropout()
    model.layers[1].p = 0.0
    still = two_passes(model, 0, "a network")
    assert torch.equal(still[0], still[1])
    model.layers[1].p = 0.5
    assert torch.equal(two_passes(model, 0, "a network"), two_passes(model, 0, "a network"))


def test_evaluation_draws_nothing():
    model = with_dropout().eval()
    model.draw_from(0, "a network")
    assert torch.equal(model(FEATURE), model(FEATURE))
