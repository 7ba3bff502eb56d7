"""Constructs the parts of a server and a worker from the configuration and the image file."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from gkt_mpi.algorithms import ALGORITHMS
from gkt_mpi.config import RunConfig
from gkt_mpi.cost.devices import load_devices
from gkt_mpi.cost.virtual_clock import RoundPricer
from gkt_mpi.cost.work import Prices, Setting, async_prices, round_cost
from gkt_mpi.data.augment import ImagePipeline, augmentation_for
from gkt_mpi.data.datasets import ImageFile
from gkt_mpi.data.image_input import ImageInput
from gkt_mpi.data.shard import Shard
from gkt_mpi.data.sources import DATA_SOURCES
from gkt_mpi.errors import ConfigError, require
from gkt_mpi.federation.client import build_edges, edge_names
from gkt_mpi.federation.learner import State
from gkt_mpi.federation.worker import LARGEST_BATCH
from gkt_mpi.learners.site import Images, LearnerConfig, Machine, Site
from gkt_mpi.lookup import code_digests
from gkt_mpi.models.family import FeatureShape, ImageShape
from gkt_mpi.models.networks import edge_feature_shape, stem_layout, whole_feature_shape
from gkt_mpi.models.trial import try_edge, try_server, try_whole
from gkt_mpi.models.weights import digest_of_weights, load_weights
from gkt_mpi.plain import Json
from gkt_mpi.seeding import numpy_generator
from gkt_mpi.training.compute import ComputeConfig
from gkt_mpi.training.trainable import AnyEdge
from gkt_mpi.wire.codec import CODECS, SIGNED_CODECS, Codec

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Part = TypeVar("Part", bound="DataclassInstance")


def part_of(config: RunConfig, part: type[Part]) -> Part:
    """Return the fields of a configuration that a part of the program reads, in that part's dataclass."""
    return part(**{field.name: getattr(config, field.name) for field in fields(part)})


def images_of(config: RunConfig, file: ImageFile, shards: list[np.ndarray], device: torch.device) -> Images:
    """Return the images of a learner; the test images are loaded into memory on a device."""
    pipeline = pipeline_of(config, file, device)
    return Images(file, pipeline, shards, Shard.load(file, "test", _test_rows(config, file), pipeline, device))


def site_of(
    config: RunConfig,
    images: Images,
    machine: Machine,
    prices: Prices,
    rounds_done: int,
    state: State | None,
) -> Site:
    """Return the components of the learner; `state` is the checkpoint after `rounds_done` rounds, if there is one.

    Loads `client.weights` into the edges. Raises `ConfigError` if they do not fit.
    """
    if state is not None:  # precision and compilation stay as selected at the start
        config = replace(config, compute=ComputeConfig(**state["compute"]))
    edges = edges_of(config, images.file, machine.placement.device)
    if config.client.weights is not None:  # workers receive the clients' states from the server
        for edge in dict.fromkeys(edges):
            load_weights(edge.model, config.client.weights, "client.weights")
    return Site(
        config=part_of(config, LearnerConfig),
        images=images,
        machine=machine,
        edges=edges,
        codec=codec_of(config, images.file),
        prices=prices,
        rounds_left=config.rounds - rounds_done,
    )


def _test_rows(config: RunConfig, file: ImageFile) -> np.ndarray:
    """Return the run's test images in random order, so that every part of them has a similar mix of classes."""
    return numpy_generator(config.seed, "test images").permutation(len(file.labels("test")))[: config.data.test_limit]


def pipeline_of(config: RunConfig, file: ImageFile, device: torch.device) -> ImagePipeline:
    """Return the transformation of images into a network's input, on a device."""
    default = DATA_SOURCES[config.data.name].augmentation
    augmentation = augmentation_for(default, file.image_shape[0], config.data.augment)
    mean, std = torch.from_numpy(file.mean).to(device), torch.from_numpy(file.std).to(device)
    return ImagePipeline(mean, std, augmentation)


def codec_of(config: RunConfig, file: ImageFile) -> Codec:
    """Return the codec for the features of these images."""
    return Codec(config.wire.codec, feature_shape_of(config, file.image_shape, len(file.classes)))


def feature_shape_of(config: RunConfig, image_shape: ImageShape, num_classes: int) -> FeatureShape:
    """Return the (height, width, channels) of the features that the server learns from.

    Raises `ConfigError` where the clients' edge models disagree and the server learns from all of them.
    """
    facts = ALGORITHMS[config.algorithm].facts
    if facts.client_part != "edge" or not facts.has_clients:
        return whole_feature_shape(config.server.model, image_shape, config.server.norm)
    names = dict.fromkeys(edge_names(config.client.model, config.clients or 1))
    shapes = {name: edge_feature_shape(name, image_shape, num_classes, config.client.norm) for name in names}
    if facts.has_server_model and len(set(shapes.values())) > 1:
        found = " and ".join(f"{'x'.join(map(str, shape))} of {name}" for name, shape in shapes.items())
        raise ConfigError(
            f"client.model has stems whose features differ in (height, width, channels): {found}; the server's network "
            "learns from the features of all clients, so choose edge models with one shape"
        )
    return next(iter(shapes.values()))


