"""The networks of both sides as modules, built by the name that a configuration gives them.

    EdgeModel      a client's network: stem and head
    ServerModel    a large network without its stem
    WholeModel     a large network with its stem, and StemModel, the part of it that stays on the edge in split learning

Initial values depend on the generator given; the global random state is not changed.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from gkt_mpi.errors import require
from gkt_mpi.lookup import Lookup, ModuleAttribute
from gkt_mpi.models import resnet, torchvision_nets
from gkt_mpi.models.family import BuildLayers, EdgeFamily, FeatureShape, ImageShape, Initialise, NormName, ServerFamily
from gkt_mpi.models.randomness import Noise, global_numbers_of

Precision = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
EDGE_FAMILIES = Lookup("client.model", EdgeFamily, *resnet.EDGES)
SERVER_FAMILIES = Lookup("server.model", ServerFamily, *resnet.SERVERS, *torchvision_nets.SERVERS)
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


class Network(nn.Module):
    """A network that computes in a given precision, and in training draws reproducible random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.precision: Precision = "float32"
        self._noise = Noise()

    def draw_from(self, seed: int, purpose: str, *key: int) -> None:
        """Draw the random numbers of the next training passes (Dropout and the like) from (seed, purpose, key)."""
        self._noise.restart(next(self.parameters()).device, seed, purpose, *key)

    @contextmanager
    def _computing(self, device: torch.device) -> Iterator[None]:
        """Compute convolutions and matrix products in `precision`."""
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            if not self.training:
                yield
                return
            with self._noise.drawn():
                yield


Model = TypeVar("Model", bound=Network)


class EdgeModel(Network):
    """The client's network: `stem` computes the feature that is uploaded, `head` the client's own logits."""

    def __init__(self, stem: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.stem, self.head = stem, head

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (B, channels, H, W) to the feature (B, K, h, w) and the logits (B, C), all float32."""
        with self._computing(image.device):
            feature = self.stem(image)
            logit = self.head(feature)
        return feature.float(), logit.float()


class ServerModel(Network):
    """A large network without its stem."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, feature: Tensor) -> Tensor:
        """Map features (B, K, h, w) to logits (B, C), all float32."""
        with self._computing(feature.device):
            logit = self.layers(feature)
        return logit.float()

    def folded(self) -> "ServerModel":
        """Return a copy for evaluation, a quarter faster: the ResNets' BatchNorms are folded into the convolutions.

        Its logits equal those of this model in evaluation mode, up to rounding. With other layers it is a plain copy.
        """
        copied = copy.deepcopy(self).eval()
        resnet.fold_norms(copied)
        return copied


class StemModel(Network):
    """The part of a large network that stays on the edge in split learning."""

    def __init__(self, stem: nn.Module) -> None:
        super().__init__()
        self.stem = stem

    def forward(self, image: Tensor) -> Tensor:
        """Map images (B, channels, H, W) to the feature (B, K, h, w), float32."""
        with self._computing(image.device):
            feature = self.stem(image)
        return feature.float()


class WholeModel(Network):
    """A large network with its stem, trained as a whole."""

    def __init__(self, stem: nn.Module, layers: nn.Module) -> None:
        super().__init__()
        self.stem, self.layers = stem, layers

    def forward(self, image: Tensor) -> Tensor:
        """Map images (B, channels, H, W) to logits (B, C), float32."""
        with self._computing(image.device):
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
        resnet.fold_norms(copied)
        return copied


def build_edge_model(
    name: EdgeName,
    image_shape: ImageShape,
    num_classes: int,
    generator: torch.Generator,
    device: torch.device,
    norm: NormName = "batch",
) -> EdgeModel:
    """Return an initialised edge model on `device`, in channels-last layout."""
    family = EDGE_FAMILIES[name]
    with _numbers_of(generator):
        model = EdgeModel(*family.build(image_shape, num_classes, norm))
    return _initialised(model, family.initialise, generator, device)


def build_server_model(
    name: ServerName,
    feature_shape: FeatureShape,
    num_classes: int,
    generator: torch.Generator,
    device: torch.device,
    norm: NormName = "batch",
    cut: str | None = None,
) -> ServerModel:
    """Return an initialised server model for features of this shape on `device`, in channels-last layout."""
    with _numbers_of(generator):
        model = ServerModel(layers_builder(name, cut)(feature_shape, num_classes, norm))
    return _initialised(model, SERVER_FAMILIES[name].initialise, generator, device)


def build_whole_model(
    name: ServerName,
    image_shape: ImageShape,
    num_classes: int,
    generator: torch.Generator,
    device: torch.device,
    norm: NormName = "batch",
    cut: str | None = None,
) -> WholeModel:
    """Return an initialised large network with its stem on `device`, in channels-last layout."""
    family = SERVER_FAMILIES[name]
    with _numbers_of(generator):
        stem = (family.stem or resnet.ConvStem)(image_shape, norm)
        layers = layers_builder(name, cut)(shape_after(stem, image_shape), num_classes, norm)
        model = WholeModel(stem, layers)
    return _initialised(model, family.initialise, generator, device)


def layers_builder(name: ServerName, cut: str | None) -> BuildLayers:
    """Return what builds a large network after its stem. Raises `ConfigError` for a cut that the network lacks."""
    family = SERVER_FAMILIES[name]
    if cut is None:
        return family.build
    expected = f"{' or '.join(family.cuts)}, or null" if family.cuts else f"null: {name} has only one"
    require(cut in family.cuts, "server.cut", cut, expected)
    return family.cuts[cut]


@cache
def edge_feature_shape(name: EdgeName, image_shape: ImageShape, num_classes: int, norm: NormName) -> FeatureShape:
    """Return the (height, width, channels) of the features of an edge model."""
    edge = build_edge_model(name, image_shape, num_classes, torch.Generator(), torch.device("cpu"), norm)
    return shape_after(edge.stem, image_shape)


@cache
def stem_layout(
    name: EdgeName, image_shape: ImageShape, num_classes: int, norm: NormName
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return names and shapes of the weights of an edge model's stem; stems with one layout can be averaged."""
    edge = build_edge_model(name, image_shape, num_classes, torch.Generator(), torch.device("cpu"), norm)
    return tuple((key, tuple(tensor.shape)) for key, tensor in edge.stem.state_dict().items())


@cache
def whole_feature_shape(name: ServerName, image_shape: ImageShape, norm: NormName) -> FeatureShape:
    """Return the (height, width, channels) of the features within a large network with its stem."""
    with _numbers_of(torch.Generator()):
        return shape_after((SERVER_FAMILIES[name].stem or resnet.ConvStem)(image_shape, norm), image_shape)


@torch.no_grad()
def shape_after(stem: nn.Module, image_shape: ImageShape) -> FeatureShape:
    """Return the (height, width, channels) of a stem's feature, by passing a zero image through it."""
    height, width, channels = image_shape
    was_training = stem.training
    feature: Tensor = stem.eval()(torch.zeros(1, channels, height, width))
    stem.train(was_training)
    _, channels, height, width = feature.shape
    return height, width, channels


@contextmanager
def _numbers_of(generator: torch.Generator) -> Iterator[None]:
    """Have layers set their initial values from a generator's seed; the generator itself is not advanced."""
    with global_numbers_of([torch.Generator().manual_seed(generator.initial_seed())]):
        yield


def _initialised(
    model: Model, initialise: Initialise | None, generator: torch.Generator, device: torch.device
) -> Model:
    """Return the model on a device; values are set on the CPU, so that they are the same on every device."""
    if initialise is not None:
        initialise(model, generator)
    return model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
