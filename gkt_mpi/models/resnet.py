"""The bottleneck ResNets of the paper for small images, cut after the stem.

    edge    image (B, 3, 32, 32) -> stem -> feature (B, 16, 32, 32) -> small head -> logits (B, C)
    server                                  feature (B, 16, 32, 32) -> 3, 18 or 36 bottlenecks -> logits (B, C)

The edge keeps stem and head; the server model is a ResNet-56 or -110 that begins where the stem ends, or a ResNet-11,
the smallest of the family, for tests and first experiments. Initial values come from an explicit generator.
"""

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from gkt_mpi.models.family import EdgeFamily, FeatureShape, ImageShape, NormName, ServerFamily

STEM_CHANNELS = 16
_GROUP_CHANNELS = 8  # channels per group of GroupNorm


def _norm(name: NormName, channels: int) -> nn.Module:
    """Return a normalisation of (B, channels, H, W) with a learned scale and shift of each channel.

    group: GroupNorm (Wu and He 2018), independent of the batch and without running statistics, which do not fit clients
    with different classes (Hsieh et al. 2020 report that BatchNorm fails there and GroupNorm does not). 8 channels per
    group lie between the values in both kinds of paper: 2 groups, usual in federated learning (Reddi et al. 2021), for
    the narrowest layers of 16 channels, and Wu and He's 32 groups for the widest of 256.
    """
    if name == "group":
        return nn.GroupNorm(channels // _GROUP_CHANNELS, channels)
    norm = nn.BatchNorm2d(channels)
    norm.num_batches_tracked = None  # unused, since the momentum is fixed; without it a state is float32 only
    return norm


class Bottleneck(nn.Module):
    """1x1 to `width`, 3x3 (strided), 1x1 to 4 * `width`, around a shortcut (He et al. 2016, figure 5 right)."""

    def __init__(self, in_channels: int, width: int, stride: int = 1, norm: NormName = "batch") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.norm1 = _norm(norm, width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.norm2 = _norm(norm, width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.norm3 = _norm(norm, 4 * width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != 4 * width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, 4 * width, 1, stride, bias=False), _norm(norm, 4 * width)
            )

    def fold(self) -> None:
        """Fold each BatchNorm into the convolution before it; afterwards only evaluation is meaningful.

        A GroupNorm is kept: its statistics differ for every image.
        """
        if isinstance(self.norm1, nn.GroupNorm):
            return
        for number in (1, 2, 3):
            conv, norm = self.get_submodule(f"conv{number}"), self.get_submodule(f"norm{number}")
            setattr(self, f"conv{number}", _fused(conv, norm))
            setattr(self, f"norm{number}", nn.Identity())
        if isinstance(self.shortcut, nn.Sequential):
            self.shortcut = _fused(*self.shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, 4 * width, H / stride, W / stride)."""
        y = torch.relu_(self.norm1(self.conv1(x)))
        y = torch.relu_(self.norm2(self.conv2(y)))
        return torch.relu_(self.norm3(self.conv3(y)).add_(self.shortcut(x)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around an identity shortcut (He et al. 2016, figure 5 left)."""

    def __init__(self, channels: int, norm: NormName) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = _norm(norm, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = _norm(norm, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to the same shape."""
        y = torch.relu_(self.norm1(self.conv1(x)))
        return torch.relu_(self.norm2(self.conv2(y)).add_(x))


def _fused(conv: nn.Module, norm: nn.Module) -> nn.Module:
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    return fuse_conv_bn_eval(conv, norm)


class ConvStem(nn.Sequential):
    """The layers that compute the feature: a 3x3 convolution to 16 channels, a normalisation and a ReLU."""

    def __init__(self, image_shape: ImageShape, norm: NormName) -> None:
        conv = nn.Conv2d(image_shape[2], STEM_CHANNELS, 3, padding=1, bias=False)
        super().__init__(conv, _norm(norm, STEM_CHANNELS), nn.ReLU(inplace=True))

    def fold(self) -> None:
        """Fold a BatchNorm into the convolution; afterwards only evaluation is meaningful."""
        if isinstance(self[1], nn.BatchNorm2d):
            self[0], self[1] = _fused(self[0], self[1]), nn.Identity()


def _classifier(in_channels: int, num_classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_channels, num_classes)]


def _edge_of_basic_blocks(
    num_blocks: int, image_shape: ImageShape, num_classes: int, norm: NormName
) -> tuple[nn.Module, nn.Module]:
    """Return stem and head of an edge model of basic blocks of 16 channels."""
    blocks = [BasicBlock(STEM_CHANNELS, norm) for _ in range(num_blocks)]
    return ConvStem(image_shape, norm), nn.Sequential(*blocks, *_classifier(STEM_CHANNELS, num_classes))


def _edge_of_bottlenecks(image_shape: ImageShape, num_classes: int, norm: NormName) -> tuple[nn.Module, nn.Module]:
    """Return stem and head of an edge model of two bottlenecks of width 16."""
    blocks = Bottleneck(STEM_CHANNELS, 16, 1, norm), Bottleneck(64, 16, 1, norm)
    return ConvStem(image_shape, norm), nn.Sequential(*blocks, *_classifier(64, num_classes))


def _server_layers(stage_blocks: int, feature_shape: FeatureShape, num_classes: int, norm: NormName) -> nn.Module:
    """Return the layers of a large network after its stem: three stages of `stage_blocks` bottlenecks each."""
    in_channels = feature_shape[2]
    blocks: list[nn.Module] = []
    for stage, width in enumerate((16, 32, 64)):
        for position in range(stage_blocks):
            blocks.append(Bottleneck(in_channels, width, 2 if stage > 0 and position == 0 else 1, norm))
            in_channels = 4 * width
    return nn.Sequential(*blocks, *_classifier(in_channels, num_classes))


def _initialise(model: nn.Module, generator: torch.Generator) -> None:
    """Initialise convolutions as He et al. (2015) and linear layers as torch does, with numbers from a generator."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
            nn.init.uniform_(module.bias, -bound, bound, generator=generator)


def fold_norms(model: nn.Module) -> None:
    """Fold every BatchNorm of these networks into the convolution before it; other layers are unchanged."""
    for block in list(model.modules()):
        if isinstance(block, Bottleneck | ConvStem):
            block.fold()


# The number in a name counts weighted layers, including the stem and the classifier. Of the edge models the paper
# defines only ResNet-8; 4 and 6 are interpreted as one and two basic blocks.
EDGES = (
    EdgeFamily("resnet4", partial(_edge_of_basic_blocks, 1), "ResNet-4", _initialise),
    EdgeFamily("resnet6", partial(_edge_of_basic_blocks, 2), "ResNet-6", _initialise),
    EdgeFamily("resnet8", _edge_of_bottlenecks, "ResNet-8", _initialise),
)
SERVERS = (
    ServerFamily("resnet11", partial(_server_layers, 1), "ResNet-11", _initialise),
    ServerFamily("resnet56", partial(_server_layers, 6), "ResNet-56", _initialise),
    ServerFamily("resnet110", partial(_server_layers, 12), "ResNet-110", _initialise),
)
