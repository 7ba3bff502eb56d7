"""torchvision's ResNets, MobileNet and EfficientNet as large networks on the server.

    feature (B, K, h, w) -> adapter -> the stages after the cut -> pooling, classifier -> logits (B, C)

The layers up to the cut are replaced by the adapter, a 1x1 convolution to the channels that the next stage expects, a
normalisation and a ReLU. Stages compute at the feature's own resolution: a network made for 224x224 pixels begins with
strides that small images do not survive, and these are cut off. Weights keep torchvision's names, so that a file of
pretrained weights fits (`server.pretrained`).
"""

from collections import OrderedDict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gkt_mpi.models.family import BuildLayers, FeatureShape, NormName, ServerFamily
from gkt_mpi.torchvision_import import import_torchvision

_GROUP_CHANNELS = 8  # channels per group of GroupNorm, as in the ResNets for small images
_RESNET_STEM = ("conv1", "bn1", "relu", "maxpool")
_RESNET_STAGES = ("layer1", "layer2", "layer3", "layer4")


def _original(name: str, num_classes: int, norm: NormName) -> Any:  # noqa: ANN401 - one of torchvision's classes
    """Return torchvision's network with its own initial weights."""
    options: dict[str, Any] = {"norm_layer": _group_norm} if norm == "group" else {}
    return getattr(import_torchvision("models"), name)(weights=None, num_classes=num_classes, **options)


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(channels // _GROUP_CHANNELS, channels)


def _adapter(in_channels: int, out_channels: int, norm: NormName) -> nn.Module:
    layer = _group_norm(out_channels) if norm == "group" else nn.BatchNorm2d(out_channels)
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, bias=False), layer, nn.ReLU(inplace=True))


@torch.no_grad()
def _channels_after(layers: nn.Module) -> int:
    """Return the number of channels that layers give for an image of three."""
    found: Tensor = layers.eval()(torch.zeros(1, 3, 64, 64))
    layers.train()
    return found.shape[1]


def _resnet(name: str, cut: str, feature_shape: FeatureShape, num_classes: int, norm: NormName) -> nn.Module:
    """Return a ResNet (He et al. 2016) without the layers up to `cut`, a stage, or "" for those before the first."""
    whole = _original(name, num_classes, norm)
    begin = _RESNET_STAGES.index(cut) + 1 if cut else 0
    before = nn.Sequential(*(getattr(whole, part) for part in (*_RESNET_STEM, *_RESNET_STAGES[:begin])))
    kept = [(stage, getattr(whole, stage)) for stage in _RESNET_STAGES[begin:]]
    adapter = _adapter(feature_shape[2], _channels_after(before), norm)
    end = [("avgpool", whole.avgpool), ("flatten", nn.Flatten()), ("fc", whole.fc)]
    return nn.Sequential(OrderedDict([("adapter", adapter), *kept, *end]))


def _feature_stack(name: str, cut: str, feature_shape: FeatureShape, num_classes: int, norm: NormName) -> nn.Module:
    """Return a network whose stages are numbered, as `features.N`, without those up to `cut`."""
    whole = _original(name, num_classes, norm)
    last = int(cut.partition(".")[2])
    adapter = _adapter(feature_shape[2], _channels_after(whole.features[: last + 1]), norm)
    kept = OrderedDict((number, stage) for number, stage in whole.features.named_children() if int(number) > last)
    parts = [("features", nn.Sequential(kept)), ("avgpool", whole.avgpool), ("flatten", nn.Flatten())]
    return nn.Sequential(OrderedDict([("adapter", adapter), *parts, ("classifier", whole.classifier)]))


def _resnet_family(name: str, title: str) -> ServerFamily:
    cuts: dict[str, BuildLayers] = {stage: partial(_resnet, name, stage) for stage in _RESNET_STAGES[:-1]}
    return ServerFamily(
        name,
        partial(_resnet, name, ""),
        title,
        cuts=cuts,
        new_layers=("adapter.", "fc."),
        left_out=("conv1.", "bn1.", *(f"{stage}." for stage in cuts)),
    )


def _stack_family(name: str, title: str, num_stages: int, classifier: str) -> ServerFamily:
    """Return the family of a network with so many stages, whose last linear layer is named `classifier`."""
    cuts: dict[str, BuildLayers] = {
        f"features.{number}": partial(_feature_stack, name, f"features.{number}") for number in range(num_stages - 1)
    }
    return ServerFamily(
        name,
        cuts["features.0"],
        title,
        cuts=cuts,
        new_layers=("adapter.", f"{classifier}."),
        left_out=tuple(f"{cut}." for cut in cuts),
    )


SERVERS = (
    _resnet_family("resnet18", "ResNet-18"),
    _resnet_family("resnet50", "ResNet-50"),
    _stack_family("mobilenet_v3_small", "MobileNetV3 small", 13, "classifier.3"),
    _stack_family("efficientnet_b0", "EfficientNet-B0", 9, "classifier.1"),
)
