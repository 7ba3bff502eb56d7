"""Networks' costs against counts derived by hand, and against torch's own counter."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gkt_mpi.cost.flops import count, edge_cost, edge_stem_cost, server_cost, whole_cost
from gkt_mpi.models.networks import build_edge_model, build_server_model
from tests.conftest import ROOT

IMAGE = (32, 32, 3)
FEATURE = (32, 32, 16)
STEM = 3 * 16 * 9 * 32 * 32  # multiply-adds
BASIC = 2 * 16 * 16 * 9 * 32 * 32
FIRST_OF_SERVER = 16 * 16 * 32 * 32 + 16 * 64 * 32 * 32  # the two convolutions on the server's input


def bottleneck(channels, width, size, stride=1):
    """The multiply-adds of a bottleneck on (channels, size, size), by the formulas of its convolutions."""
    out = size // stride
    macs = channels * width * size**2 + width * width * 9 * out**2 + width * 4 * width * out**2
    return macs + (channels * 4 * width * out**2 if stride != 1 or channels != 4 * width else 0)


def large(depth):
    """The multiply-adds of a ResNet-11 (depth 1), -56 (6) or -110 (12) without its stem."""
    total, channels, size = 64 * 4 * 10, 16, 32
    for width, stride in ((16, 1), (32, 2), (64, 2)):
        for position in range(depth):
            total += bottleneck(channels, width, size, stride if position == 0 else 1)
            channels, size = 4 * width, size // stride if position == 0 else size
    return total


EDGE8 = STEM + bottleneck(16, 16, 32) + bottleneck(64, 16, 32) + 64 * 10


@pytest.mark.parametrize(
    ("cost", "macs", "without_gradient", "parameters"),
    [
        (lambda: edge_cost("resnet8", IMAGE, 10), EDGE8, STEM, 10_586),
        (lambda: edge_cost("resnet4", IMAGE, 10), STEM + BASIC + 160, STEM, None),
        (lambda: edge_cost("resnet6", IMAGE, 10), STEM + 2 * BASIC + 160, STEM, None),
        (lambda: whole_cost("resnet11", IMAGE, 10), STEM + large(1), STEM, 127_642),
        (lambda: server_cost("resnet56", FEATURE, 10), large(6), FIRST_OF_SERVER, 590_858),
        (lambda: whole_cost("resnet56", IMAGE, 10), STEM + large(6), STEM, 591_322),
        (lambda: server_cost("resnet110", FEATURE, 10), large(12), FIRST_OF_SERVER, 1_147_274),
        (lambda: whole_cost("resnet110", IMAGE, 10), STEM + large(12), STEM, 1_147_738),
        (lambda: edge_stem_cost("resnet8", IMAGE, 10), STEM, STEM, 464),
        (lambda: server_cost("resnet56", FEATURE, 10, with_input_gradient=True), large(6), 0, 590_858),
    ],
)
def test_operations_and_parameters_are_those_derived_by_hand(cost, macs, without_gradient, parameters):
    """The backward pass costs twice the forward pass, less the gradient of an input that is not needed."""
    found = cost()
    assert found.forward_flops == 2 * macs
    assert found.training_flops == 3 * found.forward_flops - 2 * without_gradient
    assert parameters in (None, found.parameters)


def test_the_state_is_the_parameters_and_two_statistics_of_every_normalised_channel():
    channels_56 = 16 + 6 * (16 + 32 + 64) * (1 + 1 + 4) + (16 + 32 + 64) * 4  # stem, blocks, shortcuts
    assert whole_cost("resnet56", IMAGE, 10).state_bytes == 4 * (591_322 + 2 * channels_56)
    assert edge_stem_cost("resnet8", IMAGE, 10).state_bytes == 4 * (464 + 2 * 16)


@pytest.mark.parametrize("size", [8, 32])
def test_counts_are_those_of_torchs_own_counter(size):
    edge = build_edge_model("resnet6", (32, 32, 1), 7, torch.Generator(), torch.device("cpu"))
    server = build_server_model("resnet56", (32, 32, 16), 7, torch.Generator(), torch.device("cpu"))
    layers = nn.Sequential(edge.stem, server.layers)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        layers(torch.zeros(3, 1, size, size))
    with FlopCounterMode(display=False) as training:
        layers(torch.zeros(3, 1, size, size)).sum().backward()
    found = whole_cost("resnet56", (size, size, 1), 7)
    assert 3 * found.forward_flops == forward.get_total_flops()
    assert 3 * found.training_flops == training.get_total_flops()


def test_activations_are_what_the_backward_pass_needs():
    """A linear layer keeps its input (4 numbers), a ReLU its output (3); weights do not count."""
    assert count(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), (4,)).activation_bytes == 4 * (4 + 3)


def test_the_stem_keeps_the_image_its_norms_input_and_its_relus_output():
    """Plus, for the norm, two numbers per channel and batch of 8 images."""
    assert edge_stem_cost("resnet8", IMAGE, 10).activation_bytes == 4 * (3 * 32 * 32 + 2 * 16 * 32 * 32 + 2 * 16 // 8)


def test_a_network_is_counted_once():
    assert edge_cost("resnet8", IMAGE, 10) is edge_cost("resnet8", IMAGE, 10)
    assert edge_cost("resnet8", IMAGE, 10) != edge_cost("resnet8", IMAGE, 100)


def test_counting_imports_neither_torchs_compiler_nor_draws_from_the_global_generator():
    program = """
import sys, torch
from gkt_mpi.cost.flops import whole_cost
assert "torch.utils.flop_counter" not in sys.modules
before = torch.get_rng_state()
whole_cost("resnet56", (8, 8, 1), 10)
assert torch.equal(before, torch.get_rng_state())
print("torch._dynamo" in sys.modules)"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("False\n", "")
