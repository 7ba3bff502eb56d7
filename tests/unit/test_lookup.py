"""Names in a configuration that stand for objects of users' own files."""

import re
import sys

import pytest

import gkt_mpi
from gkt_mpi import lookup
from gkt_mpi.config import RunConfig, parse
from gkt_mpi.errors import ConfigError
from gkt_mpi.models.networks import EDGE_FAMILIES

NETS = """
from gkt_mpi.models.family import EdgeFamily
from gkt_mpi.models.networks import EDGE_FAMILIES
TINY = EdgeFamily("tiny", EDGE_FAMILIES["resnet4"].build, "Tiny net")
LARGE = EDGE_FAMILIES["resnet8"]
class Net: ...
"""


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """A folder with a configuration file and users' modules beside it; forgotten afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(lookup, "searched", [])
    folder = tmp_path / "a study"
    folder.mkdir()
    (folder / "own_nets.py").write_text(NETS)
    (folder / "broken_nets.py").write_text("x = 1\nimport nowhere_to_be_found\n")
    (folder / "run.yaml").write_text("clients: 2\n")
    yield folder
    for name in ("own_nets", "broken_nets"):
        sys.modules.pop(name, None)


def parse_beside(folder, *arguments) -> RunConfig:
    return parse(["--config", str(folder / "run.yaml"), *arguments])


def test_an_object_in_a_file_beside_the_configuration_is_found(beside):
    config = parse_beside(beside, "--client.model=own_nets:TINY")
    assert config.client.model == "own_nets:TINY"
    assert EDGE_FAMILIES[config.client.model].title == "Tiny net"
    mixed = parse_beside(beside, "--client.model={own_nets:TINY: 0.5, resnet8: 0.5}")
    assert mixed.client.model == {"own_nets:TINY": 0.5, "resnet8": 0.5}


def test_a_configuration_with_users_names_is_plain_yaml(beside):
    name = parse_beside(beside, "--client.model=own_nets:TINY").as_dict()["client"]["model"]
    assert type(name) is str


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("own_net:TINY", ["there is no module own_net on PYTHONPATH or in ", "did you mean own_nets?"]),
        ("own_nets:TINI", ["own_nets.py has no TINI; did you mean own_nets:TINY?"]),
        ("own_nets:Net", ["is the class Net itself; expected an object of class gkt_mpi.EdgeFamily; did you mean"]),
        ("broken_nets:TINY", ["broken_nets.py:2: ModuleNotFoundError: No module named 'nowhere_to_be_found'"]),
        ("no.package.here:TINY", ["there is no module no.package.here"]),
    ],
)
def test_a_wrong_name_is_one_line_with_place_and_nearest_name(beside, name, parts):
    with pytest.raises(ConfigError) as refused:
        parse_beside(beside, f"--client.model={name}")
    text = str(refused.value)
    assert text.startswith("client.model is") and "\n" not in text
    assert all(part in text for part in parts), text


@pytest.mark.parametrize("field", ["algorithm", "data.name", "data.partition", "server.model", "wire.codec"])
def test_every_kind_of_name_can_be_a_users_and_is_checked_for_its_class(beside, field):
    with pytest.raises(
        ConfigError, match=rf"{field} is own_nets:TINY, which is of class EdgeFamily; expected an object"
    ):
        parse_beside(beside, f"--{field}=own_nets:TINY")


@pytest.mark.parametrize(
    "field", ["data.name", "data.partition", "client.model", "server.model", "algorithm", "wire.codec", "log.sinks"]
)
def test_the_class_that_a_message_asks_for_is_exported(field):
    with pytest.raises(ConfigError) as raised:
        parse([f"--{field}=[json:JSONDecoder]" if field == "log.sinks" else f"--{field}=json:JSONDecoder"])
    (expected,) = re.findall(r"expected an object of class gkt_mpi\.(\w+)", str(raised.value))
    assert isinstance(getattr(gkt_mpi, expected), type)
