"""The bottleneck ResNets of the paper for small images, cut after the stem.

    edge    image (B, 3, 32, 32) -> stem -> feature (B, 16, 32, 32) -> small head -> logits (B, C)
    server                                  feature (B, 16, 32, 32) -> 3, 18 or 36 bottlenecks -> logits (B, C)

The edge keeps stem and head; the server model is a ResNet-56 or -110 that begins where the stem ends, or a ResNet-11,
the smallest of the family, for tests and first experiments. Initial values come from an explicit generator; the global
random state is not used.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from gkt_mpi.lookup import Lookup, ModuleAttribute

STEM_CHANNELS = 16
Precision = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
NormName = Literal["batch", "group"]
Model = TypeVar("Model", bound=nn.Module)
_GROUP_CHANNELS = 8  # channels per group of GroupNorm


@dataclass(frozen=True)
class EdgeFamily:
    """The specification of an edge model."""

    name: str
    build: Callable[[int, int, NormName], tuple[nn.Module, nn.Module]]
    """Returns the stem, which computes the feature, and the head, which computes logits from it, given the number of
    channels of an image, the number of classes and the normalisation. Weights are initialised later."""
    title: str  # in reports


@dataclass(frozen=True)
class ServerFamily:
    """The specification of a large network."""

    name: str
    build: Callable[[int, int, NormName], nn.Module]
    """Returns the layers after the stem, given the number of channels of a feature, the number of classes and the
    normalisation. Weights are initialised later."""
    title: str  # in reports


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


def _computing_in(precision: Precision, device: torch.device) -> torch.autocast:
    """Return a context in which convolutions and matrix products are computed in `precision`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def _stem(image_channels: int, norm: NormName) -> nn.Sequential:
    """Return the layers that compute the feature."""
    return nn.Sequential(
        nn.Conv2d(image_channels, STEM_CHANNELS, 3, padding=1, bias=False),
        _norm(norm, STEM_CHANNELS),
        nn.ReLU(inplace=True),
    )


def _classifier(in_channels: int, num_classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_channels, num_classes)]


def _edge_of_basic_blocks(
    num_blocks: int, image_channels: int, num_classes: int, norm: NormName
) -> tuple[nn.Module, nn.Module]:
    """Return stem and head of an edge model of basic blocks of 16 channels."""
    blocks = [BasicBlock(STEM_CHANNELS, norm) for _ in range(num_blocks)]
    return _stem(image_channels, norm), nn.Sequential(*blocks, *_classifier(STEM_CHANNELS, num_classes))


def _edge_of_bottlenecks(image_channels: int, num_classes: int, norm: NormName) -> tuple[nn.Module, nn.Module]:
    """Return stem and head of an edge model of two bottlenecks of width 16."""
    blocks = Bottleneck(STEM_CHANNELS, 16, 1, norm), Bottleneck(64, 16, 1, norm)
    return _stem(image_channels, norm), nn.Sequential(*blocks, *_classifier(64, num_classes))


def _server_layers(stage_blocks: int, in_channels: int, num_classes: int, norm: NormName) -> nn.Module:
    """Return the layers of a large network after its stem: three stages of `stage_blocks` bottlenecks each."""
    blocks: list[nn.Module] = []
    for stage, width in enumerate((16, 32, 64)):
        for position in range(stage_blocks):
            blocks.append(Bottleneck(in_channels, width, 2 if stage > 0 and position == 0 else 1, norm))
            in_channels = 4 * width
    return nn.Sequential(*blocks, *_classifier(in_channels, num_classes))


# The number in a name counts weighted layers, including the stem and the classifier. Of the edge models the paper
# defines only ResNet-8; 4 and 6 are interpreted as one and two basic blocks.
EDGE_FAMILIES = Lookup(
    "client.model",
    EdgeFamily,
    EdgeFamily("resnet4", partial(_edge_of_basic_blocks, 1), "ResNet-4"),
    EdgeFamily("resnet6", partial(_edge_of_basic_blocks, 2), "ResNet-6"),
    EdgeFamily("resnet8", _edge_of_bottlenecks, "ResNet-8"),
)
SERVER_FAMILIES = Lookup(
    "server.model",
    ServerFamily,
    ServerFamily("resnet11", partial(_server_layers, 1), "ResNet-11"),
    ServerFamily("resnet56", partial(_server_layers, 6), "ResNet-56"),
    ServerFamily("resnet110", partial(_server_layers, 12), "ResNet-110"),
)

if TYPE_CHECKING:
    EdgeName = str
    ServerName = str
else:
    EdgeName = Literal[tuple(EDGE_FAMILIES)] | ModuleAttribute
    ServerName = Literal[tuple(SERVER_FAMILIES)] | ModuleAttribute


