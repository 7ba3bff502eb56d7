"""The specifications of networks, `EdgeFamily` and `ServerFamily`: what a configuration can name.

    edge    image (B, C, H, W) -> stem -> feature (B, K, h, w) -> head -> logits (B, classes)
    server                                feature (B, K, h, w) -> layers -> logits (B, classes)

The feature's shape is the stem's choice: it is found by running the stem (networks.py), and the wire, the bank and the
server's network follow from it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

ImageShape = tuple[int, int, int]  # height, width, channels
FeatureShape = tuple[int, int, int]  # height, width, channels
NormName = Literal["batch", "group"]

BuildLayers = Callable[[FeatureShape, int, NormName], nn.Module]
Initialise = Callable[[nn.Module, torch.Generator], None]


@dataclass(frozen=True)
class EdgeFamily:
    """The specification of an edge model."""

    name: str
    build: Callable[[ImageShape, int, NormName], tuple[nn.Module, nn.Module]]
    """Returns the stem, which computes the feature float32 (B, K, h, w) of images float32 (B, C, H, W), and the head,
    which computes logits (B, classes) from it, given the image's (height, width, channels), the number of classes and
    the normalisation."""
    title: str = ""
    """Name in reports, if it differs from `name`."""
    initialise: Initialise | None = None
    """Sets the initial weights, with numbers from a generator on the CPU. None: they are those that the constructors of
    the layers set; torch's global generator is then seeded with the run's seed while `build` runs."""


@dataclass(frozen=True)
class ServerFamily:
    """The specification of a large network."""

    name: str
    build: BuildLayers
    """Returns the layers that compute logits (B, classes) from the feature float32 (B, K, h, w), given the feature's
    (height, width, channels), the number of classes and the normalisation."""
    title: str = ""
    """Name in reports, if it differs from `name`."""
    initialise: Initialise | None = None
    """As `EdgeFamily.initialise`."""
    stem: Callable[[ImageShape, NormName], nn.Module] | None = None
    """Returns the layers before the feature where the network is trained whole or split (fedavg, centralized,
    split_learning), given the image's shape and the normalisation. None: a 3x3 convolution to 16 channels, the
    normalisation and a ReLU, as in the ResNets."""
    cuts: Mapping[str, BuildLayers] = field(default_factory=dict)
    """Other builders, by the name that `server.cut` gives: networks that begin at a later stage."""
    new_layers: tuple[str, ...] = ()
    """For `server.pretrained`: beginnings of the names of weights that may be missing from the file or have another
    shape there; they keep their initial values."""
    left_out: tuple[str, ...] = ()
    """For `server.pretrained`: beginnings of the names of weights in the file that the network may lack."""
