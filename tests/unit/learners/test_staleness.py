"""Weights of stale samples: the functions of FedAsync, by hand."""

import pytest

from gkt_mpi.errors import ConfigError
from gkt_mpi.learners.staleness import AsyncConfig, staleness_weight


@pytest.mark.parametrize(
    ("changes", "by_age"),
    [
        ({"staleness": "constant"}, {0: 1, 3: 1, 1000: 1}),
        ({}, {0: 1, 3: 0.5, 8: 1 / 3}),
        ({"exponent": 1.0}, {0: 1, 3: 0.25}),
        ({"exponent": 0.0}, {0: 1, 3: 1}),
        ({"staleness": "hinge"}, {0: 1, 4: 1, 4.5: 1 / 6, 6: 1 / 21}),
        ({"staleness": "hinge", "hinge_start": 1.0, "hinge_slope": 0.5}, {1: 1, 3: 0.5, 7: 0.25}),
        ({"staleness": "constant", "max_staleness": 2.0}, {2: 1, 2.01: 0}),
    ],
)
def test_weight_by_age(changes, by_age):
    config = AsyncConfig(**changes)
    assert {age: staleness_weight(age, config) for age in by_age} == pytest.approx(by_age)


@pytest.mark.parametrize("staleness", ["constant", "polynomial", "hinge"])
def test_new_samples_count_fully_and_older_ones_never_more(staleness):
    weights = [staleness_weight(age / 4, AsyncConfig(staleness=staleness)) for age in range(100)]
    assert weights[0] == 1
    assert weights == sorted(weights, reverse=True)


@pytest.mark.parametrize(
    "wrong", [{"buffer": 0}, {"overtime": -1.0}, {"exponent": -0.1}, {"hinge_slope": -1.0}, {"max_staleness": 0.0}]
)
def test_impossible_values_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ConfigError, match=rf"async.{name} is {wrong[name]}"):
        AsyncConfig(**wrong)
