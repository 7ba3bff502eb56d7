"""Networks that cannot be trained are refused in one line that says what is wrong."""

import re
import sys

import pytest
import torch
from torch import nn

from gkt_mpi.errors import ConfigError
from gkt_mpi.models.family import EdgeFamily, ServerFamily
from gkt_mpi.models.trial import try_edge, try_server, try_whole

CLASSES = 5
IMAGE, FEATURE = (8, 6, 3), (4, 3, 7)


def stem(channels=7):
    return nn.Sequential(nn.Conv2d(3, channels, 3, stride=2, padding=1), nn.ReLU())


def head(channels=7, classes=CLASSES):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def given(monkeypatch, family):
    """Return the name by which a configuration finds this family in this file."""
    monkeypatch.setattr(sys.modules[__name__], "IT", family, raising=False)
    return f"{__name__}:IT"


def refusal(call, *arguments):
    with pytest.raises(ConfigError) as refused:
        call(*arguments)
    text = str(refused.value)
    assert "\n" not in text and "Traceback" not in text
    return text


class Returns(nn.Module):
    """Layers whose output a function changes."""

    def __init__(self, layers, change):
        super().__init__()
        self.layers, self.change = layers, change

    def forward(self, x):
        return self.change(self.layers(x))


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers, self.spare = head(), nn.Parameter(torch.zeros(2))

    def forward(self, x):
        return self.layers(x)


class Counts(nn.Module):
    """Gives another result at every call, also in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.layers, self.calls = head(), 0

    def forward(self, x):
        self.calls += 1
        return self.layers(x) * self.calls


def frozen():
    layers = head()
    layers[2].bias.requires_grad_(False)
    return layers


def raises(*_):
    raise KeyError("width")


EDGES = {
    "one module": (lambda *_: stem(), r"builds a Sequential; expected \(stem, head\)"),
    "a building that fails": (raises, r"fails on images of 8x6x3 .* while it is built: KeyError: 'width'"),
    "a flat feature": (
        lambda *_: (nn.Sequential(stem(), nn.Flatten()), head()),
        r"returns a feature float32 \(2, 84\) of 2 images .*; expected one float32 tensor \(2, any, any, any\)",
    ),
    "two features": (
        lambda *_: (Returns(stem(), lambda x: (x, x)), head()),
        r"returns a tuple as a feature of images of 8x6x3",
    ),
    "a head for other channels": (
        lambda *_: (stem(6), head(7)),
        r"fails on images of 8x6x3 .* in training: RuntimeError: .*\(2x6 and 7x5\)",
    ),
    "a head for other classes": (
        lambda *_: (stem(), head(classes=4)),
        r"returns logits float32 \(2, 4\) .*expected one float32 tensor \(2, 5\)",
    ),
    "a feature in float64": (
        lambda *_: (Returns(stem(), torch.Tensor.double), head()),
        r"returns a feature float64 \(2, 7, 4, 3\)",
    ),
    "parameters in float64": (lambda *_: (stem(), head().double()), r"holds head.2.weight in float64"),
    "a NaN": (lambda *_: (Returns(stem(), lambda x: x / 0), head()), "returns a feature that is not finite"),
    "a stem that learns nothing": (lambda *_: (nn.Identity(), head(3)), "has a stem without parameters"),
    "an unused parameter": (lambda *_: (stem(), Unused()), r"does not use its parameter head.spare"),
    "a frozen parameter": (lambda *_: (stem(), frozen()), r"has a frozen parameter, head.2.bias"),
    "no gradient": (
        lambda *_: (stem(), Returns(head(), torch.Tensor.detach)),
        r"computes logits without gradients",
    ),
    "another result each time": (lambda *_: (stem(), Counts()), r"other logits at a second call"),
    "an infinite gradient": (
        lambda *_: (stem(), Returns(head(), lambda x: (x * 0).abs().sqrt())),
        r"has a gradient that is not finite, of stem.0.weight",
    ),
    "BatchNorm over one value": (
        lambda *_: (stem(), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(7), *head()[1:])),
        r"cannot train on a batch with a single one of images",
    ),
}


@pytest.mark.parametrize(("build", "text"), EDGES.values(), ids=EDGES.keys())
def test_an_edge_that_cannot_be_trained_is_refused(monkeypatch, build, text):
    name = given(monkeypatch, EdgeFamily("its", build))
    found = refusal(try_edge, name, IMAGE, CLASSES, "batch")
    assert found.startswith(f"client.model {name} ") and re.search(text, found), found


def test_a_good_edge_is_accepted_and_its_smallest_feature_found(monkeypatch):
    bounded = nn.Sequential(stem()[0], nn.Hardtanh(-0.25, 1))
    for its_stem, lowest in ((stem(), 0), (bounded, -0.25)):
        name = given(monkeypatch, EdgeFamily("its", lambda *_, it=its_stem: (it, head())))
        assert try_edge(name, IMAGE, CLASSES, "batch") == lowest


def test_a_server_network_for_other_features_is_refused_naming_both_shapes(monkeypatch):
    name = given(monkeypatch, ServerFamily("its", lambda *_: nn.Sequential(nn.Conv2d(9, 7, 1), head())))
    found = refusal(try_server, name, FEATURE, CLASSES, "batch", None, "client.model tiny")
    assert found.startswith(
        f"server.model {name} fails on features of 4x3x7 (height, width, channels), which client.model"
    )
    assert "expected input[2, 7, 4, 3] to have 9 channels" in found


def test_a_server_network_is_tried_with_the_stem_where_it_is_trained_whole(monkeypatch):
    family = ServerFamily("its", lambda shape, classes, norm: head(shape[2], classes), stem=lambda shape, norm: stem(9))
    name = given(monkeypatch, family)
    try_whole(name, IMAGE, CLASSES, "batch", None)
    family = ServerFamily("its", lambda *_: head(8), stem=lambda shape, norm: stem(9))
    given(monkeypatch, family)
    assert "(2x9 and 8x5)" in refusal(try_whole, name, IMAGE, CLASSES, "batch", None)
