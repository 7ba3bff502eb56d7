"""Edge models of users in one run: what they must agree in, and what the wire, the bank and the costs follow from."""

import pytest
from torch import nn

from gkt_mpi.build import check_networks, feature_shape_of
from gkt_mpi.config import parse
from gkt_mpi.cost.flops import server_cost
from gkt_mpi.data.source import DataSize
from gkt_mpi.errors import ConfigError
from gkt_mpi.models.family import EdgeFamily
from gkt_mpi.programs.memory import bank_mib

IMAGE = (12, 8, 3)


def edge_of(channels, stride, last=nn.ReLU):
    """Return an edge family whose feature has these channels."""

    def build(image_shape, num_classes, norm):
        stem = nn.Sequential(nn.Conv2d(image_shape[2], channels, 3, stride, 1), last())
        return stem, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))

    return EdgeFamily(f"{channels}/{stride}", build)


WIDE, SMALL, SIGNED, PLAIN = edge_of(20, 1), edge_of(20, 2), edge_of(20, 2, nn.Tanh), edge_of(16, 1)


def named(name):
    return f"{__name__}:{name}"


def config_of(*models, **changes):
    fields = {"clients": 4, "server.model": "resnet11"} | {key.replace("__", "."): it for key, it in changes.items()}
    models = "[" + ", ".join(models) + "]"
    return parse([f"--client.model={models}", *(f"--{name}={value}" for name, value in fields.items())])


def test_the_feature_is_that_of_the_stem_and_so_are_the_bank_and_the_servers_work():
    small, wide = config_of(named("SMALL")), config_of(named("WIDE"))
    assert feature_shape_of(small, IMAGE, 10) == (6, 4, 20)
    assert feature_shape_of(wide, IMAGE, 10) == (12, 8, 20)
    size = DataSize(1000, 10, IMAGE)
    assert bank_mib(small, size) == 1000 * 6 * 4 * 20 * 4 / 2**20
    assert bank_mib(wide, size) == 4 * bank_mib(small, size)
    first = server_cost("resnet11", (12, 8, 20), 10), server_cost("resnet11", (12, 8, 16), 10)
    more = 4 * (16 + 64)  # the first block's 1x1 convolutions of 20 instead of 16 channels, to 16 and to 64
    assert first[0].parameters - first[1].parameters == more
    assert first[0].forward_flops - first[1].forward_flops == 2 * more * 12 * 8


def test_clients_with_features_of_different_shapes_are_refused_where_a_server_learns_from_all():
    config = config_of(named("WIDE"), named("SMALL"))
    with pytest.raises(ConfigError) as refused:
        check_networks(config, IMAGE, 10)
    text = str(refused.value)
    assert f"12x8x20 of {named('WIDE')} and 6x4x20 of {named('SMALL')}" in text and "\n" not in text
    check_networks(config_of(named("WIDE"), named("SMALL"), algorithm="standalone"), IMAGE, 10)
    check_networks(config_of(named("PLAIN"), "resnet8"), IMAGE, 10)


def test_stems_with_different_weights_are_not_averaged():
    with pytest.raises(
        ConfigError, match=r"client.share is 'stem'; expected none: the stems of .* have different weights"
    ):
        check_networks(config_of(named("PLAIN"), "resnet8", client__share="stem"), IMAGE, 10)
    check_networks(config_of("resnet4", "resnet8", client__share="stem"), IMAGE, 10)


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_negative_features_are_refused_in_codecs_without_a_sign(codec):
    check_networks(config_of(named("SMALL"), wire__codec=codec), IMAGE, 10)
    check_networks(config_of(named("SIGNED"), wire__codec="bfloat16"), IMAGE, 10)
    with pytest.raises(ConfigError) as refused:
        check_networks(config_of(named("SIGNED"), wire__codec=codec), IMAGE, 10)
    assert f"wire.codec is {codec}, which has no sign, but client.model {named('SIGNED')}" in str(refused.value)
    assert "choose float32 or bfloat16 or float16, or end the stem with a ReLU" in str(refused.value)