def model_title(name: str) -> str:
    """Return a model's name in reports; an unknown model keeps its name."""
    family = EDGE_FAMILIES.get(name) or SERVER_FAMILIES.get(name)
    return family.title or family.name if family else name


class EdgeModel(nn.Module):
    """The client's network: `stem` computes the feature that is uploaded, `head` the client's own logits."""

    def __init__(self, name: EdgeName, image_channels: int, num_classes: int, norm: NormName) -> None:
        super().__init__()
        self.stem, self.head = EDGE_FAMILIES[name].build(image_channels, num_classes, norm)
        self.precision: Precision = "float32"

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (B, channels, H, W) to the feature (B, 16, H, W) and the logits (B, C), all float32."""
        with _computing_in(self.precision, image.device):
            feature = self.stem(image)
            logit = self.head(feature)
        return feature.float(), logit.float()


class ServerModel(nn.Module):
    """A large network without its stem."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers
        self.precision: Precision = "float32"

    def forward(self, feature: Tensor) -> Tensor:
        """Map features (B, 16, H, W) to logits (B, C), all float32."""
        with _computing_in(self.precision, feature.device):
            logit = self.layers(feature)
        return logit.float()

    def folded(self) -> "ServerModel":
        """Return a copy for evaluation, a quarter faster: each BatchNorm is folded into the convolution before it.

        Its logits equal those of this model in evaluation mode, up to rounding. With GroupNorm it is a plain copy.
        """
        copied = copy.deepcopy(self).eval()
        for block in copied.modules():
            if isinstance(block, Bottleneck):
                block.fold()
        return copied


class StemModel(nn.Module):
    """The part of a large network that stays on the edge in split learning."""

    def __init__(self, stem: nn.Sequential) -> None:
        super().__init__()
        self.stem = stem
        self.precision: Precision = "float32"

    def forward(self, image: Tensor) -> Tensor:
        """Map images (B, channels, H, W) to the feature (B, 16, H, W), float32."""
        with _computing_in(self.precision, image.device):
            feature = self.stem(image)
        return feature.float()


class WholeModel(nn.Module):
    """A large network with its stem, trained as a whole."""

    def __init__(self, name: ServerName, image_channels: int, num_classes: int, norm: NormName) -> None:
        super().__init__()
        self.stem = _stem(image_channels, norm)
        self.layers = SERVER_FAMILIES[name].build(STEM_CHANNELS, num_classes, norm)
        self.precision: Precision = "float32"

    def forward(self, image: Tensor) -> Tensor:
        """Map images (B, channels, H, W) to logits (B, C), float32."""
        with _computing_in(self.precision, image.device):
            logit = self.layers(self.stem(image))
        return logit.float()

    def cut(self) -> tuple[StemModel, ServerModel]:
        """Return the parts before and after the feature, sharing these weights.

        Their composition computes the same as the whole, up to rounding.
        """
        return StemModel(self.stem), ServerModel(self.layers)

    def folded(self) -> "WholeModel":
        """Return a copy for evaluation; see `ServerModel.folded`."""
        copied = copy.deepcopy(self).eval()
        conv, norm, relu = copied.stem
        if isinstance(norm, nn.BatchNorm2d):
            copied.stem = nn.Sequential(_fused(conv, norm), relu)
        for block in copied.modules():
            if isinstance(block, Bottleneck):
                block.fold()
        return copied


def build_edge_model(
    name: EdgeName,
    image_channels: int,
    num_classes: int,
    generator: torch.Generator,
    device: torch.device,
    norm: NormName = "batch",
) -> EdgeModel:
    """Return an initialised edge model on `device`, in channels-last layout."""
    with torch.random.fork_rng(devices=()):
        model = EdgeModel(name, image_channels, num_classes, norm)
    return _initialise(model, generator, device)


def build_server_model(
    name: ServerName,
    num_classes: int,
    generator: torch.Generator,
    device: torch.device,
    norm: NormName = "batch",
) -> ServerModel:
    """Return an initialised server model on `device`, in channels-last layout."""
    with torch.random.fork_rng(devices=()):
        model = ServerModel(SERVER_FAMILIES[name].build(STEM_CHANNELS, num_classes, norm))
    return _initialise(model, generator, device)


def build_whole_model(
    name: ServerName,
    image_channels: int,
    num_classes: int,
    generator: torch.Generator,
    device: torch.device,
    norm: NormName = "batch",
) -> WholeModel:
    """Return an initialised large network with its stem on `device`, in channels-last layout."""
    with torch.random.fork_rng(devices=()):
        model = WholeModel(name, image_channels, num_classes, norm)
    return _initialise(model, generator, device)


def _initialise(model: Model, generator: torch.Generator, device: torch.device) -> Model:
    """Initialise a model with values drawn on the CPU, so that they are the same on every device."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
            nn.init.uniform_(module.bias, -bound, bound, generator=generator)
    return model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
