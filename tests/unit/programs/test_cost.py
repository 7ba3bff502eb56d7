"""The program of costs, and the ratios of the paper."""

import re
import subprocess
import sys

import pytest

from gkt_mpi.algorithms import ALGORITHMS
from gkt_mpi.cost.devices import packaged_profiles
from gkt_mpi.cost.flops import whole_cost
from gkt_mpi.programs import cost
from gkt_mpi.programs.cost import DATA, edge_savings
from tests.conftest import ROOT

CIFAR10 = DATA["cifar10"]


@pytest.fixture
def program(monkeypatch, capsys):
    """Return a function that runs the program in this process and returns (status, output, errors)."""

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["cost", *options])
        try:
            cost.main()
            status = 0
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run


def test_the_program_starts_by_its_name():
    command = [sys.executable, "-m", "gkt_mpi.programs.cost", "--codec", "int3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "") and "int3" in done.stderr


def test_the_papers_ratios_come_out():
    """Its abstract: 9 to 17 times fewer operations and 54 to 105 times fewer parameters at the edge."""
    for name, operations, parameters in (("resnet56", 9.07, 55.9), ("resnet110", 17.41, 108.4)):
        times = edge_savings(name, CIFAR10)
        assert times["forward_flops"] == pytest.approx(operations, abs=0.01)
        assert times["parameters"] == pytest.approx(parameters, abs=0.05)
        parameters = whole_cost(name, CIFAR10.image_shape, 10).parameters
        assert parameters / 11e3 == pytest.approx({"resnet56": 54, "resnet110": 105}[name], abs=0.7)


@pytest.mark.parametrize(
    "data", ["digits", *(pytest.param(name, marks=pytest.mark.grid) for name in DATA if name != "digits")]
)
def test_the_program_prints_every_algorithm_and_profile_for_every_data_set(data, program):
    options = "--codec int4 --clients 8 --epochs 2 --batch-size 64".split()
    status, out, err = program("--data", data, *options)
    assert (status, err) == (0, "")
    assert "one client of 8" in out
    profiles = [name for name in packaged_profiles() if name not in ("phone_leaving", "phone_silent")]
    for name in ("resnet110 / resnet8", *ALGORITHMS, *profiles):
        assert name in out


def test_the_program_prints_the_papers_ratios(program):
    rows = dict(re.findall(r"(resnet56|resnet110) / resnet8(.*)", program()[1]))
    for large, expected in {"resnet56": ("55.9", "9.1"), "resnet110": ("108.4", "17.4")}.items():
        assert tuple(re.findall(r"[\d.]+(?= times)", rows[large])[:2]) == expected


@pytest.mark.parametrize(("option", "value"), [("--clients", "0"), ("--server-device", "nowhere"), ("--codec", "int3")])
def test_the_program_refuses_what_it_cannot_count(option, value, program):
    status, _, err = program(option, value)
    assert status == 2 and value in err
