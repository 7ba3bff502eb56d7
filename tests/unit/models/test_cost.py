"""Costs against counts derived by hand, and bytes against what a run has really sent."""

import subprocess
import sys

import pytest
from torch import nn

from gkt_mpi.data.datasets import ImageFile, file_path
from gkt_mpi.data.partition import partition
from gkt_mpi.models.cost import DATA, edge_layers, fedgkt_bytes, model_cost, server_layers, whole_layers
from gkt_mpi.models.resnet import STEM_CHANNELS
from gkt_mpi.wire.codec import Codec
from tests.conftest import ROOT, run_in_threads

CIFAR10 = DATA["cifar10"]
IMAGE, FEATURE = (3, 32, 32), (16, 32, 32)
STEM = 3 * 16 * 9 * 32 * 32  # multiply-adds


def bottleneck(channels, width, size, stride=1):
    """The multiply-adds of a bottleneck on (channels, size, size), by the formulas of its convolutions."""
    out = size // stride
    macs = channels * width * size**2 + width * width * 9 * out**2 + width * 4 * width * out**2
    return macs + (channels * 4 * width * out**2 if stride != 1 or channels != 4 * width else 0)


def large(depth):
    """The multiply-adds of a ResNet-56 (depth 6) or -110 (12) without its stem."""
    total, channels, size = 64 * 4 * 10, 16, 32
    for width, stride in ((16, 1), (32, 2), (64, 2)):
        for position in range(depth):
            total += bottleneck(channels, width, size, stride if position == 0 else 1)
            channels, size = 4 * width, size // stride if position == 0 else size
    return total


EDGE8 = STEM + bottleneck(16, 16, 32) + bottleneck(64, 16, 32) + 64 * 10
BASIC = 2 * 16 * 16 * 9 * 32 * 32


@pytest.mark.parametrize(
    ("build", "name", "macs", "parameters"),
    [
        (edge_layers, "resnet8", EDGE8, 10_586),
        (edge_layers, "resnet4", STEM + BASIC + 160, None),
        (edge_layers, "resnet6", STEM + 2 * BASIC + 160, None),
        (server_layers, "resnet56", large(6), 590_858),
        (whole_layers, "resnet56", STEM + large(6), 591_322),
        (server_layers, "resnet110", large(12), 1_147_274),
        (whole_layers, "resnet110", STEM + large(12), 1_147_738),
    ],
)
def test_operations_and_parameters_are_those_derived_by_hand(build, name, macs, parameters):
    shape = FEATURE if build is server_layers else IMAGE
    cost = model_cost(build(name, CIFAR10), shape)
    assert cost.forward_flops == 2 * macs
    first = STEM if shape == IMAGE else 16 * 16 * 32 * 32 + 16 * 64 * 32 * 32  # no gradient of an input
    assert cost.training_flops == 3 * cost.forward_flops - 2 * first
    assert parameters in (None, cost.parameters)


def test_the_papers_ratios_come_out():
    """Its abstract: 9 to 17 times fewer operations and 54 to 105 times fewer parameters at the edge."""
    edge = model_cost(edge_layers("resnet8", CIFAR10), IMAGE)
    for name, operations, parameters in (("resnet56", 9.07, 55.9), ("resnet110", 17.41, 108.4)):
        whole = model_cost(whole_layers(name, CIFAR10), IMAGE)
        assert whole.forward_flops / edge.forward_flops == pytest.approx(operations, abs=0.01)
        assert whole.parameters / edge.parameters == pytest.approx(parameters, abs=0.05)
        assert whole.parameters / 11e3 == pytest.approx({"resnet56": 54, "resnet110": 105}[name], abs=0.7)


def test_activations_are_what_the_backward_pass_needs():
    """A linear layer keeps its input (4 numbers), a ReLU its output (3); weights do not count."""
    assert model_cost(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), (4,)).activation_bytes == 4 * (4 + 3)


@pytest.mark.parametrize("codec_name", ["float32", "bfloat16", "int8", "int4"])
def test_bytes_are_exactly_those_of_a_runs_ledger(codec_name, tiny):
    config = tiny(data__partition="hetero", data__synthetic__train=200, wire__codec=codec_name, wire__block_mib=0.05)
    records = run_in_threads(config, 3)
    file = ImageFile(file_path(config.data))
    sizes = list(map(len, partition(file.labels("train"), 4, config.data, config.seed)))
    assert len(set(sizes)) > 1
    codec = Codec(codec_name, (8, 8, STEM_CHANNELS))
    rows = codec.block_rows(0.05)
    for round, record in enumerate(records):
        costs = [fedgkt_bytes(n, 10, codec, rows, is_first_round=round == 0) for n in sizes]
        assert record["upload_bytes"] == sum(up for up, _ in costs)
        assert record["download_bytes"] == sum(down for _, down in costs)


def test_the_program_prints_a_table_for_every_data_set():
    for data in DATA:
        command = [sys.executable, "-m", "gkt_mpi.models.cost", "--data", data, "--codec", "int4", "--clients", "8"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, "")
        assert "resnet110 / resnet8" in done.stdout and "one client of 8" in done.stdout