def check_networks(config: RunConfig, image_shape: ImageShape, num_classes: int) -> None:
    """Try out the networks that a run trains. Raises `ConfigError`, in one line, for one that cannot be trained.

    Also refuses features that the codec cannot encode: negative ones, in a codec without sign.
    """
    facts, large = ALGORITHMS[config.algorithm].facts, config.server
    if facts.client_part != "edge" or not facts.has_clients:
        try_whole(large.model, image_shape, num_classes, large.norm, large.cut)
        return
    lowest = {
        name: try_edge(name, image_shape, num_classes, config.client.norm)
        for name in dict.fromkeys(edge_names(config.client.model, config.clients or 1))
    }
    if config.client.share != "none":
        layouts = {stem_layout(name, image_shape, num_classes, config.client.norm) for name in lowest}
        expected = f"none: the stems of {' and '.join(lowest)} have different weights, which cannot be averaged"
        require(len(layouts) == 1, "client.share", config.client.share, expected)
    if not facts.has_server_model:
        return
    shape = feature_shape_of(config, image_shape, num_classes)
    try_server(large.model, shape, num_classes, large.norm, large.cut, f"client.model {' and '.join(lowest)}")
    signed = [name for name in lowest if lowest[name] < 0]
    if signed and not CODECS[config.wire.codec].is_signed:
        raise ConfigError(
            f"wire.codec is {config.wire.codec}, which has no sign, but client.model {signed[0]} can give negative "
            f"features ({lowest[signed[0]]:.3g} for a random image); choose {' or '.join(SIGNED_CODECS)}, or end the "
            "stem with a ReLU"
        )


def edges_of(config: RunConfig, file: ImageFile | ImageInput, device: torch.device) -> list[AnyEdge]:
    """Return what each client's state is loaded into."""
    part, num_classes = ALGORITHMS[config.algorithm].facts.client_part, len(file.classes)
    assert config.clients is not None
    return build_edges(
        part, config.client, config.server, file.image_shape, num_classes, config.clients, config.seed, device
    )


def prices_of(config: RunConfig, file: ImageFile) -> tuple[RoundPricer, Prices]:
    """Return the cost functions for the rounds of a run and for the uploads of an asynchronous one.

    Raises `ConfigError` for unknown devices, or devices with which the run would never end.
    """
    codec = codec_of(config, file)
    setting = Setting(
        image_shape=file.image_shape,
        num_classes=len(file.classes),
        codec=codec,
        block_rows=min(codec.block_rows(config.wire.block_mib), LARGEST_BATCH),
        server_model=config.server.model,
        server_norm=config.server.norm,
        server_cut=config.server.cut,
        client_epochs=config.client.epochs,
        client_batch_size=config.client.batch_size,
        client_share=config.client.share,
        client_extract=config.client.extract,
        client_norm=config.client.norm,
        server_epochs=config.server.epochs,
        split_mode=config.split.mode,
    )
    devices = load_devices(config.devices)
    algorithm = ALGORITHMS[config.algorithm]
    waits_for_all = algorithm.facts.is_synchronous and algorithm.facts.has_clients
    if waits_for_all and config.clients is not None and (leaving := devices.leaving(config.clients)):
        waiting_for_none = [its.name for its in ALGORITHMS.values() if not its.facts.is_synchronous]
        raise ConfigError(
            f"devices.edge lets client {leaving[0]} leave for good, and {config.algorithm} would wait for it for ever; "
            f"choose another profile, or --algorithm {' or '.join(waiting_for_none)}"
        )
    return partial(round_cost, algorithm.work, setting, devices), async_prices(setting, devices)


def digest_of(config: RunConfig) -> torch.Tensor:
    """Return the digest of a configuration as sent to workers, uint8 (32,); it covers the modules that it names."""
    modules = json.dumps(own_code(config)).encode()
    return torch.frombuffer(bytearray(hashlib.sha256(config.digest() + modules).digest()), dtype=torch.uint8)


def own_code(config: RunConfig) -> dict[str, str]:
    """Return digests of the code of users' modules that a configuration names, by module."""
    return code_digests(_texts(config.as_dict()))


def _texts(value: object) -> Iterator[str]:
    """Yield every text in nested lists and dictionaries, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in (*value, *value.values()) if isinstance(value, dict) else value:
            yield from _texts(item)


def what_is_learnt(config: RunConfig, file: ImageFile, shards: list[np.ndarray]) -> Json:
    """Return the part of a checkpoint that describes data and code: digests, which must be unchanged on resume.

    own code: that of users' modules, if there are any. training images: differs when any client has other samples, or
    samples with other labels. images: when anything in the image file differs, including the test images. input: what
    the trained networks need to know about images. client weights, server weights: of the files that networks start
    from, if any. Raises `ConfigError` if one cannot be read.
    """
    labels, digest = file.labels("train"), hashlib.sha256()
    for shard in shards:
        digest.update(shard.tobytes() + labels[shard].tobytes() + b"next client")
    input = ImageInput.of(file).as_dict()
    images = {"training images": digest.hexdigest()[:16], "images": file.digest, "input": input}
    code = own_code(config)
    return images | digests_of_weights(config) | ({"own code": code} if code else {})


def digests_of_weights(config: RunConfig) -> dict[str, str]:
    """Return digests of the files that networks start from, if any. Raises `ConfigError` if one cannot be read."""
    files = {"client": config.client.weights, "server": config.server.weights}
    return {
        f"{side} weights": digest_of_weights(path, f"{side}.weights")
        for side, path in files.items()
        if path is not None
    }
