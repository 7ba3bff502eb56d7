"""Networks of one's own: a MobileNet-like edge, and a small vision transformer for the server."""

import torch
from torch import Tensor, nn

from gkt_mpi import EdgeFamily, FeatureShape, ImageShape, NormName, ServerFamily


def conv(in_channels: int, channels: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Return a convolution with BatchNorm and ReLU."""
    layer = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


def separable(in_channels: int, channels: int, stride: int = 1) -> nn.Sequential:
    """Return a depthwise-separable convolution (MobileNet, Howard et al. 2017)."""
    return nn.Sequential(conv(in_channels, in_channels, 3, stride, in_channels), conv(in_channels, channels))


def build_edge(image_shape: ImageShape, num_classes: int, norm: NormName) -> tuple[nn.Module, nn.Module]:
    """Return a stem with a feature of 24 channels and half the image's height and width, and a head."""
    stem = nn.Sequential(conv(image_shape[2], 8, 3, stride=2), separable(8, 24))
    head = nn.Sequential(separable(24, 48, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, num_classes))
    return stem, head


class VisionTransformer(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2021) on feature maps; the mean of the tokens is classified."""

    def __init__(self, feature_shape: FeatureShape, num_classes: int, patch: int = 4, width: int = 64) -> None:
        super().__init__()
        height, _, channels = feature_shape
        self.embed = nn.Conv2d(channels, width, patch, patch)
        self.place = nn.Parameter(0.02 * torch.randn((height // patch) * (feature_shape[1] // patch), width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.1, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.classify = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, num_classes))

    def forward(self, feature: Tensor) -> Tensor:
        """Map features (B, K, H, W) to logits (B, C)."""
        token = self.embed(feature).flatten(2).transpose(1, 2) + self.place  # (B, tokens, width)
        logit: Tensor = self.classify(self.encoder(token).mean(1))
        return logit


def build_vit(feature_shape: FeatureShape, num_classes: int, norm: NormName) -> nn.Module:
    """Return the transformer, which has its own normalisation."""
    return VisionTransformer(feature_shape, num_classes)


MOBILE = EdgeFamily("mobile", build_edge, "small MobileNet")
VIT = ServerFamily("vit", build_vit, "small ViT")
